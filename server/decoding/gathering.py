"""The rows of a batch brought together by version, so that each is multiplied by its own version's factors alone.

    rows  a b a - b c   ->   places  [a a] [b b] [c .]   ->   rows again, nothing for `-`

Versions with fewer rows than the others have places that nobody reads. Knows places and rows, not what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Gathering(NamedTuple):
    """Where rows stand while they are together."""

    source: Tensor
    """(versions, places of each): the row that each place reads."""
    back: Tensor
    """(rows,): the place of each row; behind the last place stands a zero, for rows of no version."""
    some_have_none: bool

    @classmethod
    def of(
        cls, slots: Sequence[int], used: Sequence[int], *, length: int, device: torch.device
    ) -> Gathering | None:
        """Of rows of `length` tokens, whose slots are among `used` or negative; None: they are together as they are."""
        together = [[row for row, slot in enumerate(slots) if slot == one] for one in used]
        if len(together[0]) == len(slots):
            return None
        most = max(map(len, together))
        rows = [[*its, *its[:1] * (most - len(its))] for its in together]
        places = {row: at * most + i for at, its in enumerate(together) for i, row in enumerate(its)}
        nowhere = len(used) * most
        tokens = torch.arange(length, device=device)
        source = torch.tensor(rows, device=device)[..., None] * length + tokens
        back = torch.tensor([places.get(row, nowhere) for row in range(len(slots))], device=device)
        back = (back[:, None] * length + tokens).clamp_(max=nowhere * length)
        return cls(source.flatten(1), back.flatten(), len(places) < len(slots))

    @property
    def places(self) -> int:
        """Of each version."""
        return self.source.shape[1]

    def gather(self, x: Tensor) -> Tensor:
        """(rows, in) -> (versions, places, in)"""
        return x.index_select(0, self.source.flatten()).view(*self.source.shape, -1)

    def room(self, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """To be filled (versions, places, width), and what `scatter` takes: the same with the zero behind it."""
        count = self.source.numel()
        flat = like.new_empty(count + self.some_have_none, width)
        flat[count:] = 0
        return flat[:count].view(*self.source.shape, width), flat

    def scatter(self, flat: Tensor) -> Tensor:
        """(places and the zero, width) -> (rows, width)"""
        return flat.index_select(0, self.back)
