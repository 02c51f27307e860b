"""A model of a benchmark's making, tiny: it loads everywhere, never ends a reply, and is the same each time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.modeling import read_adapter
from server.prompts import Renderer
from tests.bench.serving import shapes, words
from tests.bench.serving.shapes import Shape

TINY = Shape("tiny", layers=2, hidden=32, heads=4, kv_heads=2, inner=64, vocabulary=400)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shapes, "CACHE", tmp_path)
    return shapes.made(TINY)


def test_no_greedy_reply_ends_early(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(4, 400, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert not logits[..., : len(words.SPECIALS)].any()
    assert logits.argmax(-1).min() >= len(words.SPECIALS)


def test_hone_renders_prompts_of_exactly_the_length(folder: Path) -> None:
    renderer = Renderer.from_pretrained(str(folder))
    for prompt in words.prompts(400, tokens=64, count=5, seed=0):
        assert len(renderer.render([{"role": "user", "content": prompt}]).token_ids) == 64
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "baba"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == words.framed("baba")


def test_made_once_and_whole(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.safetensors").read_bytes()
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert shapes.made(TINY) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed
    monkeypatch.setattr(shapes, "CACHE", tmp_path / "again")
    assert (shapes.made(TINY) / "model.safetensors").read_bytes() == before


def test_adapters_differ_and_reach_every_linear_layer(folder: Path) -> None:
    one, other = shapes.adapters(TINY, 2)
    first, second = read_adapter(one), read_adapter(other)
    assert first.rank == second.rank == shapes.RANK
    assert len(first.factors) == 7 * TINY.layers
    name = next(iter(first.factors))
    assert not torch.equal(first.factors[name][0], second.factors[name][0])
