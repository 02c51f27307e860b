"""Several adapter versions in one batch: their factors stacked along the rank, each row masked to its own slice.

    y + (x Aᵀ ⊙ mask) B        A: (slots · rank, in), B: (out, slots · rank)

Two matmuls for each layer whatever the mix. A version is written into a slice that no running row reads, so loading
cannot touch a reply in flight. Slices not in use hold zeros: a mask times a number that is not finite would spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.errors import NotFound
from server.modeling import (
    Base,
    check_manifest,
    check_shapes,
    features,
    linears,
    read_adapter,
)

FIRST_SLOTS = 4


class Prepared(NamedTuple):
    """An adapter read, checked, scaled and moved to the base's device and type: ready to be written."""

    rank: int
    factors: dict[str, tuple[Tensor, Tensor]]


class AdapterBank:
    """The adapters beside one base. `prepare` may run on any thread, everything else between two steps."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._layers = linears(base.model)
        self._slots: dict[int, int] = {}
        self._capacity = self._rank = 0
        self._a: dict[str, Tensor] = {}
        self._b: dict[str, Tensor] = {}
        self._span = slice(0, 0)
        self._mask: Tensor | None = None
        self._hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions held; 0, the bare base, always is."""
        return (0, *sorted(self._slots))

    def prepare(self, path: Path) -> Prepared:
        """Read and check a PEFT folder. Raises AdapterRejected when it does not fit this base."""
        check_manifest(self._base, path)
        weights = read_adapter(path)
        check_shapes(self._base.model, weights)
        where: dict[str, Any] = {"device": self._base.device, "dtype": self._base.dtype}
        factors = {
            name: (a.to(**where), (b * weights.scaling).to(**where))
            for name, (a, b) in weights.factors.items()
        }
        return Prepared(rank=weights.rank, factors=factors)

    def write(self, version: int, prepared: Prepared) -> None:
        """Hold `prepared` as `version`. A version's weights never change: holding it already is enough."""
        if version in self._slots:
            return
        slot = next(i for i in range(len(self._slots) + 1) if i not in self._slots.values())
        self._make_room(slots=slot + 1, rank=prepared.rank)
        columns = slice(slot * self._rank, slot * self._rank + prepared.rank)
        for name, (a, b) in prepared.factors.items():
            self._a[name][columns] = a
            self._b[name][:, columns] = b
        self._slots[version] = slot

    def remove(self, version: int) -> None:
        """Let go of `version`; its slice is zeroed."""
        slot = self._slots.pop(version, None)
        if slot is None:
            return
        columns = slice(slot * self._rank, (slot + 1) * self._rank)
        for name in self._layers:
            self._a[name][columns] = 0
            self._b[name][:, columns] = 0

    def select(self, versions: Sequence[int]) -> None:
        """The version of each row of the forwards that follow; one for all when they agree."""
        unknown = set(versions) - set(self._slots) - {0}
        if unknown:
            raise NotFound(f"version {min(unknown)} is not held", code="unknown_version")
        slots = [self._slots.get(version, -1) for version in versions]
        used = sorted({slot for slot in slots if slot >= 0})
        self._mask = None
        if not used:
            self._span = slice(0, 0)
            return
        first, last = used[0], used[-1] + 1
        self._span = slice(first * self._rank, last * self._rank)
        if len(set(slots)) > 1:
            own = torch.tensor(slots, device=self._base.device)[:, None] == torch.arange(
                first, last, device=self._base.device
            )
            self._mask = own.repeat_interleave(self._rank, dim=1).to(self._base.dtype)[:, None]

    def close(self) -> None:
        """Leave the base as it was."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._span.start == self._span.stop:
                return None
            inner = functional.linear(inputs[0], self._a[name][self._span])
            if self._mask is not None:
                inner = inner * self._mask
            return output + functional.linear(inner, self._b[name][:, self._span])

        return add

    def _make_room(self, *, slots: int, rank: int) -> None:
        if slots <= self._capacity and rank <= self._rank:
            return
        old_capacity, old_rank = self._capacity, self._rank
        self._rank = max(rank, old_rank)
        self._capacity = old_capacity if slots <= old_capacity else max(slots, FIRST_SLOTS, 2 * old_capacity)
        size = self._capacity * self._rank
        for name, layer in self._layers.items():
            size_in, size_out = features(layer)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            a, b = weight.new_zeros(size, size_in), weight.new_zeros(size_out, size)
            for slot in range(old_capacity):
                new = slice(slot * self._rank, slot * self._rank + old_rank)
                old = slice(slot * old_rank, (slot + 1) * old_rank)
                a[new], b[:, new] = self._a[name][old], self._b[name][:, old]
            self._a[name], self._b[name] = a, b
