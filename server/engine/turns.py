"""Whose request is sent next, where requests go to somebody whose own queue knows no users.

    turn: wait in the line of its `who` -> the lines are served in turn, as places come free -> its places come free

A bounded number of replies goes on at a time. Knows neither engines nor what a request is made of; lives on one event
loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server.engine.waiting import FairQueue


@dataclass(frozen=True, eq=False, slots=True)
class _Waiter:
    id: int
    who: str
    n: int
    is_next: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """Round-robin between whos, first come first served within one. `places` may change at any time."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken = 0
        self._numbers = itertools.count()
        self._waiting: FairQueue[_Waiter] = FairQueue()

    @asynccontextmanager
    async def turn(self, n: int, *, who: str) -> AsyncIterator[None]:
        """Wait until `n` replies of `who` may go on, and hold their places meanwhile.

        More than there are places go on when nothing else does.
        """
        waiter = _Waiter(next(self._numbers), who, n)
        self._waiting.push(waiter)
        self._call()
        try:
            await waiter.is_next.wait()
            yield
        finally:
            if waiter.is_next.is_set():
                self._taken -= n
            else:
                self._waiting.remove(waiter.id)
            self._call()

    def _call(self) -> None:
        """Let on whoever is next, for as long as there is room. Nobody is passed over for being many."""
        while self._waiting:
            if self._taken and self._taken + self._waiting.peek().n > self.places:
                return
            waiter = self._waiting.pop()
            self._taken += waiter.n
            waiter.is_next.set()
