"""Adapters round-trip, fit or are rejected, and are switched in one place."""

import json
from pathlib import Path

import pytest
import torch

from server import modeling
from server.errors import AdapterRejected
from tests.fakes import FAMILIES, random_adapter, tiny_base, tiny_llama

PAIR = ((1, 2, 3), (4, 5, 6, 7))


def logprobs(model: object) -> torch.Tensor:
    with torch.no_grad():
        return modeling.sequence_logprobs(model, [PAIR])[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_round_trips_and_plain_peft_reads_it(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = random_adapter(tiny_base(family), tmp_path / "first", seed=3, strength=0.05)
    loaded = modeling.load_adapter(tiny_base(family).model, "policy", folder)
    modeling.save_adapter(loaded, "policy", tmp_path / "second", "tiny")
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == [modeling.CONFIG, modeling.WEIGHTS]
    plain = PeftModel.from_pretrained(tiny_base(family).model, tmp_path / "second").eval()
    assert torch.allclose(logprobs(plain), logprobs(loaded), atol=1e-6)
    assert not torch.allclose(logprobs(loaded), logprobs(tiny_base(family).model), atol=1e-2)
    written = json.loads((tmp_path / "second" / modeling.CONFIG).read_text())
    assert written["base_model_name_or_path"] == "tiny"


def test_a_rank_stabilised_adapter_keeps_its_scale(tmp_path: Path) -> None:
    """It was served by one scale and gone on from by another: half of it, at rank 4."""
    from peft import PeftModel

    folder = random_adapter(tiny_llama(), tmp_path / "first", seed=3, rank=4, strength=0.05)
    config = json.loads((folder / modeling.CONFIG).read_text())
    (folder / modeling.CONFIG).write_text(json.dumps(config | {"use_rslora": True}))
    loaded = modeling.load_adapter(tiny_llama().model, "policy", folder)
    plain = PeftModel.from_pretrained(tiny_llama().model, folder).eval()
    assert torch.allclose(logprobs(plain), logprobs(loaded), atol=1e-6)
    modeling.save_adapter(loaded, "policy", tmp_path / "second", "tiny")
    again = PeftModel.from_pretrained(tiny_llama().model, tmp_path / "second").eval()
    assert torch.allclose(logprobs(plain), logprobs(again), atol=1e-6)
    assert modeling.read_adapter(folder).scaling == modeling.read_adapter(tmp_path / "second").scaling


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = modeling.new_adapter(tiny_llama().model, "policy", rank=4, alpha=8, seed=1)
    for name in ("a", "b"):
        modeling.save_adapter(model, "policy", tmp_path / name, "tiny")
    for file in (modeling.CONFIG, modeling.WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_new_adapter_changes_nothing_and_its_seed_decides_it() -> None:
    base = tiny_llama()
    before = logprobs(base.model)
    model = modeling.new_adapter(base.model, "policy", rank=4, alpha=8, seed=1)
    assert torch.equal(logprobs(model), before)
    first = dict(model.named_parameters())
    again = dict(
        modeling.new_adapter(tiny_llama().model, "policy", rank=4, alpha=8, seed=1).named_parameters()
    )
    other = dict(
        modeling.new_adapter(tiny_llama().model, "policy", rank=4, alpha=8, seed=2).named_parameters()
    )
    keys = [key for key in first if "lora_A" in key]
    assert all(torch.equal(first[key], again[key]) for key in keys)
    assert not any(torch.equal(first[key], other[key]) for key in keys)


def test_switching_keeps_exactly_the_named_adapter_trainable(tmp_path: Path) -> None:
    base = tiny_llama()
    bare = logprobs(base.model)
    model = modeling.load_adapter(base.model, "policy", random_adapter(tiny_llama(), tmp_path / "a", seed=1))
    policy = logprobs(model)
    model = modeling.new_adapter(model, "value", rank=2, alpha=4, seed=0)

    def trainable() -> set[str]:
        return {key.split(".")[-2] for key, p in model.named_parameters() if p.requires_grad}

    modeling.use_adapter(model, None, trainable=False)
    assert torch.equal(logprobs(model), bare)
    assert trainable() == set()
    chosen = modeling.use_adapter(model, "policy", trainable=True)
    assert torch.equal(logprobs(model), policy)
    assert trainable() == {"policy"}
    assert len(chosen) == 2 * len(modeling.linears(tiny_llama().model))
    modeling.use_adapter(model, "value", trainable=True)
    assert trainable() == {"value"}
    modeling.use_adapter(model, "policy", trainable=False)
    assert trainable() == set()
    assert not model.training
    with pytest.raises(AssertionError):
        modeling.use_adapter(model, "nobody", trainable=False)
    with pytest.raises(AssertionError):
        modeling.use_adapter(model, None, trainable=True)


def test_adapters_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    base = tiny_llama()
    fitting = random_adapter(base, tmp_path / "fits", seed=1)
    modeling.check_shapes(base.model, modeling.read_adapter(fitting))
    with pytest.raises(AdapterRejected, match="no layer"):
        modeling.check_shapes(tiny_base("gpt2").model, modeling.read_adapter(fitting))
    weights = modeling.read_adapter(fitting)
    name = next(iter(weights.factors))
    a, b = weights.factors[name]
    for broken in ((a[:, :-1], b), (a, b[:-1]), (a * float("nan"), b), (a[:-1], b)):
        with pytest.raises(AdapterRejected):
            modeling.check_shapes(base.model, weights._replace(factors={name: broken}))


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"r": 0},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q": 2}},
    ],
)
def test_adapters_that_are_no_plain_lora_are_rejected(tmp_path: Path, change: dict[str, object]) -> None:
    folder = random_adapter(tiny_llama(), tmp_path / "a", seed=1)
    config = json.loads((folder / modeling.CONFIG).read_text())
    (folder / modeling.CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(AdapterRejected):
        modeling.read_adapter(folder)


@pytest.mark.parametrize("file", [modeling.CONFIG, modeling.WEIGHTS])
def test_broken_or_missing_files_are_rejected(tmp_path: Path, file: str) -> None:
    folder = random_adapter(tiny_llama(), tmp_path / "a", seed=1)
    (folder / file).write_bytes(b"{")
    with pytest.raises(AdapterRejected):
        modeling.read_adapter(folder)
    (folder / file).unlink()
    with pytest.raises(AdapterRejected):
        modeling.read_adapter(folder)


def test_a_manifest_of_another_base_or_template_is_rejected(tmp_path: Path) -> None:
    base = tiny_llama()
    right = {"base": {"hash": base.base_hash}, "template_hash": base.renderer.template_hash}
    (tmp_path / "manifest.json").write_text(json.dumps(right))
    modeling.check_manifest(base, tmp_path)
    for wrong in ({**right, "base": {"hash": "x"}}, {**right, "template_hash": "x"}, {}):
        (tmp_path / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(AdapterRejected):
            modeling.check_manifest(base, tmp_path)
