"""Linear layers in the form that this machine multiplies by fastest.

On a CPU oneDNN reorders a weight once for its own kernels (1.5 to 2.5 times faster for few rows, exact); the original
is freed. Where that cannot be, the weight stays as it is. Knows nothing of adapters and of what the layers are for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

ROWS = 16
"""The batch that the reordered form is laid out for; any other works too."""


class Projection(nn.Linear):
    """x Wᵀ + b of a frozen weight (out, in). `weight` keeps its shape and type, and holds no numbers any more."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, packed: bool) -> None:
        size_out, size_in = weight.shape
        super().__init__(size_in, size_out, bias=False, device="meta", dtype=weight.dtype)
        self.requires_grad_(False)
        weight = weight.detach().contiguous()
        self._numbers = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if packed else weight
        self._bias = None if bias is None else bias.detach()
        self._packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        if self._packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._numbers, self._bias, "none", [], "")
            return out
        return functional.linear(x, self._numbers, self._bias)

    def plus(self, delta: Tensor) -> Projection:
        """Another one, of W + `delta` (out, in); this one stays as it is."""
        weight = self._numbers.to_dense() if self._packed else self._numbers
        return Projection(weight + delta, self._bias, packed=self._packed)

    @property
    def held_bytes(self) -> int:
        return self.in_features * self.out_features * self.weight.element_size()

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x Wᵀ + b in one go."""
        if self._packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._numbers, self._bias, "add"
            )
            return out
        return residual + functional.linear(x, self._numbers, self._bias)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by a reordered weight of this type here, and says what torch says."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        weight = torch.linspace(-1, 1, 24 * 40).view(24, 40).to(dtype)
        x = torch.linspace(-1, 1, 3 * 40).view(3, 40).to(dtype)
        said = Projection(weight, packed=True)(x).float()
        added = Projection(weight, packed=True).add_to(torch.ones(3, 24, dtype=dtype), x).float()
    except (
        AttributeError,
        RuntimeError,
    ):  # no such operator in this build, or no such kernel on this machine
        return False
    expected = functional.linear(x.float(), weight.float())
    rtol, atol = (0.02, 0.05) if dtype == torch.bfloat16 else (1e-5, 1e-5)
    return all(
        torch.allclose(found, value, rtol=rtol, atol=atol)
        for found, value in ((said, expected), (added, expected + 1))
    )


def take(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and bias of a linear layer, which keeps only their shapes: the caller owns them now."""
    weight: Tensor = layer.weight.data  # type: ignore[assignment]
    layer.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
    bias = getattr(layer, "bias", None)
    return (weight.t() if isinstance(layer, Conv1D) else weight), None if bias is None else bias.data


def pack_linears(model: Any) -> None:
    """Every linear layer of `model` in its fast form, the head too; embeddings that share its weight keep it."""
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear | Conv1D) or isinstance(layer, Projection):
                continue
            weight, bias = (layer.weight.data, layer.bias) if layer is head else take(layer)
            setattr(parent, name, Projection(weight, bias, packed=True))
