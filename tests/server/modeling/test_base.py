"""A base loads frozen and still, or says why not."""

import json
from pathlib import Path

import pytest
import torch

from server import modeling
from server.errors import SetupError
from server.modeling import base as base_module
from tests.fakes import save_model, tiny_llama

PAIR = ((1, 2, 3), (4, 5, 6, 7))


def logprobs(model: object) -> torch.Tensor:
    with torch.no_grad():
        return modeling.sequence_logprobs(model, [PAIR])[0]


def test_a_checkpoint_loads_frozen_still_and_hashed(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny", "gpt2", context=64)
    base = modeling.load_base(str(folder), device="cpu")
    assert (base.base_id, base.context, base.dtype) == ("tiny", 64, torch.float32)
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert all(m.p == 0 for m in base.model.modules() if isinstance(m, torch.nn.Dropout))
    assert base.base_hash == modeling.load_base(str(folder)).base_hash
    other = save_model(tmp_path / "other", "gpt2", seed=1, context=64)
    assert base.base_hash != modeling.load_base(str(other)).base_hash


def test_a_checkpoint_may_be_served_in_bfloat16(tmp_path: Path) -> None:
    base = modeling.load_base(str(save_model(tmp_path / "tiny")), dtype="bfloat16")
    assert base.dtype == torch.bfloat16


@pytest.mark.parametrize("has_instructions", [True, False])
def test_large_weights_are_bfloat16_only_where_the_machine_multiplies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert base_module.fitting_dtype(tmp_path, cpu) == torch.float32
    with file.open("r+b") as weights:
        weights.truncate(base_module.LARGE)
    large = torch.bfloat16 if has_instructions else torch.float32
    assert base_module.fitting_dtype(tmp_path, cpu) == large
    assert base_module.fitting_dtype(tmp_path, cuda) == torch.bfloat16


def test_a_checkpoints_own_sampling_never_applies(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 9.0, "eos_token_id": [256, 7]})
    )
    base = modeling.load_base(str(folder))
    assert not base.model.generation_config.do_sample
    assert base.renderer.stop_ids == {256, 7}


@pytest.mark.parametrize("left", [None, "config.json"])
def test_a_folder_without_a_model_is_explained(tmp_path: Path, left: str | None) -> None:
    if left:
        (tmp_path / left).write_text("{}")
    with pytest.raises(SetupError, match=r"config\.json" if left is None else "safetensors"):
        modeling.load_base(str(tmp_path))
    with pytest.raises(SetupError, match="no model at"):
        modeling.load_base(str(tmp_path / "missing"))


def test_broken_weights_are_explained(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SetupError, match="cannot be loaded"):
        modeling.load_base(str(folder))


def test_a_model_that_keeps_other_state_is_refused() -> None:
    from transformers import MambaConfig, T5Config

    with pytest.raises(SetupError):
        modeling.check_servable(T5Config())
    with pytest.raises(SetupError, match="not a plain decoder-only"):
        modeling.check_servable(MambaConfig())


def test_a_head_that_is_not_plain_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama()
    modeling.check_head(base.model)
    base.model.config.logit_scale = 3.0
    with pytest.raises(SetupError):
        modeling.check_head(base.model)
