"""How likely a version finds replies, through the very forward that serves it, a bounded piece at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache
from server.decoding.trunk import Trunk

PIECE = 256
"""Tokens, padding included, that one piece reads where nobody says what this machine affords between two steps."""

Item = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt and of its response."""


class _Piece(NamedTuple):
    items: list[int]
    start: int
    end: int
    cache: SlotCache


class Scoring:
    """Scores items piece by piece, so that steps of running replies fit in between."""

    def __init__(
        self, trunk: Trunk, bank: AdapterBank, version: int, items: Sequence[Item], *, piece: int = PIECE
    ) -> None:
        self._trunk, self._bank, self._version, self._items = trunk, bank, version, items
        self._piece = piece
        self._found: list[list[float]] = [[] for _ in items]
        self._pieces = deque(self._plan())

    @property
    def is_over(self) -> bool:
        return not self._pieces

    @property
    def found(self) -> list[tuple[float, ...]]:
        """For each item the raw-policy log probability in nats of each id of its response: temperature 1."""
        return [tuple(logprobs) for logprobs in self._found]

    @torch.no_grad()
    def step(self) -> None:
        """Read one piece."""
        chosen, start, end, cache = self._pieces.popleft()
        device = self._bank.device
        ids = torch.zeros(len(chosen), end - start + 1, dtype=torch.long)
        for row, i in enumerate(chosen):
            piece = _ids(self._items[i])[start : end + 1]
            ids[row, : len(piece)] = torch.tensor(piece)
        ids = ids.to(device)
        self._bank.select([self._version] * len(chosen), length=end - start)
        positions = cache.begin(0, [start] * len(chosen), end - start, device)
        states = self._trunk.states(ids[:, :-1], positions, cache)
        for row, i in enumerate(chosen):
            prompt, response = self._items[i]
            # The state at a position predicts the id that follows it.
            first, last = max(len(prompt) - 1, start), min(len(prompt) + len(response) - 1, end)
            if first < last:
                logits = self._trunk.logits(states[row, first - start : last - start])
                said = ids[row, first + 1 - start : last + 1 - start, None]
                self._found[i] += torch.log_softmax(logits, dim=-1).gather(1, said)[:, 0].tolist()

    def _plan(self) -> Iterator[_Piece]:
        for chosen in self._together():
            width = max(len(_ids(self._items[i])) - 1 for i in chosen)
            cache = SlotCache(most=self._trunk.base.context, rows=len(chosen), length=width)
            for start in range(0, width, self._piece):
                yield _Piece(chosen, start, min(start + self._piece, width), cache)

    def _together(self) -> Iterator[list[int]]:
        """Items that make one piece, padded to the longest; a long one is by itself."""
        chosen: list[int] = []
        width = 0
        for i, item in enumerate(self._items):
            if not item[1]:
                continue
            wider = max(width, len(_ids(item)) - 1)
            if chosen and wider * (len(chosen) + 1) > self._piece:
                yield chosen
                chosen, wider = [], len(_ids(item)) - 1
            chosen.append(i)
            width = wider
        if chosen:
            yield chosen


def score(
    trunk: Trunk, bank: AdapterBank, version: int, items: Sequence[Item], *, piece: int = PIECE
) -> list[tuple[float, ...]]:
    """What `Scoring` finds, all in one go."""
    scoring = Scoring(trunk, bank, version, items, piece=piece)
    while not scoring.is_over:
        scoring.step()
    return scoring.found


def _ids(item: Item) -> tuple[int, ...]:
    return (*item[0], *item[1])
