"""An engine's places: how many are taken, who waits for one, who may have another, and when to come back.

Full means full for everybody. While the queue is more than half full, nobody may hold more than half of it: whoever
comes next finds room, however much one user asks for. It counts and refuses; it knows neither engines nor requests,
and whoever owns it sees to it that one thread at a time calls.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from server.engine.base import NOTHING_PROMISED
from server.errors import Busy

MEMORY = 64
"""Replies that ended last, from which it is estimated when a place comes free."""
LONGEST_WAIT = 60


class Places:
    """`running` places to be written in, `waiting` in the queue before them."""

    def __init__(self, *, running: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.running, self.waiting = running, waiting
        self.taken = 0
        self._clock = clock
        self._queued: Counter[str] = Counter()
        """Replies of each who that have a place and are not yet begun."""
        self._freed: deque[float] = deque(maxlen=MEMORY + 1)
        """When this spell of work began, and when places came free since."""

    @property
    def share(self) -> int:
        """The most that one who may hold of a queue that is more than half full."""
        return max(self.waiting // 2, 1)

    def must_admit(self, n: int, *, who: str, promised: Mapping[str, int] = NOTHING_PROMISED) -> None:
        """Raises Busy unless `who` may have `n` more; `promised` are places that others were told they will get."""
        wanted = n + sum(promised.values())
        self.must_have_room(wanted)
        waits = self._queued[who] + promised.get(who, 0)
        is_crowded = 2 * (self.taken + wanted - self.running) > self.waiting
        # One that has nothing waiting is never refused here: it could ask for ever.
        if is_crowded and waits and waits + n > self.share:
            raise Busy(
                f"You have {waits} replies waiting. While the queue is more than half full, one user may have "
                f"{self.share}; others are still admitted.",
                code="too_many_waiting",
                # Each of the others that wait has its turn between two of this one's.
                retry_after=self._seconds((waits + n - self.share) * max(len(self._queued), 1)),
            )

    def must_have_room(self, n: int) -> None:
        """Raises Busy unless there are `n` more places, whoever asks."""
        over = self.taken + n - self.running - self.waiting
        if over > 0:
            raise Busy("every place is taken, and so is the queue", retry_after=self._seconds(over))

    def take(self, n: int, *, who: str) -> None:
        """Raises Busy as `must_have_room` does; what was promised is not refused for its share."""
        self.must_have_room(n)
        if not self.taken:
            self._freed.clear()  # nothing came free while nobody worked: an idle night says nothing of the pace
            self._freed.append(self._clock())
        self.taken += n
        self._queued[who] += n

    def begin(self, who: str) -> None:
        """One reply of `who` has left the queue and is being written."""
        self._queued[who] -= 1
        if not self._queued[who]:
            del self._queued[who]

    def leave(self, who: str, *, begun: bool) -> None:
        """One reply of `who` gives its place back, however it ended."""
        if not begun:
            self.begin(who)
        self.taken -= 1
        self._freed.append(self._clock())

    def _seconds(self, places: int) -> float:
        """Until so many more places come free, going by the replies that ended last; whole, and within reason."""
        if not self._freed:
            return 1.0
        pace = (self._clock() - self._freed[0]) / max(len(self._freed) - 1, 1)
        return float(min(max(math.ceil(pace * places), 1), LONGEST_WAIT))
