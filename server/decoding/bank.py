"""Several adapter versions in one batch: their factors stacked, the rows of each version brought together.

    y + x Aᵀ B        x: (versions, places, in), A: (versions, rank, in), B: (versions, rank, out)

Two batched matmuls for each layer whatever the mix. A version is written into a slot that no running row reads, so
loading cannot touch a reply in flight. Slots not in use hold zeros: a narrower adapter, or one for fewer layers, fills
only part of its slot.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.decoding.gathering import Gathering
from server.decoding.room import zeros
from server.errors import NotFound
from server.modeling import (
    Base,
    check_manifest,
    check_shapes,
    features,
    linears,
    read_adapter,
)

SLOTS = 16
"""Room for so many versions from the first on; a place that was never used takes no memory on a CPU."""
STEPS = 64
"""Prepared steps that are kept: views and room for results, which would cost more to make than to fill."""
COPIES = 4
"""Choices of slots that do not lie side by side, of which copies are kept."""
FEW_ROWS = 64
"""Fewer rows than this are multiplied in float32 on a CPU: for so little oneDNN's bfloat16 is mostly preparation."""


class Prepared(NamedTuple):
    """An adapter read, checked, scaled and moved to the base's device and type: ready to be written."""

    rank: int
    factors: dict[str, tuple[Tensor, Tensor]]
    """By layer: A (rank, in), and B (rank, out) with the scale in it."""


class AdapterBank:
    """The adapters beside one base. `prepare` may run on any thread, everything else between two steps.

    Linear layers that read the same input form a group: their first factors are one matrix. A trunk that runs them
    together names its groups and calls `add`; without groups every layer is one, and hooks on the layers do it.
    """

    def __init__(self, base: Base, groups: Sequence[Sequence[str]] | None = None) -> None:
        self._base = base
        layers = linears(base.model)
        self._groups = [_Group.of(names, layers) for names in groups or [(name,) for name in layers]]
        self._where = {
            name: (group, member) for group in self._groups for member, name in enumerate(group.names)
        }
        self._slots: dict[int, int] = {}
        self._ranks: dict[int, int] = {}
        self._capacity = self._rank = 0
        self.is_active = False
        """Whether any row of the forward that comes needs an adapter."""
        self.only: int | None = 0
        """The version that all rows of it share; None when they are of several."""
        self._selected: list[tuple[Tensor, ...]] = []
        """For each group the selected slots' A (slots, members · rank, in) and, by member, B (slots, rank, out)."""
        self._views: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = {}
        self._copies: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = {}
        self._gathering: Gathering | None = None
        """None: all rows are of the one selected slot."""
        self._steps: list[_Step] | None = None
        """Of a step of few rows, for each group."""
        self._rows = 0
        """How many rows that step has."""
        self._prepared: OrderedDict[tuple[tuple[int, ...], int], list[_Step]] = OrderedDict()
        self._hooks = (
            []
            if groups
            else [
                layers[group.names[0]].register_forward_hook(self._hook(number))
                for number, group in enumerate(self._groups)
            ]
        )

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions held; 0, the bare base, always is."""
        return (0, *sorted(self._slots))

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self._base.device

    def prepare(self, path: Path) -> Prepared:
        """Read and check a PEFT folder. Raises AdapterRejected when it does not fit this base."""
        check_manifest(self._base, path)
        weights = read_adapter(path)
        check_shapes(self._base.model, weights)
        where: dict[str, Any] = {"device": self._base.device, "dtype": kept_in(self._base)}
        factors = {
            name: (a.to(**where), (b * weights.scaling).t().contiguous().to(**where))
            for name, (a, b) in weights.factors.items()
        }
        return Prepared(rank=weights.rank, factors=factors)

    def write(self, version: int, prepared: Prepared) -> None:
        """Hold `prepared` as `version`. A version's weights never change: holding it already is enough."""
        if version in self._slots:
            return
        slot = next(i for i in range(len(self._slots) + 1) if i not in self._slots.values())
        self._make_room(slots=slot + 1, rank=max(prepared.rank, self._rank))
        try:
            for name, (a, b) in prepared.factors.items():
                group, member = self._where[name]
                group.a[slot, member, : prepared.rank] = a
                group.b[member][slot, : prepared.rank] = b
        except BaseException:
            self._clear(slot)
            raise
        self._slots[version], self._ranks[version] = slot, prepared.rank

    def remove(self, version: int) -> None:
        """Let go of `version`; its slice is zeroed, and the others' become as narrow as they may."""
        slot = self._slots.pop(version, None)
        if slot is None:
            return
        del self._ranks[version]
        self._clear(slot)
        self._make_room(slots=self._capacity, rank=max(self._ranks.values(), default=self._rank))

    def factors(self, version: int) -> list[tuple[Tensor, ...]]:
        """Copies of a version's factors: for each group A (members, rank, in) and by member B (rank, out)."""
        slot = self._slots[version]
        return [(group.a[slot].clone(), *(b[slot].clone() for b in group.b)) for group in self._groups]

    def select(self, versions: Sequence[int], *, length: int = 1) -> None:
        """The version of each row of the forwards that follow, in which a row has `length` tokens."""
        unknown = set(versions) - set(self._slots) - {0}
        if unknown:
            raise NotFound(f"version {min(unknown)} is not held", code="unknown_version")
        self.only = versions[0] if len(set(versions)) == 1 else None
        slots = [self._slots.get(version, -1) for version in versions]
        used = tuple(sorted({slot for slot in slots if slot >= 0}))
        self.is_active, self._steps = bool(used), None
        if used:
            self._selected = self._of_slots(used)
            self._gathering = Gathering.of(slots, used, length=length, device=self._base.device)
            self._rows = len(slots) * length
            places = self._gathering.places if self._gathering else self._rows
            if len(used) * places < FEW_ROWS and _side_by_side(used):
                self._steps = self._steps_of(used, places)

    def _steps_of(self, used: tuple[int, ...], places: int) -> list[_Step]:
        key = used, places
        if key not in self._prepared:
            scratch = _Scratch(len(used), places, self._base)
            self._prepared[key] = [
                _Step.of(factors, group.columns, scratch)
                for factors, group in zip(self._selected, self._groups, strict=True)
            ]
            if len(self._prepared) > STEPS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _of_slots(self, used: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
        """Factors of just these slots: where they lie, or a copy when others lie between them."""
        held = self._views if _side_by_side(used) else self._copies
        if used not in held:
            if _side_by_side(used):
                which: slice | Tensor = slice(used[0], used[-1] + 1)
            else:
                which = torch.tensor(used, device=self._base.device)
                if len(held) >= COPIES:
                    del held[next(iter(held))]
            held[used] = [group.of_slots(which) for group in self._groups]
        return held[used]

    def add(self, number: int, x: Tensor, out: Tensor) -> None:
        """Add what the selected versions bring to a group's `out` (N, all of its outputs), from its `x` (N, in)."""
        if self._steps and len(x) == self._rows:
            out.add_(self._steps[number].run(x, self._gathering))
            return
        a, *bs = self._selected[number]
        if a.dtype != out.dtype:
            if len(x) < FEW_ROWS:
                x = x.to(a.dtype)
            else:
                a, bs = a.to(out.dtype), [b.to(out.dtype) for b in bs]
        columns = self._groups[number].columns
        if self._gathering:
            out.add_(self._of_several(self._gathering, x, a, bs, columns))
            return
        inner = functional.linear(x, a[0])  # (N, members · rank)
        target = out if inner.dtype == out.dtype else inner.new_empty(out.shape)
        for own, b, its in zip(inner.chunk(len(bs), dim=1), bs, columns, strict=True):
            if target is out:
                out[:, its].addmm_(own, b[0])
            else:
                torch.mm(own, b[0], out=target[:, its])
        if target is not out:
            out.add_(target)

    def _of_several(
        self, gathering: Gathering, x: Tensor, a: Tensor, bs: Sequence[Tensor], columns: Sequence[slice]
    ) -> Tensor:
        """What the versions bring to each row of `x`: (N, all outputs)."""
        inner = torch.bmm(gathering.gather(x), a.mT)  # (versions, places, members · rank)
        made, flat = gathering.room(columns[-1].stop, like=inner)
        for own, b, its in zip(inner.chunk(len(bs), dim=2), bs, columns, strict=True):
            torch.bmm(own, b, out=made[..., its])
        return gathering.scatter(flat)

    def close(self) -> None:
        """Leave the base as it was."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, number: int) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.is_active:
                return None
            x, out = inputs[0], output.clone()
            self.add(number, x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]))
            return out

        return add

    def _clear(self, slot: int) -> None:
        for group in self._groups:
            group.a[slot] = 0
            for b in group.b:
                b[slot] = 0

    def _make_room(self, *, slots: int, rank: int) -> None:
        """For at least `slots` slots of exactly this rank, which is that of the largest adapter held."""
        self._views.clear()
        self._copies.clear()
        self._prepared.clear()
        self._selected, self._steps = [], None
        if slots <= self._capacity and rank == self._rank:
            return
        self._rank = rank
        self._capacity = max(slots, SLOTS, self._capacity)
        for group in self._groups:
            group.resize(slots=self._capacity, rank=rank, held=self._slots.values(), like=self._base)


class _Scratch:
    """What the groups of a step fill one after another, whatever the layer: one piece for each width."""

    def __init__(self, versions: int, places: int, base: Base) -> None:
        self.versions, self.places = versions, places
        where: dict[str, Any] = {"device": base.device}
        self._kept, self._base = where | {"dtype": kept_in(base)}, where | {"dtype": base.dtype}
        self._of: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def of(self, what: str, width: int) -> tuple[Tensor, Tensor]:
        """(versions · places and a zero, width), as the factors are kept and in the base's type."""
        if (what, width) not in self._of:
            kept = torch.zeros(self.versions * self.places + 1, width, **self._kept)
            self._of[what, width] = kept, kept.to(**self._base)
        return self._of[what, width]

    def split(self, tensor: Tensor) -> Tensor:
        """(versions, places, width), without the zero."""
        return tensor[:-1].view(self.versions, self.places, -1)


class _Step(NamedTuple):
    """One group's products for some slots and places."""

    a: Tensor
    """(versions, in, members · rank)"""
    x: Tensor
    """(versions, places, in)"""
    inner: Tensor
    """(versions, places, members · rank)"""
    products: list[tuple[Tensor, Tensor, Tensor]]
    """By member its part of `inner`, its B (versions, rank, out), and its part of `made`."""
    made: Tensor
    """(versions · places and a zero, all outputs)"""
    narrow: Tensor
    """The same in the base's type: an addition within one type is a fast one."""

    @classmethod
    def of(cls, factors: tuple[Tensor, ...], columns: Sequence[slice], scratch: _Scratch) -> _Step:
        a, *bs = factors
        x, inner = (
            scratch.split(scratch.of(what, width)[0])
            for what, width in (("x", a.shape[2]), ("inner", a.shape[1]))
        )
        made, narrow = scratch.of("made", columns[-1].stop)
        owns, filled = inner.chunk(len(bs), dim=2), scratch.split(made)
        products = [(own, b, filled[..., its]) for own, b, its in zip(owns, bs, columns, strict=True)]
        return cls(a.mT, x, inner, products, made, narrow)

    def run(self, x: Tensor, gathering: Gathering | None) -> Tensor:
        """What the slots add to `x` (rows, in): (rows, all outputs), until the next step is run."""
        self.x.copy_((gathering.gather(x) if gathering else x).view(self.x.shape))
        torch.bmm(self.x, self.a, out=self.inner)
        for own, b, its in self.products:
            torch.bmm(own, b, out=its)
        if self.narrow is not self.made:
            self.narrow.copy_(self.made)
        return gathering.scatter(self.narrow) if gathering else self.narrow[:-1]


@dataclass(slots=True)
class _Group:
    """The stacked factors of linear layers that share an input."""

    names: tuple[str, ...]
    size_in: int
    columns: tuple[slice, ...]
    """Which outputs of the group are each member's."""
    a: Tensor
    """(slots, members, rank, in)"""
    b: list[Tensor]
    """For each member (slots, rank, out)."""

    @classmethod
    def of(cls, names: Sequence[str], layers: Mapping[str, nn.Module]) -> _Group:
        sizes = [features(layers[name]) for name in names]
        ends = list(accumulate(size for _, size in sizes))
        columns = tuple(slice(end - size, end) for end, (_, size) in zip(ends, sizes, strict=True))
        return cls(tuple(names), sizes[0][0], columns, torch.empty(0), [])

    def of_slots(self, which: slice | Tensor) -> tuple[Tensor, ...]:
        """A (slots, members · rank, in) and each member's B (slots, rank, out): views of a slice, else copies."""
        return self.a[which].flatten(1, 2), *(b[which] for b in self.b)

    def resize(self, *, slots: int, rank: int, held: Iterable[int], like: Base) -> None:
        """Other tensors with what the slots `held` hold, zeros elsewhere."""
        where: dict[str, Any] = {"device": like.device, "dtype": kept_in(like)}
        a = zeros(slots, len(self.names), rank, self.size_in, **where)
        b = [zeros(slots, rank, column.stop - column.start, **where) for column in self.columns]
        for slot in held:
            both = min(rank, self.a.shape[2])
            a[slot, :, :both] = self.a[slot, :, :both]
            for new, old in zip(b, self.b, strict=True):
                new[slot, :both] = old[slot, :both]
        self.a, self.b = a, b


def _side_by_side(slots: Sequence[int]) -> bool:
    return slots[-1] - slots[0] == len(slots) - 1


def kept_in(base: Base) -> torch.dtype:
    """The type of adapters beside this base: float32 on a CPU, where the few rows of a step are faster in it."""
    return torch.float32 if base.device.type == "cpu" else base.dtype
