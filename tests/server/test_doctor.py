"""Each ailment is caused for real, and the doctor says what it is and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import doctor
from server.doctor import Finding, Level, bind
from server.settings import Settings


def settings(data_dir: Path, **fields: Any) -> Settings:
    return Settings(**{"data_dir": data_dir, "port": 0, "engine": "echo", **fields})


def found(findings: Iterator[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere: become somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def make_model(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


# --- the model ---------------------------------------------------------------------------------------------


def test_no_model_at_the_path(tmp_path: Path) -> None:
    finding = found(
        doctor.check_model(settings(tmp_path, engine="local", model=str(tmp_path / "gone"))), "model"
    )
    assert finding.level is Level.FAIL
    assert "there is no model at" in finding.says
    assert "--model" in finding.mend


def test_a_name_that_could_be_the_hubs_is_only_a_warning(tmp_path: Path) -> None:
    finding = found(
        doctor.check_model(settings(tmp_path, engine="local", model="nobody-here/no-such-model")), "model"
    )
    assert finding.level is Level.WARN
    assert "network" in finding.mend


def test_a_folder_that_lacks_weights_is_told_what_it_lacks(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "config.json", "tokenizer.json")
    finding = found(doctor.check_model(settings(tmp_path, engine="local", model=str(folder))), "model")
    assert finding.level is Level.FAIL
    assert "it lacks weights (*.safetensors)" in finding.says


def test_of_an_empty_folder_only_the_failure_is_told(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (finding,) = doctor.check_model(settings(tmp_path, engine="local", model=str(folder)))
    assert finding.level is Level.FAIL


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "config.json", "tokenizer.json", "pytorch_model.bin")
    finding = found(doctor.check_model(settings(tmp_path, engine="local", model=str(folder))), "model")
    assert finding.level is Level.FAIL
    assert "pickles" in finding.says


@pytest.mark.parametrize(
    ("name", "text", "level"),
    [
        ("chat_template.jinja", "{{ messages }}", Level.OK),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', Level.OK),
        ("tokenizer_config.json", '{"model_max_length": 512}', Level.WARN),
    ],
)
def test_a_missing_template_is_a_warning(name: str, text: str, level: Level, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "config.json", "tokenizer.json", "model.safetensors")
    (folder / name).write_text(text)
    findings = list(doctor.check_model(settings(tmp_path, engine="local", model=str(folder))))
    assert [finding.level for finding in findings] == [Level.OK, level]


def test_without_a_model_to_load_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert list(doctor.check_model(settings(tmp_path, engine="echo", model="/gone"))) == []


# --- libraries ---------------------------------------------------------------------------------------------


def test_missing_libraries_name_the_extra_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor, "find_spec", lambda name: None if name in {"torch", "apscheduler"} else object()
    )
    engine, learner = doctor.check_parts(settings(tmp_path, engine="local"))
    assert engine.level is Level.FAIL
    assert "torch" in engine.says
    assert "pip install 'hone-chat[local]'" in engine.mend
    assert learner.level is Level.WARN
    assert "hone-chat[learner]" in learner.mend


# --- the port ----------------------------------------------------------------------------------------------


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        finding = found(doctor.check_port(settings(tmp_path, port=port)), "port")
    assert finding.level is Level.FAIL
    assert f"127.0.0.1:{port} is taken" in finding.says
    assert "--port" in finding.mend


def test_a_port_taken_by_this_very_installation_is_fine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hone:
        port = hone.getsockname()[1]
        (tmp_path / "server.json").write_text(f'{{"url": "http://127.0.0.1:{port}", "pid": 1}}')
        finding = found(doctor.check_port(settings(tmp_path, port=port)), "port")
    assert finding.level is Level.OK


def test_a_free_port_and_one_just_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # this side closes first, so the port rests in TIME_WAIT
            assert client.recv(1) == b""
    assert found(doctor.check_port(settings(tmp_path, port=port)), "port").level is Level.OK


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    finding = found(doctor.check_port(settings(tmp_path, host="192.0.2.1", port=8000)), "port")
    assert finding.level is Level.FAIL
    assert "192.0.2.1" in finding.says


def test_a_bound_socket_keeps_its_port_from_others() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", first.getsockname()[1])


# --- folders and disk --------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter and write; pytest's own are for one user only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_an_adapters_directory_that_cannot_be_written(open_folder: Path) -> None:
    adapters = open_folder / "adapters"
    adapters.mkdir()
    adapters.chmod(0o555)
    with as_nobody():
        findings = {finding.check: finding for finding in doctor.check_folders(settings(open_folder))}
    adapters.chmod(0o755)
    assert findings["data directory"].level is Level.OK
    assert findings["adapters directory"].level is Level.FAIL
    assert "Permission denied" in findings["adapters directory"].says
    assert "chown" in findings["adapters directory"].mend


def test_on_a_read_only_mount_a_change_of_owner_is_no_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    finding = found(doctor.check_folders(settings(tmp_path)), "data directory")
    assert "Read-only" in finding.says
    assert "chown" not in finding.mend
    assert "--data-dir" in finding.mend


def test_a_file_where_the_data_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    finding = found(doctor.check_folders(settings(tmp_path / "data")), "data directory")
    assert finding.level is Level.FAIL
    assert "is a file" in finding.says


def test_a_data_directory_yet_to_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    finding = found(doctor.check_folders(settings(tmp_path / "a" / "b")), "data directory")
    assert (finding.level, finding.says) == (Level.OK, f"{tmp_path / 'a' / 'b'} can be made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free_mib", "level"), [(100, Level.FAIL), (1500, Level.WARN), (9000, Level.OK)])
def test_a_disk_that_is_nearly_full(
    free_mib: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free_mib * 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    finding = found(doctor.check_disk(settings(tmp_path / "not" / "yet")), "disk")
    assert finding.level is level
    assert ("full" in finding.says) is (level is not Level.OK)


# --- the admin key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "level"), [(0o600, Level.OK), (0o644, Level.FAIL), (0o640, Level.FAIL)])
def test_an_admin_key_that_others_can_read(mode: int, level: Level, tmp_path: Path) -> None:
    key = tmp_path / "admin.key"
    key.write_text("hone_sk_secret")
    key.chmod(mode)
    finding = found(doctor.check_admin_key(settings(tmp_path)), "admin key")
    assert finding.level is level
    assert "secret" not in finding.says + finding.mend
    assert ("chmod 600" in finding.mend) is (level is Level.FAIL)


def test_no_admin_key_is_nothing_to_speak_of(tmp_path: Path) -> None:
    assert list(doctor.check_admin_key(settings(tmp_path))) == []


def test_the_doctor_loads_no_weights_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom server.doctor import examine\nfrom server.settings import Settings\n"
        f"examine(Settings(data_dir={str(tmp_path)!r}, port=0))\n"
        "print(sorted({'torch', 'transformers', 'peft', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
