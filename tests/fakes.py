"""Fakes that tests share: a byte-level tokenizer, tiny random models in memory, random adapters on disk."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from server import modeling
from server.modeling import Base

SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FAMILIES = ("llama", "gpt2", "gpt_neo")


def byte_tokenizer(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One id per byte and four special ones; pad is eos, as in many real checkpoints."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|end|>",
        extra_special_tokens=list(SPECIALS[1:]),
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(family: str = "llama", *, seed: int = 0, context: int = 128, vocabulary: int = 260) -> Any:
    """A random model of two layers, sharp enough that greedy choices are never near-ties."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llama":
            model: Any = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context,
                    pad_token_id=256, bos_token_id=None, eos_token_id=256,
                )
            )  # fmt: skip
        elif family == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=context,
                    pad_token_id=256, bos_token_id=256, eos_token_id=256,
                )
            )  # fmt: skip
        else:
            model = GPTNeoForCausalLM(
                GPTNeoConfig(
                    vocab_size=vocabulary, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64,
                    attention_types=[[["global", "local"], 1]], max_position_embeddings=context,
                    window_size=context, pad_token_id=256, bos_token_id=256, eos_token_id=256,
                )
            )  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8.0)
    return model


def tiny_base(family: str = "llama", *, seed: int = 0, context: int = 128) -> Base:
    """A tiny random base with the byte tokenizer."""
    return modeling.base_of(
        tiny_model(family, seed=seed, context=context),
        byte_tokenizer(),
        base_id=f"tiny-{family}",
        base_hash=f"tiny-{family}-{seed}",
    )


def tiny_llama(*, seed: int = 0, context: int = 128) -> Base:
    """The tiny base that most tests use."""
    return tiny_base("llama", seed=seed, context=context)


def save_model(folder: Path, family: str = "llama", *, seed: int = 0, context: int = 128) -> Path:
    """A tiny checkpoint on disk, tokenizer included."""
    tiny_model(family, seed=seed, context=context).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def random_adapter(base: Base, folder: Path, *, seed: int, rank: int = 4, strength: float = 0.3) -> Path:
    """A PEFT folder with random factors, so that it changes every layer of `base`."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in modeling.linears(base.model).items():
        size_in, size_out = modeling.features(layer)
        for factor, shape in (("A", (rank, size_in)), ("B", (size_out, rank))):
            key = f"{modeling.KEY_PREFIX}{name}.lora_{factor}.weight"
            tensors[key] = torch.randn(shape, generator=generator) * strength
    folder.mkdir(parents=True)
    save_file(tensors, folder / modeling.WEIGHTS, metadata={"format": "pt"})
    write_adapter_config(base, folder, rank=rank)
    return folder


def write_adapter_config(base: Base, folder: Path, *, rank: int) -> None:
    """The configuration that peft itself would write beside such factors."""
    from peft import LoraConfig

    LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=modeling.target_modules(base.model),
        lora_dropout=0.0,
        fan_in_fan_out="gpt2" in base.base_id,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.base_id,
        inference_mode=True,
    ).save_pretrained(folder)
