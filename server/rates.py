"""How often one caller may knock: a token bucket per name, in memory, with a bounded number of names.

Knows nothing of keys or routes; each server process keeps its own buckets.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from server.errors import Busy

NAMES = 20_000


class Rates:
    """`per_second` requests in the long run, twice that in a burst; 0 means no limit."""

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self.burst = max(1.0, 2 * per_second)
        self.clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """Spend one token of `name`. Raises Busy (`rate_limited`), with the time until the next one."""
        if self.per_second <= 0:
            return
        now = self.clock()
        tokens, seen = self._buckets.pop(name, (self.burst, now))
        tokens = min(self.burst, tokens + (now - seen) * self.per_second)
        if tokens < 1:
            self._buckets[name] = (tokens, now)
            raise Busy(
                "Too many requests; come back a little later.",
                code="rate_limited",
                retry_after=(1 - tokens) / self.per_second,
            )
        self._buckets[name] = (tokens - 1, now)
        if len(self._buckets) > NAMES:
            self._buckets.popitem(last=False)
