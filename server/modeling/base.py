"""The base model: loading it frozen, and calling its trunk and its head apart.

Owns what depends on how transformers lays a model out. Refuses to know adapters, prompts' contents and the step loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from server.checkpoint import base_id_of, check_servable, hash_base, locate, read_config
from server.errors import SetupError
from server.prompts import Renderer, context_of, generation_stop_ids

log = logging.getLogger(__name__)
LARGE = 64 * 2**20
"""Bytes of weights from which a step on a CPU mostly waits for them."""


@dataclass(frozen=True, slots=True)
class Base:
    """The one frozen copy of the base weights, and what belongs to it."""

    model: Any
    tokenizer: Any
    renderer: Renderer
    base_id: str
    base_hash: str
    device: torch.device
    dtype: torch.dtype
    context: int


def load_base(model: str, *, device: str = "auto", dtype: str = "auto") -> Base:
    """Load a decoder-only checkpoint from a directory or the hub; safetensors only.

    Raises SetupError with the way out when there is no model, or none that can be served exactly.
    """
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    folder = locate(model)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    kind = getattr(torch, dtype) if dtype != "auto" else fitting_dtype(folder, where)
    try:
        check_servable(read_config(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, use_safetensors=True)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise SetupError(
            f"the model at {model} cannot be loaded: {error}", code="model_unreadable"
        ) from error
    base = base_of(
        loaded.to(where),
        tokenizer,
        base_id=base_id_of(model, folder),
        base_hash=hash_base(folder),
        stop_ids=generation_stop_ids(str(folder)),
    )
    log.info("base model %s ready: %s on %s, context %d", base.base_id, kind, where, base.context)
    return base


def fitting_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies in it and the weights are large enough to be waited for, else float32.

    Small weights stay in the processor's caches: there float32 is as fast, and exact.
    """
    if device.type == "cuda":
        return torch.bfloat16
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    has_instructions = any(
        getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if has_instructions and size >= LARGE else torch.float32


def base_of(
    model: Any, tokenizer: Any, *, base_id: str, base_hash: str, stop_ids: tuple[int, ...] = ()
) -> Base:
    """Freeze a model in memory and put what belongs to it beside it."""
    from transformers import GenerationConfig

    model.eval().requires_grad_(False)
    still(model)
    model.generation_config = GenerationConfig()  # a checkpoint's own sampling never applies silently
    context = context_of(model.config)
    check_head(model)
    parameter = next(model.parameters())
    renderer = Renderer(tokenizer, context=context, stop_ids=stop_ids)
    return Base(
        model, tokenizer, renderer, base_id, base_hash, parameter.device, parameter.dtype, context=context
    )


def still(model: nn.Module) -> None:
    """Dropout off for good: peft puts the model in training mode, and a rollout must not draw twice."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def causal_model(model: Any) -> Any:
    """The transformers model inside of a PeftModel (peft works in place on the very same object)."""
    return model.get_base_model() if is_peft(model) else model


def is_peft(model: Any) -> bool:
    """Whether `model` is a PeftModel; the bare model inside also carries a `peft_config` once peft has touched it."""
    return hasattr(model, "get_base_model")


def hidden_states(model: Any, token_ids: Tensor, positions: Tensor, **options: Any) -> Tensor:
    """Last hidden states (B, T, H) of `token_ids` (B, T) at explicit `positions` (B or 1, T), before the head."""
    inner = causal_model(model)
    trunk = getattr(inner, inner.base_model_prefix)
    out: Tensor = trunk(
        input_ids=token_ids, position_ids=positions, **{"use_cache": False, **options}
    ).last_hidden_state
    return out


def states_at(model: Any, token_ids: Tensor, positions: Tensor, depths: Sequence[float]) -> list[Tensor]:
    """Hidden states (B, T, H) at several depths, as shares of the layers: 0 is the embedding, 1 what the head reads.

    Depths that fall on the same layer are given once.
    """
    inner = causal_model(model)
    trunk = getattr(inner, inner.base_model_prefix)
    states = trunk(
        input_ids=token_ids, position_ids=positions, use_cache=False, output_hidden_states=True
    ).hidden_states
    return [states[layer] for layer in sorted({round(depth * (len(states) - 1)) for depth in depths})]


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Float32 logits (..., V) of hidden states (..., H), as the model itself computes them."""
    inner = causal_model(model)
    config = inner.config.get_text_config()
    logits: Tensor = inner.get_output_embeddings()(hidden).float()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


STRANGE = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What an architecture raises when it is called in a way that it does not know."""


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raises SetupError unless trunk and head, called apart, give what the whole model gives."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, 5, device=next(model.parameters()).device)[None] % vocabulary
    positions = torch.arange(4, device=ids.device)[None]
    try:
        whole = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        apart = logits_of(model, hidden_states(model, ids, positions))
    except STRANGE as error:
        raise unsupported(model, f"cannot be called with explicit positions ({error})") from error
    if whole.shape != apart.shape or not torch.allclose(whole, apart, rtol=1e-3, atol=1e-3):
        raise unsupported(model, "changes its logits in a way that is not known here")


def unsupported(model: Any, why: str) -> SetupError:
    """The refusal of an architecture that would not be served exactly."""
    return SetupError(f"{model.config.model_type} {why}", code="model_unsupported")
