"""Keys and values of rows of tokens: dense slots 0..B-1 that grow on demand.

Answers the one call that a model's attention makes (`update`). What lies behind a row's length is finite garbage that
a mask hides. Refuses to know requests, adapters and sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from server.decoding.room import zeros

BUCKET = 32
"""Lengths read and held are multiples of this, so that neighbouring steps have the same shapes."""

Kept = dict[int, tuple[Tensor, Tensor]]
"""One row's keys and values, each (heads, length, head size), by layer."""


class SlotCache:
    """Per layer one (rows, heads, length, head size) tensor for keys and one for values, never longer than `most`."""

    def __init__(self, *, most: int, rows: int = 0, length: int = 0) -> None:
        """Room for `rows` times `length` positions to begin with; `most` is the model's context."""
        self.most = most
        self._room = rows, self._bucket(length)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._rows = slice(0, 0)
        self._fresh = True
        self._span = 0
        self._positions = torch.zeros(0, 0, dtype=torch.long)
        self._numbers = torch.zeros(0, dtype=torch.long)
        """Of the rows of the present forward, from 0."""

    @property
    def room(self) -> tuple[int, int]:
        """Rows, and positions of each, that there is room for."""
        return self._room

    @property
    def held_bytes(self) -> int:
        """What all keys and values would take if every position were in use."""
        return sum(
            tensor.numel() * tensor.element_size()
            for store in (self._keys, self._values)
            for tensor in store.values()
        )

    def make_room(self, *, rows: int, length: int, used: tuple[int, int]) -> None:
        """At least so much room; where there is less, just so much: what was larger for others becomes smaller.

        What the first `used` (rows, positions of each) hold is copied.
        """
        length = self._bucket(length)
        have_rows, have_length = self._room
        if have_rows >= rows and have_length >= length:
            return
        self._room = rows, length
        for store in (self._keys, self._values):
            for layer, held in store.items():
                store[layer] = _resized(held, rows, length, used)

    def begin(self, first_row: int, starts: Sequence[int], length: int, device: torch.device) -> Tensor:
        """The next forward writes `length` tokens into each of the rows `first_row ..`, from their `starts` on.

        Returns their positions (B, length), of which none is behind `most`. What a row gets beyond its own end is
        hidden until it is overwritten.
        """
        assert max(starts) + length <= self.most, "positions end where the context does"
        self._rows = slice(first_row, first_row + len(starts))
        self._fresh = not any(starts)
        self._span = length if self._fresh else self._bucket(max(starts) + length)
        rows, longest = self._room
        if self._rows.stop > rows or self._span > longest:
            self.make_room(
                rows=max(rows, self._rows.stop), length=max(longest, self._span), used=(rows, longest)
            )
        self._numbers = torch.arange(len(starts), device=device)
        offsets = torch.arange(length, device=device)
        self._positions = torch.tensor(starts, device=device)[:, None] + offsets
        return self._positions

    @property
    def span(self) -> int:
        """How many positions the forward that was begun reads."""
        return self._span

    @property
    def fresh(self) -> bool:
        """Whether every row of it starts at position 0, so that it reads nothing but what it writes."""
        return self._fresh

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store (B, heads, length, D) of one layer; returns what this forward's queries may look at."""
        return self._store(self._keys, keys, layer), self._store(self._values, values, layer)

    def move(self, source: int, target: int, *, length: int) -> None:
        """Copy the first `length` positions of row `source` over row `target`."""
        for store in (self._keys, self._values):
            for tensor in store.values():
                tensor[target, :, :length] = tensor[source, :, :length]

    def clear(self, row: int) -> None:
        """Zeros in all of a row: masked or not, what is not finite spreads."""
        for store in (self._keys, self._values):
            for tensor in store.values():
                tensor[row] = 0

    def read(self, row: int, *, length: int) -> Kept:
        """The first `length` positions of a row, as views."""
        return {
            layer: (keys[row, :, :length], self._values[layer][row, :, :length])
            for layer, keys in self._keys.items()
        }

    def write(self, row: int, kept: Kept, *, length: int) -> None:
        """Put the first `length` positions of another cache's row into `row`, for which there is room."""
        for layer, pair in kept.items():
            for store, tensor in zip((self._keys, self._values), pair, strict=True):
                self._layer(store, layer, tensor[None])[row, :, :length] = tensor[:, :length]

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked by some models; positions are always given explicitly."""
        return 0 if self._fresh else self._span - self._positions.shape[1]

    def _bucket(self, length: int) -> int:
        return min(-(-length // BUCKET) * BUCKET, self.most)

    def _layer(self, store: dict[int, Tensor], layer: int, like: Tensor) -> Tensor:
        if layer not in store:
            rows, length = self._room
            store[layer] = zeros(
                rows, like.shape[1], length, like.shape[3], dtype=like.dtype, device=like.device
            )
        return store[layer]

    def _store(self, store: dict[int, Tensor], fresh: Tensor, layer: int) -> Tensor:
        held = self._layer(store, layer, fresh)[self._rows]
        length = fresh.shape[2]
        if self._fresh:
            held[:, :, :length] = fresh
            return fresh
        if length == 1:
            held[self._numbers, :, self._positions[:, 0]] = fresh[:, :, 0]
        else:
            held[self._numbers[:, None], :, self._positions] = fresh.transpose(1, 2)
        return held[:, :, : self._span]


def _resized(held: Tensor, rows: int, length: int, used: tuple[int, int]) -> Tensor:
    """(rows, heads, length, D) with what fits of the `used` part of `held`; elsewhere zeros that were never touched."""
    resized = zeros(rows, held.shape[1], length, held.shape[3], dtype=held.dtype, device=held.device)
    both_rows, both_length = min(rows, used[0]), min(length, used[1])
    resized[:both_rows, :, :both_length] = held[:both_rows, :, :both_length]
    return resized


def hidden_from(positions: Tensor, span: int, *, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Additive (B, 1, L, S): a query at `positions` (B, L) sees keys 0 .. itself, the last `window` of them at most."""
    keys = torch.arange(span, device=positions.device)
    queries = positions[:, None, :, None]
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)
