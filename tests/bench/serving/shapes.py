"""The models that are served: random Llamas of two shapes, and random adapters for them, made once and kept.

Weights come from a fixed seed. The rows of the four special tokens are zero, and embedding and head are one matrix: so
their logits are exactly zero, which is never the largest of thousands, and no greedy reply ends before its limit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.serving import words
from tests.running import ROOT

CACHE = ROOT / "build" / "bench"
CONTEXT = 2048
RANK = 16
STRENGTH = 0.02
"""Of the adapters' random factors: enough to change what is said, too little to break it."""
SEED = 20_240


@dataclass(frozen=True)
class Shape:
    """A model by its sizes. Changing one makes another model: give it another name."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def folder(self) -> Path:
        return CACHE / "models" / self.name

    def prompts(self, *, tokens: int, count: int, seed: int | str) -> list[str]:
        return words.prompts(self.vocabulary, tokens=tokens, count=count, seed=seed)


S = Shape("S", layers=4, hidden=256, heads=4, kv_heads=2, inner=1024, vocabulary=8192)
"""6.0 M parameters: so little arithmetic that what surrounds it shows."""
M = Shape("M", layers=30, hidden=576, heads=9, kv_heads=3, inner=1536, vocabulary=49_152)
"""134.5 M parameters: the shape of SmolLM2-135M."""
SHAPES = {shape.name: shape for shape in (S, M)}


def made(shape: Shape) -> Path:
    """The model's folder; written first when it is not there."""
    return _kept(shape.folder, lambda draft: _make(shape, draft))


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made whole beside its place first: a run that is cut off leaves no half of it."""
    if not folder.exists():
        draft = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft)
        draft.rename(folder)
    return folder


def _make(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[: len(words.SPECIALS)] = 0.0
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    words.save_tokenizer(folder, size=shape.vocabulary, context=CONTEXT)


def adapters(shape: Shape, count: int) -> list[Path]:
    """`count` PEFT folders for the model, random and different."""
    folder = CACHE / "models" / f"{shape.name}-adapters"
    wanted = [folder / f"a{i + 1}" for i in range(count)]
    missing = [path for path in wanted if not path.exists()]
    if missing:
        from server.modeling import load_base
        from tests.fakes import random_adapter

        base = load_base(str(made(shape)), device="cpu", dtype="float32")
        for path in missing:
            seed = int(path.name[1:])

            def make(draft: Path, seed: int = seed) -> None:
                draft.rmdir()
                random_adapter(base, draft, seed=seed, rank=RANK, strength=STRENGTH)

            _kept(path, make)
    return wanted
