"""Where peers' environments are looked for."""

import sys
from pathlib import Path

import pytest

from tests.bench.serving import venvs
from tests.bench.serving.processes import CannotRun


def test_an_absent_peer_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "FOLDER", tmp_path)
    monkeypatch.delenv("HONE_BENCH_VLLM_PYTHON", raising=False)
    with pytest.raises(CannotRun, match="prepare vllm"):
        venvs.python_of("vllm")
    monkeypatch.setenv("HONE_BENCH_VLLM_PYTHON", sys.executable)
    assert venvs.python_of("vllm") == Path(sys.executable).absolute()


def test_every_peer_is_pinned() -> None:
    assert all("==" in pin for pin in (venvs.TORCH, venvs.VLLM, venvs.LLAMA_CPP, venvs.LITELLM))


def test_requirements_are_read_for_this_machine() -> None:
    found = [venvs.name_of(want) for want in venvs.requirements(Path(sys.executable), "transformers")]
    assert "tokenizers" in found
    assert "torch" not in found, "only an extra asks for it"
    assert venvs.name_of('Torch_Vision>=1 ; python_version < "4"') == "torch-vision"


def peer(folder: Path, *, says: str, code: int) -> None:
    """A Python whose pip ends like this."""
    python = folder / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\necho progress\necho '{says}' >&2\nexit {code}\n")
    python.chmod(0o755)


RETRIED = "WARNING: Retrying after connection broken by NewConnectionError: /simple/torch/"
NO_VERSION = "ERROR: No matching distribution found for torch==2.13.0"


@pytest.mark.parametrize(
    ("says", "required", "where_possible", "code"),
    [
        (f"{RETRIED} {NO_VERSION}", "", True, 0),
        (f"{RETRIED} {NO_VERSION}", "", False, 1),
        (f"{RETRIED} {NO_VERSION}", "1", True, 1),
        (NO_VERSION, "", True, 1),
    ],
)
def test_only_an_index_out_of_reach_may_leave_a_peer_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    says: str,
    required: str,
    where_possible: bool,
    code: int,
) -> None:
    """A wrong pin ends with the very same last words, and must not be skipped for ever."""
    monkeypatch.setattr(venvs, "FOLDER", tmp_path)
    monkeypatch.setenv("HONE_REQUIRE_PARTS", required)
    peer(tmp_path, says=says, code=1)
    assert venvs.main(["vllm"], where_possible=where_possible) == code
    out, told = capfd.readouterr()
    assert out == ""
    assert "vllm is not prepared: " in told
    assert ("no package index can be reached" in told) is ("Retrying" in says)
    assert "progress" in told


def test_what_is_prepared_is_printed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`make test-all` takes it for the Python to use."""
    monkeypatch.setattr(venvs, "FOLDER", tmp_path)
    monkeypatch.setitem(venvs.PREPARE, "vllm", lambda python: venvs.pip(python, "x"))
    peer(tmp_path, says="", code=0)
    assert venvs.main(["vllm"], where_possible=True) == 0
    assert capfd.readouterr().out == f"{tmp_path}/vllm/bin/python\n"
