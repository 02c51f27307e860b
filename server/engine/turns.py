"""Whose request is sent next, where requests go to somebody whose own queue knows no users.

    turn: wait in the line of its `who` -> the lines are served in turn, as places come free -> its places come free

A bounded number of replies goes on at a time. Knows neither engines nor what a request is made of; lives on one event
loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Waiter:
    n: int
    is_next: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """Round-robin between whos, first come first served within one. `places` may change at any time."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._taken = 0
        self._lines: OrderedDict[str, deque[_Waiter]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, n: int, *, who: str) -> AsyncIterator[None]:
        """Wait until `n` replies of `who` may go on, and hold their places meanwhile.

        More than there are places go on when nothing else does.
        """
        waiter = _Waiter(n)
        self._lines.setdefault(who, deque()).append(waiter)
        self._call()
        try:
            await waiter.is_next.wait()
            yield
        finally:
            if waiter.is_next.is_set():
                self._taken -= n
            else:
                self._leave(who, waiter)
            self._call()

    def _call(self) -> None:
        """Let on whoever is next, for as long as there is room. Nobody is passed over for being many."""
        while self._lines:
            who, line = next(iter(self._lines.items()))
            if self._taken and self._taken + line[0].n > self.places:
                return
            waiter = line.popleft()
            if line:
                self._lines.move_to_end(who)
            else:
                del self._lines[who]
            self._taken += waiter.n
            waiter.is_next.set()

    def _leave(self, who: str, waiter: _Waiter) -> None:
        self._lines[who].remove(waiter)
        if not self._lines[who]:
            del self._lines[who]
