"""Keys and values of the running rows: dense slots 0..B-1 that grow on demand.

Answers the one call that a model's attention makes (`update`). Rows are right-padded: what lies behind a row's length
is finite garbage that the mask hides. Refuses to know requests, adapters and sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BUCKET = 32
"""Lengths read are multiples of this, so that neighbouring steps have the same shapes."""
FIRST_ROWS, FIRST_LENGTH = 4, 128


class SlotCache:
    """Per layer one (rows, heads, length, head size) tensor for keys and one for values."""

    def __init__(self, *, rows: int, length: int) -> None:
        self.most_rows, self.most_length = rows, length
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._rows = slice(0, 0)
        self._positions: Tensor | None = None
        self._span = 0

    def begin_prefill(self, first_row: int, rows: int) -> None:
        """The next forward writes whole prompts into rows `first_row ..`, from position 0."""
        self._rows, self._positions = slice(first_row, first_row + rows), None

    def begin_step(self, positions: Tensor) -> int:
        """The next forward adds one token per row at `positions` (B,); returns the length S that it reads."""
        rows = int(positions.shape[0])
        longest = int(positions.max()) + 1
        self._rows, self._positions = slice(0, rows), positions
        self._span = min(-(-longest // BUCKET) * BUCKET, self.most_length)
        return self._span

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store (B, heads, q, D) of one layer; returns what this forward's queries may look at."""
        if self._positions is None:
            self._make_room(layer, keys, values, length=keys.shape[2])
            self._keys[layer][self._rows, :, : keys.shape[2]] = keys
            self._values[layer][self._rows, :, : keys.shape[2]] = values
            return keys, values
        self._make_room(layer, keys, values, length=self._span)
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        rows = torch.arange(self._rows.stop, device=keys.device)
        stored_keys[rows, :, self._positions] = keys[:, :, 0]
        stored_values[rows, :, self._positions] = values[:, :, 0]
        return stored_keys[self._rows, :, : self._span], stored_values[self._rows, :, : self._span]

    def move(self, source: int, target: int, *, length: int) -> None:
        """Copy the first `length` positions of row `source` over row `target`."""
        for store in (self._keys, self._values):
            for tensor in store.values():
                tensor[target, :, :length] = tensor[source, :, :length]

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked by some models; positions are always given explicitly."""
        return self._span if self._positions is not None else 0

    def _make_room(self, layer: int, keys: Tensor, values: Tensor, *, length: int) -> None:
        for store, sample in ((self._keys, keys), (self._values, values)):
            held = store.get(layer)
            have_rows, have_length = (0, 0) if held is None else (held.shape[0], held.shape[2])
            if have_rows >= self._rows.stop and have_length >= length:
                continue
            grown = sample.new_zeros(
                _grow(have_rows or FIRST_ROWS, self._rows.stop, self.most_rows),
                sample.shape[1],
                _grow(have_length or FIRST_LENGTH, length, self.most_length),
                sample.shape[3],
            )
            if held is not None:
                grown[:have_rows, :, :have_length] = held
            store[layer] = grown


def causal_mask(length: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive (1, 1, L, L): each position sees itself and what came before. Right padding needs no more."""
    hidden = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return hidden.triu(1)[None, None]


def step_mask(positions: Tensor, span: int, *, dtype: torch.dtype) -> Tensor:
    """Additive (B, 1, 1, S): the row's one new token at `positions` (B,) sees everything up to itself."""
    seen = torch.arange(span, device=positions.device)[None] <= positions[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, None]


def _grow(size: int, needed: int, most: int) -> int:
    while size < needed:
        size *= 2
    return max(min(size, most), needed)
