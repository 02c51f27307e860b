"""Our own forward for the Llama family: few large matrix products, and adapters added where they belong.

    per layer   norm -> q,k,v in one -> rotate -> attend over the cache -> out + residual
                norm -> gate,up in one -> silu ⊙ -> down + residual

The same numbers as the architecture's own forward (checked at start); it takes over the model's weights, in the form
that this machine multiplies by fastest. Refuses to know requests and sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache, hidden_from
from server.modeling import Base, Projection, take

FAMILY = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures of this shape: normed residual layers, rotated queries and keys, gated silu."""
PARTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linear layers of one layer, those that read the same input together."""
QKV, OUT, GATE_UP, DOWN = range(len(PARTS))


def is_of_the_family(base: Base) -> bool:
    """Whether this forward knows the architecture. What it has got beyond its class is found by the check at start."""
    config = base.model.config
    return (
        config.model_type in FAMILY
        and config.hidden_act == "silu"
        and getattr(config, "sliding_window", None) is None
        and getattr(config, "logit_scale", None) is None
    )


def groups_of(model: Any) -> list[tuple[str, ...]]:
    """Full names of the linear layers that are run as one, in the order in which they run."""
    prefix = f"{model.base_model_prefix}.layers"
    count = model.config.num_hidden_layers
    return [tuple(f"{prefix}.{i}.{name}" for name in part) for i in range(count) for part in PARTS]


@dataclass(frozen=True, slots=True)
class _Layer:
    parts: tuple[Projection, ...]
    norm: Tensor
    mlp_norm: Tensor
    eps: float
    head_norms: tuple[Tensor, Tensor, float] | None
    """Of queries and keys, where the architecture has them."""


class Merged(NamedTuple):
    """A version's own linear layers: the base's with its factors in them."""

    version: int
    layers: list[tuple[Projection, ...]]


class FusedTrunk:
    """Runs a base whose linear weights it has taken: `base.model` keeps shapes, embeddings and norms."""

    def __init__(self, base: Base, bank: AdapterBank, *, packed: bool) -> None:
        self.name = "fused, packed" if packed else "fused"
        self.base, self.bank = base, bank
        model = base.model
        config, inner = model.config, getattr(model, model.base_model_prefix)
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_size = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._embed, self._rotary, self._norm = inner.embed_tokens, inner.rotary_emb, inner.norm
        head = model.get_output_embeddings()
        # The embeddings may share this weight and go on needing it as it is.
        self._head = Projection(head.weight.data, head.bias, packed=packed)
        if head.weight is not self._embed.weight:
            take(head)
        self._layers = [_take_layer(layer, packed=packed) for layer in inner.layers]
        self.merged: Merged | None = None
        """What runs in place of the base's layers and the bank's factors when all rows are of this version."""
        self._adapts = False

    def states(self, ids: Tensor, positions: Tensor, cache: SlotCache) -> Tensor:
        """Hidden states (B, L, H)."""
        rows, length = ids.shape
        merged = self.merged if self.merged and self.merged.version == self.bank.only else None
        self._adapts = self.bank.is_active and not merged
        x = self._embed(ids.reshape(-1))  # (B·L, H)
        cos, sin = self._rotation(x, positions)
        mask = self._mask(positions, cache)
        for at, layer in enumerate(self._layers):
            parts = merged.layers[at] if merged else layer.parts
            normed = functional.rms_norm(x, x.shape[1:], layer.norm, layer.eps)
            qkv = parts[QKV](normed)
            self._adapt(at, QKV, normed, qkv)
            mixed = self._attend(
                at, layer, qkv.view(rows, length, -1, self._head_size), (cos, sin), mask, cache
            )
            x = parts[OUT].add_to(x, mixed)
            self._adapt(at, OUT, mixed, x)
            normed = functional.rms_norm(x, x.shape[1:], layer.mlp_norm, layer.eps)
            both = parts[GATE_UP](normed)
            self._adapt(at, GATE_UP, normed, both)
            gate, up = both.chunk(2, dim=-1)
            gated = functional.silu(gate).mul_(up)
            x = parts[DOWN].add_to(x, gated)
            self._adapt(at, DOWN, gated, x)
        return self._norm(x).view(rows, length, -1)

    @property
    def linear_bytes(self) -> int:
        """What the linear layers take, and merged ones would once more."""
        return sum(part.held_bytes for layer in self._layers for part in layer.parts)

    @torch.no_grad()
    def merge(self, version: int, factors: Sequence[tuple[Tensor, ...]]) -> Merged:
        """`version`'s own layers, of its factors as the bank gives them. Touches nothing; any thread may ask."""
        layers = []
        for at, layer in enumerate(self._layers):
            its = factors[at * len(PARTS) : (at + 1) * len(PARTS)]
            layers.append(
                tuple(
                    part.plus(torch.cat([b.t() @ member for member, b in zip(a, bs, strict=True)]))
                    for part, (a, *bs) in zip(layer.parts, its, strict=True)
                )
            )
        return Merged(version, layers)

    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits (N, V)."""
        return self._head(states).float()

    def _attend(
        self,
        at: int,
        layer: _Layer,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: SlotCache,
    ) -> Tensor:
        """What attention brings together (B·L, heads · D), of queries, keys and values in one (B, L, heads, D)."""
        rows, length, _, size = heads.shape
        turned = heads[:, :, : self._heads + self._kv_heads]
        if layer.head_norms:
            turned = self._norm_heads(turned, *layer.head_norms)
        cos, sin = rotation
        turned = torch.addcmul(turned * cos, turned.roll(size // 2, dims=-1), sin)
        queries, keys = turned[:, :, : self._heads], turned[:, :, self._heads :].transpose(1, 2)
        keys, values = cache.update(keys, heads[:, :, self._heads + self._kv_heads :].transpose(1, 2), at)
        share = self._heads // self._kv_heads
        if mask is not None:
            # The queries that share a key stand in a column, head after head: one kernel, and no copy of the keys.
            grouped = queries.view(rows, length, self._kv_heads, share, size).permute(0, 2, 3, 1, 4)
            column = grouped.reshape(rows, self._kv_heads, share * length, size)
            mixed = functional.scaled_dot_product_attention(column, keys, values, attn_mask=mask)
            mixed = mixed.view(rows, self._kv_heads, share, length, size).permute(0, 3, 1, 2, 4)
            return mixed.reshape(rows * length, -1)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.repeat_interleave(share, dim=1),
            values.repeat_interleave(share, dim=1),
            is_causal=True,
        )
        return mixed.transpose(1, 2).reshape(rows * length, -1)

    def _norm_heads(self, turned: Tensor, queries: Tensor, keys: Tensor, eps: float) -> Tensor:
        size = (self._head_size,)
        return torch.cat(
            (
                functional.rms_norm(turned[:, :, : self._heads], size, queries, eps),
                functional.rms_norm(turned[:, :, self._heads :], size, keys, eps),
            ),
            dim=2,
        )

    def _rotation(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin (B, L, 1, D), so that x·cos + roll(x)·sin turns each half against the other."""
        cos, sin = self._rotary(x, positions.clamp(max=self.base.context - 1))
        half = self._head_size // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos[:, :, None], signed[:, :, None]

    def _mask(self, positions: Tensor, cache: SlotCache) -> Tensor | None:
        if cache.fresh and positions.shape[1] > 1:
            return None  # causal
        mask = hidden_from(positions, cache.span, dtype=self.base.dtype)
        share = self._heads // self._kv_heads
        return mask.expand(-1, -1, share, -1) if positions.shape[1] == 1 else mask.repeat(1, 1, share, 1)

    def _adapt(self, at: int, part: int, x: Tensor, out: Tensor) -> None:
        if self._adapts:
            self.bank.add(at * len(PARTS) + part, x, out)


def _take_layer(layer: Any, *, packed: bool) -> _Layer:
    attention = layer.self_attn
    norms = None
    if hasattr(attention, "q_norm"):
        norms = (
            attention.q_norm.weight.data,
            attention.k_norm.weight.data,
            attention.q_norm.variance_epsilon,
        )
    return _Layer(
        parts=tuple(_take_part(layer, part, packed=packed) for part in PARTS),
        norm=layer.input_layernorm.weight.data,
        mlp_norm=layer.post_attention_layernorm.weight.data,
        eps=layer.input_layernorm.variance_epsilon,
        head_norms=norms,
    )


def _take_part(layer: Any, names: tuple[str, ...], *, packed: bool) -> Projection:
    taken = [take(layer.get_submodule(name)) for name in names]
    biases = [bias for _, bias in taken if bias is not None]
    assert len(biases) in (0, len(taken)), "layers that run as one have all a bias or none"
    bias = torch.cat(biases) if biases else None
    return Projection(torch.cat([weight for weight, _ in taken]), bias, packed=packed)
