"""Published folders appear whole, never change, and hold nothing that was not sealed into them."""

import asyncio
import errno
import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from server.artifacts import MANIFEST, Artifacts
from server.errors import AdapterRejected, Conflict, HoneError, Invalid, NotFound, Unavailable

NAME = "adapters/default/v000001"


@pytest.fixture(params=["local", "remote"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    if request.param == "local":
        return Artifacts(str(tmp_path / "root"))
    store = fsspec.filesystem("memory")
    if store.exists("/bucket"):
        store.rm("/bucket", recursive=True)
    return Artifacts("memory://bucket/prefix", cache=tmp_path / "cache")


def published(artifacts: Artifacts, *, name: str = NAME, note: str = "") -> Path:
    staged = artifacts.stage(name)
    (staged / "adapter_model.safetensors").write_bytes(b"weights")
    (staged / "plots").mkdir()
    (staged / "plots" / "kl.svg").write_text("<svg/>")
    artifacts.seal(staged, {"version": 1, "note": note})
    artifacts.publish(staged, name)
    return artifacts.fetch(name)


def test_a_published_folder_comes_back_as_it_was_sealed(artifacts: Artifacts) -> None:
    folder = published(artifacts, note="tschüß 🙂")
    manifest = artifacts.verify(folder)
    assert manifest["note"] == "tschüß 🙂"
    assert set(manifest["files"]) == {"adapter_model.safetensors", "plots/kl.svg"}
    assert (folder / "plots" / "kl.svg").read_text() == "<svg/>"


def test_a_number_is_never_used_twice(artifacts: Artifacts) -> None:
    published(artifacts)
    with pytest.raises(Conflict, match="already published"):
        published(artifacts, note="again")
    assert artifacts.verify(artifacts.fetch(NAME))["note"] == ""


def test_what_was_only_staged_is_not_there(artifacts: Artifacts) -> None:
    staged = artifacts.stage(NAME)
    (staged / "adapter_model.safetensors").write_bytes(b"weights")
    assert not artifacts.exists(NAME)
    with pytest.raises(NotFound):
        artifacts.fetch(NAME)
    with pytest.raises(AdapterRejected, match="no manifest"):
        artifacts.publish(staged, NAME)
    assert list(artifacts.stage(NAME).iterdir()) == []


def test_an_upload_cut_short_is_not_there(tmp_path: Path) -> None:
    """The manifest goes up last: a folder without one does not exist, whatever else arrived."""
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/bucket/cut/{NAME}/adapter_model.safetensors", b"weights")
    artifacts = Artifacts("memory://bucket/cut", cache=tmp_path)
    assert not artifacts.exists(NAME)
    published(artifacts)
    assert artifacts.exists(NAME)


def _append(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")


def _truncate(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"weig")


def _remove(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _add(folder: Path) -> None:
    (folder / "extra.json").write_text("{}")


def _link(folder: Path) -> None:
    (folder / "link.safetensors").symlink_to("/etc/hostname")


def _break_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def _climb(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../secret"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("harm", [_append, _truncate, _remove, _add, _link, _break_manifest, _climb])
def test_a_harmed_folder_is_rejected(tmp_path: Path, harm) -> None:  # type: ignore[no-untyped-def]
    artifacts = Artifacts(str(tmp_path))
    folder = published(artifacts)
    artifacts.verify(folder)
    harm(folder)
    with pytest.raises(AdapterRejected):
        artifacts.verify(folder)


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "optimiser.pt"])
def test_formats_that_can_run_code_cannot_be_sealed(tmp_path: Path, name: str) -> None:
    artifacts = Artifacts(str(tmp_path))
    staged = artifacts.stage(NAME)
    (staged / name).write_bytes(b"x")
    with pytest.raises(AdapterRejected):
        artifacts.seal(staged, {})


@pytest.mark.parametrize(
    "name", ["../v1", "adapters/../../etc", "/etc", "adapters//v1", "", "adapters/.tmp", "a/b\0"]
)
def test_a_name_cannot_leave_the_root(tmp_path: Path, name: str) -> None:
    artifacts = Artifacts(str(tmp_path))
    for action in (artifacts.stage, artifacts.exists, artifacts.fetch):
        with pytest.raises((Invalid, NotFound)) as refused:
            action(name)
        assert isinstance(refused.value, HoneError)


def test_two_processes_may_stage_the_same_version(artifacts: Artifacts) -> None:
    """The second one emptied the folder that the first was filling."""
    one, other = artifacts.stage(NAME), artifacts.stage(NAME)
    (one / "adapter_model.safetensors").write_bytes(b"weights")
    assert list(other.iterdir()) == []
    artifacts.seal(one, {})
    artifacts.publish(one, NAME)
    assert artifacts.exists(NAME)


def test_a_folder_that_another_process_fetched_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts("memory://bucket/twice", cache=tmp_path)
    published(artifacts, name="adapters/default/v000002")
    shutil.rmtree(tmp_path / "fetched")
    rename = artifacts._rename_into_place

    def late(staged: Path, target: Path) -> None:
        shutil.copytree(staged, target)
        rename(staged, target)

    monkeypatch.setattr(artifacts, "_rename_into_place", late)
    assert artifacts.verify(artifacts.fetch("adapters/default/v000002"))["version"] == 1
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_what_broken_attempts_left_goes_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path))
    published(artifacts)
    broken, at_work = artifacts.stage(NAME), artifacts.stage(NAME)
    (broken / "adapter_model.safetensors").write_bytes(b"wei")
    os.utime(broken, (0, 0))
    fresh = artifacts.stage("adapters/default/v000002")
    assert set((tmp_path / ".tmp").iterdir()) == {at_work, fresh}
    assert artifacts.exists(NAME)


@pytest.mark.parametrize(
    "trouble", [PermissionError("Access Denied"), TimeoutError(), RuntimeError("no route")]
)
def test_a_store_that_cannot_be_reached_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """Its own errors failed the cycle, and what it had trained was thrown away."""
    artifacts = Artifacts("memory://bucket/away", cache=tmp_path)
    staged = artifacts.stage(NAME)
    artifacts.seal(staged, {})

    def fail(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(
        artifacts, "_files", SimpleNamespace(exists=fail, put_file=fail, find=fail, get_file=fail)
    )
    for action in (lambda: artifacts.exists(NAME), lambda: artifacts.publish(staged, NAME)):
        with pytest.raises(Unavailable, match="cannot be reached"):
            action()
    monkeypatch.setattr(artifacts._files, "exists", lambda path: False)
    with pytest.raises(Unavailable):
        artifacts.publish(staged, NAME)
    monkeypatch.setattr(artifacts._files, "exists", lambda path: True)
    with pytest.raises(Unavailable):
        artifacts.fetch(NAME)
    assert list((tmp_path / ".tmp").iterdir()) == [staged], "half a download is no use to anybody"


def test_a_full_local_disk_is_not_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts("memory://bucket/full", cache=tmp_path)
    published(artifacts, name="adapters/default/v000003")
    shutil.rmtree(tmp_path / "fetched")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts._files, "get_file", full)
    with pytest.raises(OSError, match="No space left"):
        artifacts.fetch("adapters/default/v000003")


def test_a_store_that_falls_silent_holds_nobody_who_has_stopped_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that asyncio shares out are waited for at the end of every process."""
    artifacts, for_ever = Artifacts(str(tmp_path)), threading.Event()
    monkeypatch.setattr(artifacts, "fetch", lambda relative: for_ever.wait())

    async def story() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await artifacts.fetch_async("adapters/default/v000001")

    began = time.monotonic()
    asyncio.run(story())
    assert time.monotonic() - began < 5
    (waiting,) = [thread for thread in threading.enumerate() if thread.name == "artifacts-fetch"]
    assert waiting.daemon
    for_ever.set()


def test_what_is_fetched_from_asyncio_is_what_is_fetched(tmp_path: Path) -> None:
    artifacts = Artifacts(str(tmp_path))
    with pytest.raises(NotFound):
        asyncio.run(artifacts.fetch_async("adapters/default/v000001"))
