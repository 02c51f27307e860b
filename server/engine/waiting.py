"""Who is next: requests wait in one line per user, and the lines are served in turn.

    push -> the line of its `who`, behind what that one already has -> pop takes from each line in turn

However much one user asks for, another's next request waits for no more than one of theirs. Pure: it knows neither
what a request is made of nor how long it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What waits: its own number, and whose it is (an opaque name)."""

    @property
    def id(self) -> int: ...

    @property
    def who(self) -> str: ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """Round-robin between whos, first come first served within one. Every operation takes the same time at any length.

    A who that has nothing left loses its turn, and comes last when it asks again.
    """

    def __init__(self) -> None:
        # Ordered dicts and no plain ones: taking the first of a plain dict again and again walks over all the gaps.
        self._lines: OrderedDict[str, OrderedDict[int, T]] = OrderedDict()
        self._who: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._who)

    def __iter__(self) -> Iterator[T]:
        """All that waits, line by line."""
        for line in self._lines.values():
            yield from line.values()

    def push(self, request: T) -> None:
        """Let `request` wait, last in its own line."""
        assert request.id not in self._who, "ids are distinct"
        self._who[request.id] = request.who
        self._lines.setdefault(request.who, OrderedDict())[request.id] = request

    def peek(self) -> T:
        """The one that `pop` would take. Raises IndexError when nothing waits."""
        line = self._next_line()
        return line[next(iter(line))]

    def pop(self) -> T:
        """Take the next one; its line then waits for its turn again. Raises IndexError when nothing waits."""
        request = self._next_line().popitem(last=False)[1]
        del self._who[request.id]
        if self._lines[request.who]:
            self._lines.move_to_end(request.who)
        else:
            del self._lines[request.who]
        return request

    def remove(self, request_id: int) -> bool:
        """Let go of one that is not wanted any more; whether it was here. No other line's turn changes."""
        who = self._who.pop(request_id, None)
        if who is None:
            return False
        del self._lines[who][request_id]
        if not self._lines[who]:
            del self._lines[who]
        return True

    def clear(self) -> None:
        self._lines.clear()
        self._who.clear()

    def _next_line(self) -> OrderedDict[int, T]:
        if not self._lines:
            raise IndexError("nothing waits")
        return next(iter(self._lines.values()))
