"""Whatever way a base is run here, it says what transformers' own `generate` says: alone, in a crowd, with adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server import modeling
from server.decoding import (
    AdapterBank,
    Completed,
    Decoder,
    DecodeRequest,
    Fitted,
    StockTrunk,
    check,
    fit,
    generate_offline,
    says,
    score,
)
from server.decoding.fused import FusedTrunk, groups_of
from server.engine.base import Sampling
from server.errors import SetupError
from server.modeling import Base, can_pack, pack_linears, sequence_logprobs
from tests.fakes import byte_tokenizer, random_adapter

SHARED: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 160, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 256,
}  # fmt: skip
MODERN: dict[str, Any] = {**SHARED, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
SCALED = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
FUSED: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**MODERN),
    "llama, tied, biases, scaled rotation": lambda: transformers.LlamaConfig(
        **MODERN, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=SCALED
    ),
    "one key for each query": lambda: transformers.LlamaConfig(**{**MODERN, "num_key_value_heads": 4}),
    "qwen2": lambda: transformers.Qwen2Config(**MODERN),
    "qwen3": lambda: transformers.Qwen3Config(**MODERN),
    "mistral": lambda: transformers.MistralConfig(**MODERN, sliding_window=None),
}
STOCK: dict[str, Callable[[], Any]] = {
    "sliding window throughout": lambda: transformers.MistralConfig(**MODERN, sliding_window=16),
    "sliding window in some layers": lambda: transformers.Qwen2Config(
        **MODERN, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "sliding window, soft caps": lambda: transformers.Gemma2Config(**MODERN, sliding_window=16),
    "gemma": lambda: transformers.GemmaConfig(**MODERN),
    "gemma 3": lambda: transformers.Gemma3TextConfig(**MODERN, sliding_window=16),
    "phi": lambda: transformers.PhiConfig(**SHARED, intermediate_size=64),
    "one matrix for q, k and v": lambda: transformers.Phi3Config(**MODERN),
    "divided logits": lambda: transformers.GraniteConfig(**{**MODERN, "logits_scaling": 3.0}),
    "learned positions": lambda: transformers.GPT2Config(
        vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=160, eos_token_id=256
    ),
    "learned positions with an offset": lambda: transformers.OPTConfig(
        **SHARED, ffn_dim=64, word_embed_proj_dim=32
    ),
    "local attention": lambda: transformers.GPTNeoConfig(
        vocab_size=260, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=160, window_size=160,
    ),
    "parallel layers": lambda: transformers.GPTNeoXConfig(**SHARED, intermediate_size=64),
}  # fmt: skip
CONFIGS = {**FUSED, **STOCK}
GREEDY = Sampling(temperature=0, max_tokens=20)
BEST = {"fused, packed", "fused"}
NEAR_TIE = 1e-4


def base_of(kind: str, *, dtype: torch.dtype = torch.float32) -> Base:
    """A random model, sharp enough that greedy choices are seldom near-ties, which never ends a reply by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(6.0)
            elif name.endswith("bias"):
                parameter.data.normal_(std=0.3)
    base = modeling.base_of(model.to(dtype), byte_tokenizer(), base_id=kind, base_hash="other")
    base.renderer.stop_ids = frozenset()
    return base


def ways(kind: str) -> dict[str, Callable[[], Fitted]]:
    """Every way in which a base of this kind can be run here."""

    def stock() -> Fitted:
        base = base_of(kind)
        return Fitted(base, StockTrunk(base), AdapterBank(base), says(base))

    def stock_packed() -> Fitted:
        base = base_of(kind)
        expected = says(base)
        pack_linears(base.model)
        return Fitted(base, StockTrunk(base, packed=True), AdapterBank(base), expected)

    def fused(*, packed: bool) -> Fitted:
        base = base_of(kind)
        expected = says(base)
        bank = AdapterBank(base, groups_of(base.model))
        return Fitted(base, FusedTrunk(base, bank, packed=packed), bank, expected)

    found = {"stock": stock}
    packs = can_pack(torch.device("cpu"), torch.float32)
    if packs:
        found["stock, packed"] = stock_packed
    if kind in FUSED:
        found["fused"] = lambda: fused(packed=False)
        if packs:
            found["fused, packed"] = lambda: fused(packed=True)
    return found


CASES = [(kind, way) for kind in CONFIGS for way in ways(kind)]


def prompts(count: int, *, seed: int = 5, longest: int = 60) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = [3 + (11 * i) % longest for i in range(count)]
    return [tuple(torch.randint(2, 250, (length,), generator=generator).tolist()) for length in lengths]


def greedy(model: Any, prompt: tuple[int, ...], most: int) -> tuple[tuple[int, ...], list[float]]:
    """What transformers says, and how far ahead of the next each choice was."""
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=most,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [logits[0].float().topk(2).values for logits in out.logits]
    return tuple(out.sequences[0, len(prompt) :].tolist()), [float(two[0] - two[1]) for two in best]


def assert_same(said: Completed, expected: tuple[tuple[int, ...], list[float]], *, what: object) -> None:
    """Token for token, up to a place where the two likeliest were as good as equal."""
    for at, (mine, theirs, ahead) in enumerate(zip(said.token_ids, *expected, strict=True)):
        if mine != theirs:
            assert ahead < NEAR_TIE, (what, at, ahead)
            return


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_every_way_says_what_transformers_says(kind: str, way: str, tmp_path: Path) -> None:
    """With none, one and four adapters of different ranks, each reply alone and all in a crowd."""
    plain = base_of(kind)
    folders = {
        v: random_adapter(plain, tmp_path / str(v), seed=v, rank=2 * v, strength=0.2) for v in (1, 2, 3, 4)
    }
    asked = prompts(6)
    versions = (0, 1, 2, 3, 4, 1)
    expected = []
    for prompt, version in zip(asked, versions, strict=True):
        model = base_of(kind).model
        if version:
            model = modeling.load_adapter(model, "v", folders[version])
        expected.append(greedy(model, prompt, GREEDY.max_tokens))
    fitted = ways(kind)[way]()
    check(fitted.base, fitted.trunk, fitted.bank, fitted.expected)
    for version, folder in folders.items():
        fitted.bank.write(version, fitted.bank.prepare(folder))
    requests = [
        DecodeRequest(i, prompt, GREEDY, version)
        for i, (prompt, version) in enumerate(zip(asked, versions, strict=True))
    ]

    def decoder() -> Decoder:
        return Decoder(fitted.base, slots=4, bank=fitted.bank, trunk=fitted.trunk)

    for request, theirs in zip(requests, expected, strict=True):
        (alone,) = generate_offline(decoder(), [request])
        assert_same(alone, theirs, what=("alone", request.version))
        item = (request.prompt_ids, alone.token_ids)
        (scored,) = score(fitted.trunk, fitted.bank, request.version, [item])
        assert scored == pytest.approx(alone.logprobs, abs=1e-3)
    for crowd, theirs in zip(generate_offline(decoder(), requests), expected, strict=True):
        assert_same(crowd, theirs, what="crowd")


@pytest.mark.parametrize(
    "kind", ["llama", "sliding window, soft caps", "learned positions", "local attention"]
)
def test_prompts_read_in_pieces_and_from_earlier_turns_say_the_same(
    kind: str,
) -> None:
    """Long prompts in pieces beside short ones, pairs that share a prompt, and next turns that go on from kept keys."""
    fitted = fit(lambda: base_of(kind))
    model = base_of(kind).model
    asked = [*prompts(7, longest=100), prompts(7, longest=100)[5]]
    decoder = Decoder(
        fitted.base, slots=5, bank=fitted.bank, trunk=fitted.trunk, prefix_bytes=1 << 20, prefill_tokens=24
    )
    first = generate_offline(decoder, [DecodeRequest(i, p, GREEDY) for i, p in enumerate(asked)])
    for prompt, said in zip(asked, first, strict=True):
        assert_same(said, greedy(model, prompt, GREEDY.max_tokens), what="first turn")
    assert len(decoder.prefixes) > 0
    went_on = [(*p, *said.token_ids, 7, 8, 9)[:150] for p, said in zip(asked, first, strict=True)]
    found = [decoder.prefixes.find(0, ids) for ids in went_on]
    assert any(prefix and prefix.length >= len(p) for prefix, p in zip(found, asked, strict=True))
    short = Sampling(temperature=0, max_tokens=5)
    again = generate_offline(decoder, [DecodeRequest(i, p, short) for i, p in enumerate(went_on)])
    for prompt, said in zip(went_on, again, strict=True):
        assert_same(said, greedy(model, prompt, 5), what="next turn")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "learned positions"])
def test_in_bfloat16_what_was_said_scores_the_same_again(kind: str, tmp_path: Path) -> None:
    """By the base and by four adapters in one crowd, as plain PEFT and as the engine itself score it."""
    fitted = fit(lambda: base_of(kind, dtype=torch.bfloat16))
    folders = {
        v: random_adapter(fitted.base, tmp_path / str(v), seed=v, rank=2 * v, strength=0.2)
        for v in (1, 2, 3, 4)
    }
    for version, folder in folders.items():
        fitted.bank.write(version, fitted.bank.prepare(folder))
    sampling = Sampling(temperature=1, max_tokens=20, seed=2)
    requests = [DecodeRequest(i, p, sampling, i % 5) for i, p in enumerate(prompts(10))]
    done = generate_offline(Decoder(fitted.base, slots=10, bank=fitted.bank, trunk=fitted.trunk), requests)
    for version in range(5):
        model = base_of(kind, dtype=torch.bfloat16).model
        if version:
            model = modeling.load_adapter(model, "v", folders[version])
        its = [(r, c) for r, c in zip(requests, done, strict=True) if r.version == version]
        pairs = [(r.prompt_ids, c.token_ids) for r, c in its]
        mine = torch.tensor([p for _, c in its for p in c.logprobs])
        again = torch.tensor([p for row in score(fitted.trunk, fitted.bank, version, pairs) for p in row])
        for found in (torch.cat(sequence_logprobs(model, pairs)), again):
            # The weights are six times sharper than real ones.
            assert float((found - mine).abs().mean()) < 2e-2 * 6


def test_the_fastest_way_is_taken_and_named() -> None:
    assert fit(lambda: base_of("llama")).trunk.name in BEST
    assert fit(lambda: base_of("gemma")).trunk.name.startswith("stock")
    assert fit(lambda: base_of("llama"), fastest=False).trunk.name == "stock"


def test_a_way_that_says_something_else_is_left_for_a_slower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedTrunk, "_rotation", lambda self, x, at: StockTrunk)  # breaks
    fitted = fit(lambda: base_of("llama"))
    assert fitted.trunk.name.startswith("stock")
    monkeypatch.setattr(StockTrunk, "logits", lambda self, states: states * 2)  # lies
    with pytest.raises(SetupError, match="says something else"):
        fit(lambda: base_of("gemma"))


def test_weights_that_were_taken_are_freed() -> None:
    fitted = fit(lambda: base_of("llama"))
    held = [p for name, p in fitted.base.model.named_parameters() if "proj" in name]
    assert held
    assert all(parameter.device.type == "meta" for parameter in held)
