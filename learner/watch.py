"""What a running cycle shows of itself, and how it hears that it should stop.

One object is called by every step with the share that is done. It draws a bar in a terminal (plain log lines
elsewhere), writes the cycle's row about once a second, and raises where work must not go on. Knows nothing of
what a step computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from learner.tenure import Tenure
from server.errors import Unavailable
from server.store import cycles

log = logging.getLogger(__name__)

ROW_SECONDS = 1.0
"""How often the cycle's row is written, and the operator's wish read."""
LINE_SECONDS = 15.0
"""How often a line is logged where there is no terminal."""


class Stopped(Exception):
    """Somebody asked this process to stop: the cycle stays as it is and is resumed by the next learner."""


class Cancelled(Exception):
    """An operator cancelled the cycle: it ends here."""


class Watch:
    """One cycle's progress, drawn, stored and interruptible."""

    def __init__(
        self,
        cycle_id: str,
        *,
        tenure: Tenure,
        stop: threading.Event,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cycle_id = cycle_id
        self._tenure = tenure
        self._stop = stop
        self._clock = clock
        self._step = ""
        self._share = 0.0
        self._cancelled = False
        self._row_at = self._line_at = float("-inf")
        self._bar = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console or Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, step: str) -> None:
        """A step starts: the row says so at once, and a pending stop is heard before any work."""
        self._step = step
        self._row_at = self._line_at = float("-inf")
        self._task = self._bar.add_task(step, total=1.0, numbers="")
        self(0.0)

    def __call__(self, share: float, numbers: Mapping[str, float] | None = None) -> None:
        """`share` (0..1) of the step is done, and what is worth showing beside it.

        Raises LeaseLost, Cancelled or Stopped where work must end.
        """
        self._tenure.check()
        self._share = share
        now = self._clock()
        if self._task is not None:
            self._bar.update(self._task, completed=share, numbers=shown(numbers))
        if now - self._line_at >= LINE_SECONDS and not self._bar.console.is_terminal:
            self._line_at = now
            log.info(
                "%s %d %% %s", self._step, round(100 * share), shown(numbers), extra={"cycle": self._cycle_id}
            )
        if now - self._row_at >= ROW_SECONDS:
            self._row_at = now
            self._store(share)
        self.raise_if_asked()

    def raise_if_asked(self) -> None:
        """End here if the lease is lost, an operator cancelled, or the process is to stop."""
        self._tenure.check()
        if self._cancelled:
            raise Cancelled
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait, but hear of a cancel before, and of a stop or a lost lease at once."""
        self._row_at = float("-inf")
        self(self._share)
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            self.raise_if_asked()
            self._stop.wait(min(left, 0.5))

    def _store(self, share: float) -> None:
        """Progress is for people: when it cannot be written just now, the work goes on."""
        try:
            wished = self._tenure.write(
                lambda session: cycles.set_progress(
                    session,
                    cycle_id=self._cycle_id,
                    epoch=self._tenure.epoch,
                    step=self._step,
                    progress=share,
                )
            )
        except Unavailable as error:
            log.warning("progress could not be stored: %s", error.message, extra={"cycle": self._cycle_id})
        else:
            self._cancelled = self._cancelled or wished


def shown(numbers: Mapping[str, float] | None) -> str:
    """`kl 1.2 score 0.35`: three significant digits."""
    return " ".join(f"{name} {value:.3g}" for name, value in (numbers or {}).items())
