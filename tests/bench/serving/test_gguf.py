"""The GGUF file read back by the format's own reader: names, numbers, and rows in llama.cpp's order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.bench.serving import gguf as ours

theirs = pytest.importorskip("gguf", reason="the format's own package is in the llama.cpp peer's environment")
from safetensors.numpy import save_file  # noqa: E402

CONFIG = {
    "vocab_size": 10, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens": (10, 32), "model.norm": (32,), LAYER + "self_attn.q_proj": (32, 32),
    LAYER + "self_attn.k_proj": (16, 32), LAYER + "self_attn.v_proj": (16, 32), LAYER + "self_attn.o_proj": (32, 32),
    LAYER + "mlp.gate_proj": (64, 32), LAYER + "mlp.up_proj": (64, 32), LAYER + "mlp.down_proj": (32, 64),
    LAYER + "input_layernorm": (32,), LAYER + "post_attention_layernorm": (32,),
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "model", np.random.default_rng(0)
    folder.mkdir()
    weights = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(weights, folder / "model.safetensors")
    tokens = ["<|end|>", *"abcdefg", "ab", "cd"]
    tokenizer = {
        "model": {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": [["a", "b"], "c d"]},
        "added_tokens": [{"id": 0, "content": "<|end|>", "special": True}],
    }
    settings = {"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": "{{ x }}"}
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tensors(path: Path) -> dict[str, np.ndarray]:
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    return {
        t.name: dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        for t in reader.tensors
    }


def test_the_reader_finds_every_tensor_and_number(checkpoint: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    target = tmp_path / "m.gguf"
    ours.write_model(checkpoint, "float32", target)
    reader = GGUFReader(target)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert (said["llama.block_count"], said["llama.attention.head_count_kv"]) == (1, 2)
    assert said["llama.rope.freq_base"] == 10000.0
    assert said["tokenizer.ggml.tokens"] == ["<|end|>", *"abcdefg", "ab", "cd"]
    assert said["tokenizer.ggml.merges"] == ["a b", "c d"]
    assert said["tokenizer.ggml.token_type"] == [3, *[1] * 9]
    assert set(tensors(target)) == {ours.target_name(name) + ".weight" for name in SHAPES}


def test_plain_tensors_come_back_as_they_were(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(checkpoint / "model.safetensors")
    for dtype, most in (("float32", 0.0), ("bfloat16", 0.02)):
        ours.write_model(checkpoint, dtype, tmp_path / dtype)
        back = tensors(tmp_path / dtype)
        for name in ("self_attn.v_proj", "mlp.down_proj", "input_layernorm"):
            key = LAYER + name
            off = back[ours.target_name(key) + ".weight"] - weights[key + ".weight"]
            assert np.abs(off).max() <= most


def test_queries_give_the_same_attention_in_the_other_order(checkpoint: Path, tmp_path: Path) -> None:
    """Rotating neighbours of the new rows is rotating halves of the old ones: dot products of heads are equal."""
    rng = np.random.default_rng(1)
    old = rng.normal(size=(32, 5)).astype(np.float32)
    new = ours.interleaved(old, heads=4)
    assert sorted(map(tuple, new.tolist())) == sorted(map(tuple, old.tolist()))
    angle = rng.normal(size=4)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    for head in range(4):
        rows, other = old[8 * head : 8 * head + 8], new[8 * head : 8 * head + 8]
        a, b = rows[:4], rows[4:]
        by_halves = np.concatenate([a * cos - b * sin, b * cos + a * sin])
        a, b = other[0::2], other[1::2]
        by_neighbours = np.empty_like(other)
        by_neighbours[0::2], by_neighbours[1::2] = a * cos - b * sin, b * cos + a * sin
        assert np.allclose(by_neighbours.T @ by_neighbours, by_halves.T @ by_halves, atol=1e-5)
        assert np.allclose(by_neighbours[0::2], by_halves[:4], atol=1e-6)


def test_an_adapter_names_the_layers_that_it_changes(checkpoint: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder, rng = tmp_path / "adapter", np.random.default_rng(2)
    folder.mkdir()
    key = f"base_model.model.{LAYER}self_attn.q_proj.lora_"
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 32), (32, 2)))
    save_file({key + "A.weight": a, key + "B.weight": b}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4}))
    target = tmp_path / "a.gguf"
    ours.write_adapter(folder, checkpoint, target)
    said = {name: field.contents() for name, field in GGUFReader(target).fields.items()}
    assert (said["general.type"], said["adapter.type"], said["adapter.lora.alpha"]) == (
        "adapter",
        "lora",
        4.0,
    )
    back = tensors(target)
    assert np.array_equal(back["blk.0.attn_q.weight.lora_a"], a)
    # Permuting the rows of B permutes the rows of the change: the same layer as the permuted weight.
    change = ours.interleaved(b @ a, heads=4)
    assert np.allclose(back["blk.0.attn_q.weight.lora_b"] @ a, change, atol=1e-6)
