"""Adapters beside the base: their folders, whether they fit, and switching between them while training.

An adapter is a standard PEFT folder that any PEFT reader loads as it is. peft does the training; what it does
differently from one call to the next stays in this file. Refuses to know the step loop and the record.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from server.errors import AdapterRejected
from server.modeling.base import Base, causal_model, is_peft

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
KEY_PREFIX = "base_model.model."
UNSUPPORTED = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Parts of a LoRA configuration that the engine does not serve, with the value that means "not used"."""


class AdapterWeights(NamedTuple):
    """An adapter as read from disk. `factors[module] = (A: (rank, in), B: (out, rank))`, both float32."""

    rank: int
    alpha: float
    """As plain LoRA counts it, whatever the folder's own way: the product of the factors is scaled by alpha / rank."""
    scaling: float
    factors: dict[str, tuple[Tensor, Tensor]]


def linears(model: Any) -> dict[str, nn.Module]:
    """Every linear layer but the head, by its full name in the bare model."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def target_modules(model: Any) -> list[str]:
    """Last names of the layers that adapters reach: all linear layers except the head."""
    return sorted({name.rpartition(".")[2] for name in linears(model)})


def features(layer: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer; GPT-2's Conv1D keeps its weight the other way round."""
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if isinstance(layer, Conv1D) else (int(columns), int(rows))


def new_adapter(model: Any, name: str, *, rank: int, alpha: float, seed: int) -> Any:
    """Add a LoRA adapter that changes nothing yet; returns the PeftModel, everything frozen, `name` active.

    `model` is a bare model or the PeftModel that an earlier call returned.
    """
    from peft import LoraConfig, get_peft_model

    if is_peft(model):
        first = next(iter(model.peft_config.values()))
        targets, transposed = sorted(first.target_modules), first.fan_in_fan_out
    else:
        targets = target_modules(model)
        transposed = any(isinstance(layer, Conv1D) for layer in linears(model).values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_peft(model):
            model.add_adapter(name, config)
        else:
            with warnings.catch_warnings():  # peft asks transformers in a way that is going out of use
                warnings.filterwarnings(
                    "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
                )
                model = get_peft_model(model, config, adapter_name=name)
    use_adapter(model, name, trainable=False)
    return model


def use_adapter(peft_model: Any, name: str | None, *, trainable: bool) -> list[nn.Parameter]:
    """The only place where adapters are switched: run `name`, or the bare base for None.

    Returns the parameters that are now trainable: exactly those of `name` when `trainable`, else none. peft flips
    `requires_grad` on its own in several of these calls, so the set is written and asserted here every time.
    A loss must be differentiated before the next switch: autograd skips leaves that have been frozen meanwhile.
    """
    tuner = peft_model.base_model
    if name is None:
        assert not trainable, "the bare base is never trained"
        tuner.disable_adapter_layers()
    else:
        assert name in peft_model.peft_config, f"no adapter named {name}"
        tuner.enable_adapter_layers()
        peft_model.set_adapter(name)
    peft_model.eval()
    marks = (f".lora_A.{name}.", f".lora_B.{name}.")
    chosen: list[nn.Parameter] = []
    for key, parameter in peft_model.named_parameters():
        mine = trainable and any(mark in key for mark in marks)
        parameter.requires_grad_(mine)
        if mine:
            chosen.append(parameter)
    assert bool(chosen) == trainable, f"adapter {name} has no parameters of its own"
    return chosen


def save_adapter(peft_model: Any, name: str, folder: Path, base_id: str) -> None:
    """Write `name` as a standard PEFT folder, at its top level whatever the adapter is called."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(peft_model, adapter_name=name)
    tensors = {
        key: value.detach().to("cpu", torch.float32).contiguous() for key, value in sorted(state.items())
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = peft_model.peft_config[name].to_dict()
    config |= {
        "base_model_name_or_path": base_id,
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),  # a set: its order differs between processes
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")


def load_adapter(model: Any, name: str, folder: Path) -> Any:
    """Add the adapter in `folder` for training or rollouts; returns the PeftModel, frozen, `name` active."""
    weights = read_adapter(folder)
    check_shapes(causal_model(model), weights)
    peft_model = new_adapter(model, name, rank=weights.rank, alpha=weights.alpha, seed=0)
    parameters = dict(causal_model(peft_model).named_parameters())
    with torch.no_grad():
        for module, (a, b) in weights.factors.items():
            parameters[f"{module}.lora_A.{name}.weight"].copy_(a)
            parameters[f"{module}.lora_B.{name}.weight"].copy_(b)
    return peft_model


def read_adapter(folder: Path) -> AdapterWeights:
    """Read a PEFT folder. Raises AdapterRejected for what is no plain LoRA, or is broken."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise AdapterRejected(f"the adapter in {folder.name} cannot be read: {error}") from error
    strange = [key for key, unused in UNSUPPORTED.items() if config.get(key) not in (unused, None)]
    if config.get("peft_type") != "LORA" or strange or rank < 1:
        raise AdapterRejected(
            f"the adapter in {folder.name} is no plain LoRA ({', '.join(strange) or 'type'})"
        )
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for key in tensors:
        module = key.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight")
        if key != f"{KEY_PREFIX}{module}.lora_A.weight":
            continue
        partner = tensors.get(f"{KEY_PREFIX}{module}.lora_B.weight")
        if partner is None:
            raise AdapterRejected(f"{module} has an A and no B")
        factors[module] = (tensors[key].float(), partner.float())
    if not factors or len(tensors) != 2 * len(factors):
        raise AdapterRejected(f"the adapter in {folder.name} holds tensors that belong to no LoRA layer")
    if config.get("use_rslora"):  # scales by alpha / sqrt(rank)
        alpha *= rank**0.5
    return AdapterWeights(rank=rank, alpha=alpha, scaling=alpha / rank, factors=factors)


def check_shapes(model: Any, weights: AdapterWeights) -> None:
    """Raises AdapterRejected unless every factor is finite and fits a linear layer of the base."""
    layers = {name.removesuffix(".base_layer"): layer for name, layer in linears(model).items()}
    for module, (a, b) in weights.factors.items():
        layer = layers.get(module)
        if layer is None:
            raise AdapterRejected(f"the base has no layer {module}")
        size_in, size_out = features(layer)
        if a.shape != (weights.rank, size_in) or b.shape != (size_out, weights.rank):
            raise AdapterRejected(
                f"{module}: {tuple(a.shape)}, {tuple(b.shape)} do not fit {size_in} to {size_out}"
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterRejected(f"{module} holds numbers that are not finite")


def check_manifest(base: Base, folder: Path) -> None:
    """Raises AdapterRejected when the folder says that it was trained on another base or under another template."""
    path = folder / "manifest.json"
    if not path.is_file():
        return
    try:
        manifest = json.loads(path.read_text())
        trained_on, template = manifest["base"]["hash"], manifest["template_hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterRejected(f"the manifest in {folder.name} cannot be read: {error}") from error
    if trained_on != base.base_hash:
        raise AdapterRejected(f"{folder.name} was trained on another base model", code="base_mismatch")
    if template != base.renderer.template_hash:
        raise AdapterRejected(
            f"{folder.name} was trained under another chat template", code="template_mismatch"
        )
