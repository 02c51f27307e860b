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
