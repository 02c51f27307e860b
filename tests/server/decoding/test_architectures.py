"""Any plain decoder-only architecture is served exactly as transformers runs it; others are refused at the start."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server import modeling
from server.decoding import (
    AdapterBank,
    Decoder,
    DecodeRequest,
    StockTrunk,
    check,
    fit,
    generate_offline,
    says,
)
from server.engine.base import Sampling
from server.errors import SetupError
from server.modeling import Base
from tests.fakes import byte_tokenizer, random_adapter

SHARED: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 256,
}  # fmt: skip
MODERN: dict[str, Any] = {**SHARED, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, Any] = {
    "query and key norms": lambda: transformers.Qwen3Config(**MODERN),
    "sliding window, soft caps": lambda: transformers.Gemma2Config(**MODERN, sliding_window=8),
    "one matrix for q, k and v": lambda: transformers.Phi3Config(**MODERN),
    "divided logits": lambda: transformers.GraniteConfig(**{**MODERN, "logits_scaling": 3.0}),
    "learned positions with an offset": lambda: transformers.OPTConfig(
        **SHARED, ffn_dim=64, word_embed_proj_dim=32
    ),
    "parallel layers": lambda: transformers.GPTNeoXConfig(**SHARED, intermediate_size=64),
}


def base_of(config: Any) -> Base:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    base = modeling.base_of(model, byte_tokenizer(), base_id="other", base_hash="other")
    base.renderer.stop_ids = frozenset()
    return base


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_equals_hugging_face(kind: str, tmp_path: Path) -> None:
    base = base_of(CONFIGS[kind]())
    prompts = [tuple(range(5 + i, 12)) for i in range(3)]
    check(base, StockTrunk(base), None, says(base))
    requests = [DecodeRequest(i, p, Sampling(temperature=0, max_tokens=12)) for i, p in enumerate(prompts)]
    done = generate_offline(Decoder(base, slots=2), requests)
    for prompt, completed in zip(prompts, done, strict=True):
        out = base.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        assert completed.token_ids == tuple(out[0, len(prompt) :].tolist())
    bank = AdapterBank(base)
    bank.write(1, bank.prepare(random_adapter(base, tmp_path / "a", seed=1)))
    changed = generate_offline(
        Decoder(base, bank=bank), [DecodeRequest(r.id, r.prompt_ids, r.sampling, 1) for r in requests]
    )
    bank.close()
    assert [c.token_ids for c in changed] != [c.token_ids for c in done]


def test_a_sliding_window_does_not_bound_the_context() -> None:
    """It is hidden exactly, key by key: the test above goes far beyond it and says what transformers says."""
    base = base_of(CONFIGS["sliding window, soft caps"]())
    assert base.model.config.sliding_window == 8
    assert base.context == SHARED["max_position_embeddings"]


def test_an_architecture_without_explicit_positions_is_refused() -> None:
    config = transformers.BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(SetupError, match="bloom"):
        fit(lambda: base_of(config))
