"""A Llama checkpoint, or an adapter for one, as a GGUF file for llama.cpp.

    python -m tests.bench.serving.gguf model FOLDER float32|bfloat16 FILE
    python -m tests.bench.serving.gguf adapter FOLDER MODEL_FOLDER FILE

Runs in the peer's environment: needs the `gguf` package, numpy and safetensors, and nothing of Hone's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Array = np.ndarray[Any, Any]


def target_name(module: str) -> str:
    """`blk.3.attn_q` of `model.layers.3.self_attn.q_proj`."""
    if module in OUTSIDE:
        return OUTSIDE[module]
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}"


def interleaved(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection in llama.cpp's order: a rotated pair is neighbours, not half a head apart."""
    rows, *rest = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, *rest)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def in_its_order(module: str, weight: Array, config: dict[str, Any]) -> Array:
    """Whatever speaks of the rows of queries or keys, an adapter's B too, in llama.cpp's order."""
    if module.endswith("q_proj"):
        return interleaved(weight, config["num_attention_heads"])
    if module.endswith("k_proj"):
        return interleaved(weight, config["num_key_value_heads"])
    return weight


def rope_base(config: dict[str, Any]) -> float:
    """Newer configurations keep it in a group of its own."""
    return float((config.get("rope_parameters") or config).get("rope_theta", 10_000.0))


def write_model(folder: Path, dtype: str, target: Path) -> None:
    """The whole checkpoint; matrices in `dtype`, norms in float32, as llama.cpp has them."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name(folder.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(rope_base(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    is_coarse = dtype == "bfloat16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if is_coarse else gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, folder)
    bf16 = gguf.GGMLQuantizationType.BF16
    for key, weight in load_file(folder / "model.safetensors").items():
        module = key.removesuffix(".weight")
        weight = in_its_order(module, weight.astype(np.float32), config)
        name = target_name(module) + ".weight"
        if is_coarse and weight.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(weight, bf16), raw_dtype=bf16)
        else:
            writer.add_tensor(name, weight)
    finish(writer)


def add_tokenizer(writer: Any, folder: Path) -> None:
    """The byte-level vocabulary with its merges, split as GPT-2's."""
    import gguf

    made = json.loads((folder / "tokenizer.json").read_text())
    ids: dict[str, int] = made["model"]["vocab"]
    special = {token["id"] for token in made["added_tokens"] if token["special"]}
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.__getitem__))
    writer.add_token_types([kinds[i in special] for i in range(len(ids))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in made["model"]["merges"]])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    writer.add_eos_token_id(ids[settings["eos_token"]])
    writer.add_pad_token_id(ids[settings["pad_token"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


def write_adapter(folder: Path, model: Path, target: Path) -> None:
    """A PEFT folder's factors, in float32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    lora = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(lora["lora_alpha"]))
    for key, factor in load_file(folder / "adapter_model.safetensors").items():
        module, _, which = key.removeprefix("base_model.model.").rpartition(".lora_")
        letter = which[0]
        factor = factor.astype(np.float32)
        if letter == "B":
            factor = in_its_order(module, factor, config)
        writer.add_tensor(f"{target_name(module)}.weight.lora_{letter.lower()}", factor)
    finish(writer)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(words: list[str]) -> None:
    kind, folder, second, target = words
    if kind == "model":
        write_model(Path(folder), second, Path(target))
    else:
        write_adapter(Path(folder), Path(second), Path(target))


if __name__ == "__main__":
    main(sys.argv[1:])
