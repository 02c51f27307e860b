"""One cycle as a page: collect → reward → ppo → judge → register → hand over.

Owns the order, and what happens when a step fails, is stopped, cancelled or killed. Knows nothing of what a step
computes (`learner.steps`) or of when to begin (`learner.schedule`). Each step leaves its result in the cycle's own
folder and a row in the record, fenced by the lease; a step that left its result is never run twice.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from safetensors import SafetensorError
from sqlmodel import Session

from learner import steps
from learner.schedule import AFTER_CANCEL, backoff
from learner.tenure import LeaseLost
from learner.watch import Cancelled, Stopped
from learner.work import TooFewVotes, Unfit, Work
from server.errors import Conflict, HoneError, Unavailable
from server.store import adapters, cycles
from server.store.ids import now
from server.store.tables import Cycle

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Step = Callable[[Work], dict[str, Any]]
STEPS: tuple[Step, ...] = (steps.collect, steps.reward, steps.ppo, steps.judge, steps.register)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_WORDS = re.compile(rf"\b(?:Errno|os error) (?:{errno.ENOSPC}|{errno.EDQUOT})\b")
"""As `shutil` lists it for a tree of files, and as `safetensors` writes it."""
WAITS = (5, 10, 20, 40, 60, 60, 60, 60, 120, 120)
"""Seconds between tries while the disk is full or the database away: some ten minutes. Then the cycle fails, or waits
for the next look."""
ATTEMPTS = 3
"""Processes that may end in one and the same step before the cycle is given up."""


def run_cycle(work: Work, *, steps: Sequence[Step] = STEPS, waits: Sequence[float] = WAITS) -> Cycle:
    """Take the cycle to its end and return its row; one that was begun before goes on where it stopped.

    Raises Stopped when this process is to stop, LeaseLost when another learner may be at work, and Unavailable when
    database or store stay away: the cycle stays as it is, to be resumed. Too few votes refuse it; anything else ends
    it as failed, with its reason, and serves nothing.
    """
    try:
        if work.cycle.cancel:
            raise Cancelled
        _patiently(work, _enter, waits=waits)
        for step in steps:
            _patiently(work, partial(_finish, step=step), waits=waits)
        ended = _patiently(work, _hand_over, waits=waits)
    except Stopped:
        work.folder.leave()
        log.info("stopped; the next learner goes on from here", extra={"cycle": work.cycle.id})
        raise
    except LeaseLost as lost:
        log.error("%s; the cycle is left to the next", lost.message, extra={"cycle": work.cycle.id})
        raise
    except Unavailable:
        work.folder.leave()
        raise
    except Cancelled:
        ended = _call_off(work)
    except TooFewVotes as lacking:
        ended = _end(work, Ending("refused", lacking.message))
    except Exception as error:
        if not isinstance(error, HoneError):
            log.exception("the cycle failed", extra={"cycle": work.cycle.id})
        ended = _end(work, Ending("failed", in_words(error)))
    work.folder.remove()
    log.info("%s: %s", ended.state, ended.reason, extra={"cycle": ended.id})
    return ended


def _enter(work: Work) -> None:
    """Take up the cycle's folder. Raises Unfit when the step at hand was the end of every process that tried it."""
    if work.folder.open() > ATTEMPTS:
        raise Unfit(
            f"it was the end of {ATTEMPTS} processes in a row, most likely for want of memory: a smaller base model or "
            "a machine with more memory is needed"
        )


def _finish(work: Work, *, step: Step) -> None:
    """Run `step` unless its result is there, and have its row in the record either way."""
    name = step.__name__
    done = work.folder.result(name)
    if done is None:
        work.watch.begin(name)
        started = time.monotonic()
        result = finite(step(work))
        done = {"seconds": round(time.monotonic() - started, 3), "result": result}
        work.tenure.check()
        work.folder.finish(name, done)
    work.watch.raise_if_asked()
    work.tenure.write(
        lambda session: cycles.finish_step(
            session,
            cycle_id=work.cycle.id,
            epoch=work.tenure.epoch,
            name=name,
            seconds=done["seconds"],
            metrics=done["result"].get("metrics", {}),
        )
    )


def _patiently(work: Work, part: Callable[[Work], Result], *, waits: Sequence[float]) -> Result:
    """Do a part of the cycle; while the disk is full or the database away, wait and go on from its own files."""
    for wait in waits:
        try:
            return part(work)
        except (Unavailable, OSError, SafetensorError) as error:
            if not isinstance(error, Unavailable) and not is_full(error):
                raise
            log.warning("waiting %g s: %s", wait, in_words(error), extra={"cycle": work.cycle.id})
            work.watch.pause(wait)
    return part(work)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a cycle ends: the state of its row, and why in one sentence."""

    state: str
    reason: str
    promote: int | None = None
    """The version that begins to serve with it."""
    pause: timedelta | None = None
    """How long nothing is begun by itself; after a failure it grows with each one in a row."""


def _hand_over(work: Work) -> Cycle:
    """What becomes of the candidate: the verdict first, then the segment's policy, then the log's last word."""
    registered = work.result("register")
    verdict = registered.get("verdict") or work.result("judge")["verdict"]
    if not verdict["passed"]:
        return _end(work, Ending("refused", verdict["reasons"][0]), verdict=verdict)
    if work.cycle.dry_run:
        return _end(work, Ending("rehearsed", "it passed; a dry run publishes nothing"), verdict=verdict)
    version = registered["version"]
    waits = f"v{version} passed the gate and waits for an operator"
    if work.rollout == "manual":
        manual = Ending("published", f"{waits}: the segment's rollout is manual")
        return _end(work, manual, verdict=verdict)
    serves = f"v{version} passed the gate and serves {work.cycle.segment}"
    try:
        return _end(work, Ending("promoted", serves, promote=version), verdict=verdict)
    except Conflict as conflict:
        return _end(work, Ending("published", f"{waits}: {conflict.message}"), verdict=verdict)


def _call_off(work: Work) -> Cycle:
    """An operator wants no more of it. What is in the registry by now stays there, and waits for an operator."""
    if work.folder.result("register") is not None:
        return _hand_over(work)
    return _end(work, Ending("cancelled", "cancelled by an operator", pause=AFTER_CANCEL))


def _end(work: Work, ending: Ending, *, verdict: dict[str, Any] | None = None) -> Cycle:
    """Promotion, watermark and the row's last state in one fenced transaction: all of it or nothing."""

    def end(session: Session) -> Cycle:
        if ending.promote is not None:
            _promote(session, work.cycle, ending.promote)
        row = cycles.end_cycle(
            session,
            cycle_id=work.cycle.id,
            epoch=work.tenure.epoch,
            state=ending.state,
            reason=ending.reason,
            verdict=verdict,
        )
        pause = ending.pause
        if ending.state == "failed":
            pause = backoff(_failures_in_a_row(session, row.segment))
        if pause is not None and not row.dry_run:
            cycles.update_learner_state(session, row.segment, backoff_until=now() + pause)
        return row

    return work.tenure.write(end)


def _promote(session: Session, cycle: Cycle, version: int) -> None:
    """Compare-and-set against the champion that the candidate was judged against, unless an operator said no."""
    if cycles.get_cycle(session, cycle.id, lock=True).cancel:
        raise Conflict("the cycle was cancelled.", code="cycle_cancelled")
    serving = adapters.serving_version(session, cycle.segment)
    if serving != cycle.champion:
        raise Conflict(
            f"v{serving} serves here now, it was judged against v{cycle.champion}.", code="version_conflict"
        )
    adapters.promote(
        session,
        segment=cycle.segment,
        version=version,
        by="learner",
        reason=f"cycle {cycle.id} passed the gate",
        expecting=serving,
        automatic=True,
    )


def _failures_in_a_row(session: Session, segment: str) -> int:
    rows, _ = cycles.list_cycles(session, segment=segment, limit=20)
    failures = 0
    for row in rows:
        if row.dry_run:
            continue
        if row.state != "failed":
            break
        failures += 1
    return max(1, failures)


def is_full(error: Exception) -> bool:
    """Whether the disk is full, also in the words of those who keep the number to themselves."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return isinstance(error, shutil.Error | SafetensorError) and FULL_WORDS.search(str(error)) is not None


def in_words(error: Exception) -> str:
    """A reason that an operator can act on."""
    if isinstance(error, HoneError):
        return error.message
    if is_full(error):
        return "the disk is full: free some space; the votes are kept for the next cycle"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory: a smaller base model or a machine with more memory is needed"
    return f"{type(error).__name__}: {error}"


def finite(values: Any) -> Any:
    """The same values with null where a number is not one: JSON has no word for it, and PostgreSQL refuses it."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
