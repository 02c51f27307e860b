"""The replies that are being written: each has a row of the cache, rows 0..B-1 are in use.

A reply joins behind the last row, its prompt's keys copied from where they were read; the last row moves into the hole
that a leaving one makes. Refuses to know the model and how ids are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.decoding.cache import Kept, SlotCache
from server.engine.base import Sampling
from server.engine.text import TextStream


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One reply to make. `version` needs a bank; without one the model runs with whatever adapter is active."""

    id: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    version: int = 0
    who: str = ""
    """Whose turn it is in the queue; served in turns."""

    @property
    def most_tokens(self) -> int:
        """Positions that it may come to need."""
        return len(self.prompt_ids) + self.sampling.max_tokens


@dataclass(slots=True)
class Row:
    """A reply that is being written."""

    request: DecodeRequest
    text: TextStream
    ids: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the newest id stands; everything before it is in the cache."""
        return len(self.request.prompt_ids) + len(self.ids) - 1

    @property
    def cached_ids(self) -> tuple[int, ...]:
        """The ids whose keys and values the cache holds."""
        return (*self.request.prompt_ids, *self.ids[:-1])


class Rows:
    """At most `slots` rows of at most `context` positions, and their cache, always dense."""

    def __init__(self, *, slots: int, context: int, most_tokens: int) -> None:
        """`most_tokens` bounds what the cache has room for: rows times positions of each, unless one row needs more."""
        self.slots, self.context, self._most_tokens = slots, context, most_tokens
        self.cache = SlotCache(most=context)
        self._rows: list[Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __getitem__(self, at: int) -> Row:
        return self._rows[at]

    @property
    def longest(self) -> int:
        """Positions that the row that may need most may come to need."""
        return max((min(row.request.most_tokens, self.context) for row in self._rows), default=0)

    def make_room(self, joining: Sequence[DecodeRequest]) -> None:
        """For all that these and the present rows may come to need, so that no step has to: nothing grows in mid-reply.

        There is room for some rows more than now, as far as `most_tokens` goes: growing copies what is held.
        """
        needed = len(self._rows) + len(joining)
        length = max(self.longest, *(min(one.most_tokens, self.context) for one in joining))
        ahead = min(1 << (needed - 1).bit_length(), self.slots, self._most_tokens // length)
        used = len(self._rows), max((row.position for row in self._rows), default=0)
        self.cache.make_room(rows=max(ahead, needed), length=length, used=used)

    def join(self, row: Row, prompt: Kept) -> None:
        """`row` is the last one now; `prompt` holds its prompt's keys and values."""
        self._rows.append(row)
        self.cache.write(len(self._rows) - 1, prompt, length=len(row.request.prompt_ids))

    def leave(self, at: int) -> None:
        """Row `at` is over."""
        last = len(self._rows) - 1
        if at != last:
            self.cache.move(last, at, length=self._rows[last].position)
            self._rows[at] = self._rows[last]
        self._rows.pop()
        if not self._rows:
            self.cache = SlotCache(most=self.context)  # an idle engine holds no keys
