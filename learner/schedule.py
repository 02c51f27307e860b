"""When to train: one pure decision, and an APScheduler that keeps asking it.

`due` looks at the votes, the clock and the settings, and answers either why now or why not yet: the same
sentence on every surface. The scheduler's jobs are built from settings at start and live in memory; what must
survive a restart is in Hone's own rows. Knows nothing of how a cycle works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.background import BackgroundScheduler

from server.settings import Settings

log = logging.getLogger(__name__)

JUMP_SECONDS = 30.0
"""A wall clock that drifts this far from the monotonic one was set: waits planned by it are planned again."""

LONGEST_BACKOFF = timedelta(hours=6)
FIRST_BACKOFF = timedelta(minutes=2)
AFTER_CANCEL = LONGEST_BACKOFF
"""An operator who cancelled does not want to see it begin again by itself in a moment."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the decision looks at: the votes, and when this segment was last trained."""

    live: int
    """Live votes in the segment."""
    new: int
    """Those that no finished cycle has read."""
    last_run_at: datetime | None = None
    next_due_at: datetime | None = None
    """As an earlier look at the clock planned it, cleared by each cycle: the wait outlives a restart, and a last
    run that lies in the future cannot push it along for ever."""
    backoff_until: datetime | None = None
    lacks: str = ""
    """What the votes of the last cycle lacked to be trained on, in one clause."""


@dataclass(frozen=True, slots=True)
class Due:
    """A cycle should begin; `by` is what set it off: `votes` or `schedule`."""

    by: str


@dataclass(frozen=True, slots=True)
class NotYet:
    """Why not, in one sentence, and when it will be due even without more votes."""

    why: str
    next_due_at: datetime | None = None
    too_few: bool = False
    """Not even an operator can have a cycle on so few votes."""


def due(standing: Standing, *, now: datetime, settings: Settings) -> Due | NotYet:
    """Whether a cycle should begin now.

    A clock that jumped cannot lock the door: no wait counts for longer than it can have been meant to last.
    """
    interval = timedelta(hours=settings.train_every_hours)
    if standing.live < settings.min_labels:
        first = settings.min_labels
        return NotYet(f"{votes(first - standing.live)} to the first {first}", too_few=True)
    if standing.backoff_until and now < standing.backoff_until <= now + LONGEST_BACKOFF:
        again = standing.backoff_until
        return NotYet(
            f"the last cycle failed or was cancelled; the next begins at {clock(again, now)}", again
        )
    lacks = f"{standing.lacks}; " if standing.lacks else ""
    if standing.new == 0:
        return NotYet(f"{lacks}no new votes since the last cycle")
    if standing.new >= settings.train_every_votes:
        return Due("votes")
    planned = [now + interval]
    if standing.last_run_at is not None:
        planned.append(standing.last_run_at + interval)
    if standing.next_due_at is not None:
        planned.append(standing.next_due_at)
    next_due = min(planned)
    if next_due <= now:
        return Due("schedule")
    missing = settings.train_every_votes - standing.new
    return NotYet(f"{lacks}{votes(missing)} or {clock(next_due, now)}", next_due)


def backoff(failures: int) -> timedelta:
    """How long to wait after so many failures in a row: 2, 4, 8 … minutes, 6 hours at most."""
    return min(FIRST_BACKOFF * 2 ** min(failures - 1, 10), LONGEST_BACKOFF)


def votes(count: int) -> str:
    """`37 more votes`."""
    return "1 more vote" if count == 1 else f"{count} more votes"


def clock(at: datetime, now: datetime) -> str:
    """`14:00`, with the date when it is not today's; both in UTC, and said so."""
    at, now = at.astimezone(UTC), now.astimezone(UTC)
    return at.strftime("%H:%M UTC" if at.date() == now.date() else "%d %b %H:%M UTC")


class Schedule:
    """Asks again and again, one question at a time, until told to stop.

    APScheduler plans by the wall clock; when that is set back, its jobs would sleep for as long as it was set
    back, so they are planned anew. Nothing is missed by that: every look reads all there is.
    """

    def __init__(
        self,
        *,
        stop: threading.Event,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stop = stop
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._every: dict[str, float] = {}
        # A look is skipped while the one before it still trains: for hours, and no reason for a warning each time.
        errors = logging.getLogger(f"{__name__}.jobs")
        errors.setLevel(logging.ERROR)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            logger=errors,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def every(self, seconds: float, job_id: str, look: Callable[[], None]) -> None:
        """Call `look` now and every `seconds`; never twice at once, and never two calls for one missed."""
        self._every[job_id] = seconds
        self._scheduler.add_job(
            look,
            "interval",
            seconds=seconds,
            id=job_id,
            replace_existing=True,
            next_run_time=datetime.now(UTC),
        )

    def run(self) -> None:
        """Until `stop` is set; a look in progress is waited for, and hears of the stop by itself."""
        self._scheduler.start()
        try:
            while not self._stop.wait(1.0):
                self.mind_the_clock()
        finally:
            self._scheduler.shutdown(wait=True)

    def mind_the_clock(self) -> bool:
        """Plan all jobs anew if the wall clock was set since the last call."""
        offset = self._wall() - self._monotonic()
        if abs(offset - self._offset) < JUMP_SECONDS:
            return False
        log.warning("the clock was set by %+.0f s: planning again", offset - self._offset)
        self._offset = offset
        for job_id, seconds in self._every.items():
            self._scheduler.reschedule_job(job_id, trigger="interval", seconds=seconds)
        return True
