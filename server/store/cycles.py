"""Learner runs: asked for, begun, stepped through, ended; and what the learner must remember between them.

Whatever the learner writes is fenced by its lease (`leases`). When to train is decided in the learner, not here.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

from sqlmodel import Session, col, select

from server.errors import Conflict, NotFound
from server.store.ids import new_id, now
from server.store.leases import (
    LEARNER,
    WATCHING,
    acquire_lease,
    assert_epoch,
    release_lease,
    renew_lease,
    seconds_left,
)
from server.store.live import READ_BY
from server.store.paging import page
from server.store.tables import Cycle, LearnerState, Segment

__all__ = [
    "acquire_lease", "assert_epoch", "begin", "cancel_cycle", "end_cycle", "finish_step", "get_cycle", "is_active",
    "learner_state", "list_cycles", "next_cycle", "release_lease", "renew_lease", "request_cycle", "set_progress",
    "training", "update_learner_state",
]  # fmt: skip
ACTIVE = ("requested", "running")
ENDED = (*READ_BY, "rehearsed", "failed", "cancelled")
"""`READ_BY` are those that move the watermark: the votes were read to the end."""


def request_cycle(session: Session, *, segment: str, by: str, dry_run: bool = False) -> Cycle:
    """Ask for a cycle. Raises Conflict (`cycle_running`) while one is asked for or running, and NotFound."""
    # Locking the segment's row lets only one of two askers through at a time (SQLite has one writer anyway).
    if session.exec(select(Segment).where(Segment.name == segment).with_for_update()).first() is None:
        raise NotFound(f"There is no segment {segment!r}.", code="unknown_segment", param="segment")
    active = next_cycle(session)
    if active is not None:
        doing = training(session, active.segment)
        waits = "" if doing.state == "running" else f"; {doing.why_not}"
        raise Conflict(f"Cycle {active.id} is {doing.state}{waits}.", code="cycle_running")
    row = Cycle(
        id=new_id("cyc"),
        segment=segment,
        state="requested",
        by=by,
        dry_run=dry_run,
        seed=secrets.randbelow(2**31),
        config={},
        steps=[],
        created_at=now(),
    )
    session.add(row)
    session.flush()
    return row


def next_cycle(session: Session) -> Cycle | None:
    """What the learner should work on: one that was begun before, else the oldest that was asked for."""
    query = select(Cycle).where(col(Cycle.state).in_(ACTIVE))
    return session.exec(
        query.order_by(col(Cycle.state).desc(), col(Cycle.created_at), col(Cycle.id)).limit(1)
    ).first()


def begin(
    session: Session,
    *,
    cycle_id: str,
    epoch: int,
    champion: int,
    since: int,
    through: int,
    config: dict[str, Any],
) -> Cycle:
    """Fix what the cycle reads and continues. One that was begun before keeps what was fixed then.

    `config` holds the learner's configuration, with `salt` beside its groups: receipts are computed from it.
    """
    row = _running(session, cycle_id, epoch)
    if row.state == "requested":
        row.state = "running"
        row.champion, row.since, row.through, row.config = champion, since, through, config
        row.started_at = now()
        session.add(row)
        session.flush()
    return row


def finish_step(
    session: Session, *, cycle_id: str, epoch: int, name: str, seconds: float, metrics: dict[str, Any]
) -> Cycle:
    """Note that a step has ended; the same step again replaces its entry."""
    row = _running(session, cycle_id, epoch)
    entry = {"name": name, "seconds": seconds, "metrics": metrics}
    row.steps = [step for step in row.steps if step["name"] != name] + [entry]
    row.step, row.progress = name, 1.0
    session.add(row)
    session.flush()
    return row


def set_progress(session: Session, *, cycle_id: str, epoch: int, step: str, progress: float) -> bool:
    """Show how far the step is. True when an operator wants the cycle to stop."""
    row = _running(session, cycle_id, epoch)
    row.step, row.progress = step, min(max(progress, 0.0), 1.0)
    session.add(row)
    session.flush()
    return row.cancel


def end_cycle(
    session: Session,
    *,
    cycle_id: str,
    epoch: int,
    state: str,
    reason: str,
    verdict: dict[str, Any] | None = None,
    version: int | None = None,
    reward_version: int | None = None,
) -> Cycle:
    """The last word, with watermark and memory in the same transaction. Only a cycle that read to its end moves it.

    A dry run leaves no trace in what the learner remembers: it must not put off the next real cycle.
    """
    assert state in ENDED, state
    row = _running(session, cycle_id, epoch)
    row.state, row.reason, row.verdict = state, reason, verdict
    row.version = row.version if version is None else version
    row.reward_version = row.reward_version if reward_version is None else reward_version
    row.finished_at = now()
    session.add(row)
    if row.dry_run:
        session.flush()
        return row
    memory = update_learner_state(session, row.segment, last_run_at=row.finished_at, next_due_at=None)
    if state in READ_BY:
        memory.watermark = max(memory.watermark, row.through)
        memory.backoff_until = None
        memory.refusals = memory.refusals + 1 if state == "refused" else 0
        session.add(memory)
    session.flush()
    return row


def cancel_cycle(session: Session, cycle_id: str) -> Cycle:
    """Wish it to stop: at once if it was not begun, else at its next checkpoint. Raises Conflict (`cycle_ended`)."""
    row = get_cycle(session, cycle_id, lock=True)
    if row.state not in ACTIVE:
        raise Conflict(f"This cycle has ended: {row.state}.", code="cycle_ended")
    row.cancel = True
    if row.state == "requested":
        row.state, row.reason, row.finished_at = "cancelled", "cancelled by an operator", now()
    session.add(row)
    session.flush()
    return row


def get_cycle(session: Session, cycle_id: str, *, lock: bool = False) -> Cycle:
    """Raises NotFound (`unknown_cycle`)."""
    query = select(Cycle).where(Cycle.id == cycle_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.exec(query).first()
    if row is None:
        raise NotFound(f"There is no cycle {cycle_id!r}.", code="unknown_cycle")
    return row


def is_active(session: Session, cycle_id: str) -> bool:
    """Whether it waits or runs; False also for one that is not known."""
    row = session.get(Cycle, cycle_id)
    return row is not None and row.state in ACTIVE


def list_cycles(
    session: Session, *, segment: str | None = None, cursor: str | None = None, limit: int = 50
) -> tuple[list[Cycle], str | None]:
    """Newest first, and the cursor of the next page."""
    query = select(Cycle)
    if segment is not None:
        query = query.where(Cycle.segment == segment)
    return page(session, query, at=Cycle.created_at, key=Cycle.id, cursor=cursor, limit=limit)


def learner_state(session: Session, segment: str) -> LearnerState:
    """What the learner remembers of a segment; a blank one, not stored, before the first cycle."""
    return session.get(LearnerState, segment) or LearnerState(segment=segment)


def update_learner_state(session: Session, segment: str, **changes: Any) -> LearnerState:
    """Change what is remembered: `last_run_at next_due_at backoff_until refusals why_not`."""
    row = learner_state(session, segment)
    for name, value in changes.items():
        assert name in LearnerState.model_fields, name
        setattr(row, name, value)
    session.add(row)
    session.flush()
    return row


class Training(NamedTuple):
    """What the learner does about a segment, and in one sentence why it does not train: for every surface."""

    state: str
    """`idle`, `requested`, `running`, or `interrupted`: begun, and no learner is at work on it."""
    why_not: str
    cycle: Cycle | None


NO_LEARNER = "no learner is running: start `hone learn`"


def training(session: Session, segment: str) -> Training:
    """As the leases tell it: a learner that has died says nothing of itself, and what it said last stands for ever."""
    newest = list_cycles(session, segment=segment, limit=1)[0]
    cycle = newest[0] if newest and newest[0].state in ACTIVE else None
    at_work = seconds_left(session, LEARNER) > 0
    state = cycle.state if cycle else "idle"
    if state == "running" and not at_work:
        state = "interrupted"
    if not at_work and not seconds_left(session, WATCHING):
        why_not = NO_LEARNER
    elif state == "running":
        why_not = "a cycle is running"
    elif cycle is not None:
        why_not = "a cycle waits for the learner's next look"
    elif at_work and next_cycle(session) is not None:
        why_not = "a cycle of another segment is running"
    else:
        why_not = learner_state(session, segment).why_not or "the learner has yet to look"
    return Training(state, why_not, cycle)


def _running(session: Session, cycle_id: str, epoch: int) -> Cycle:
    """The cycle, while the caller's lease lasts and it has not ended. Raises Conflict (`lease_lost`, `cycle_ended`)."""
    assert_epoch(session, name=LEARNER, epoch=epoch)
    row = get_cycle(session, cycle_id, lock=True)
    if row.state not in ACTIVE:
        raise Conflict(f"This cycle has ended: {row.state}.", code="cycle_ended")
    return row
