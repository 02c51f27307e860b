"""How fast places come free, so that who finds none is told honestly when to come back.

Knows when replies ended, and nothing of who wrote them. Not thread-safe: its owner's lock is enough.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

MEMORY = 64
"""Finished replies from which the pace is estimated."""
LONGEST_SECONDS = 60


class Pace:
    """The rate at which replies ended of late."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: deque[float] = deque(maxlen=MEMORY)

    def reply_ended(self) -> None:
        """A place has just come free."""
        self._ended.append(self._clock())

    def seconds_until(self, places: int) -> float:
        """Whole seconds until so many places come free, going by the replies that ended last."""
        if len(self._ended) < 2:
            return 1.0
        per_reply = (self._clock() - self._ended[0]) / len(self._ended)
        return float(min(max(math.ceil(per_reply * places), 1), LONGEST_SECONDS))
