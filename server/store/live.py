"""Which feedback counts, and for which cycle: computed from the log, never stored.

The live vote of a (user, target, kind, criterion) is the newest that was not retracted, as of any `seq` one asks
for: what was read once reads the same for ever. Knows nothing of how events are added (`feedback`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, exists, func
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from server.store.tables import Cycle, FeedbackEvent, Turn

LABELS = ("pick", "thumb")
"""The kinds that a cycle learns from."""
READ_BY = ("promoted", "published", "refused")
"""States of a cycle that read its votes to the end; dry runs and failures leave no trace on a receipt."""
JUDGE_SHARE = 1 / 3
NEWEST = 2**62
"""A `seq` that no event reaches."""


@dataclass(frozen=True, slots=True)
class Use:
    """A finished cycle that read a vote; `version` is what came of it, `role` is `train` or `judge`."""

    cycle: str
    version: int | None
    role: str


class LiveVote(NamedTuple):
    """A vote that counts, as the learner reads it."""

    seq: int
    id: str
    kind: str
    target_id: str
    turn_id: str | None
    user_id: str
    criterion: str
    value: str | None
    score: float | None
    status: str
    created_at: datetime


def live_votes(
    session: Session, *, segment: str, after_seq: int = 0, through_seq: int | None = None
) -> Iterator[LiveVote]:
    """What counts in a segment as of `through_seq`, in the order of `seq`, streamed: later retractions change nothing.

    All kinds, quarantined ones too; the caller takes what it needs.
    """
    through = NEWEST if through_seq is None else through_seq
    query = (
        select(*(getattr(FeedbackEvent, name) for name in LiveVote._fields))
        .where(FeedbackEvent.segment == segment, col(FeedbackEvent.seq) > after_seq, is_live(through))
        .order_by(col(FeedbackEvent.seq))
        .execution_options(yield_per=1000)
    )
    for row in session.execute(query):
        yield LiveVote(*row)


def count_live_votes(
    session: Session,
    *,
    segment: str,
    after_seq: int = 0,
    through_seq: int | None = None,
    most: int | None = None,
) -> int:
    """Live picks and thumbs that say something and may train. `most` stops counting there."""
    through = NEWEST if through_seq is None else through_seq
    query = (
        select(FeedbackEvent.seq)
        .join(Turn, col(Turn.id) == FeedbackEvent.turn_id)
        .where(
            FeedbackEvent.segment == segment,
            col(FeedbackEvent.seq) > after_seq,
            col(Turn.train).is_(True),
            *_may_train(),
            is_live(through),
        )
    )
    counted = query.limit(most).subquery() if most is not None else query.subquery()
    return int(session.execute(select(func.count()).select_from(counted)).scalar_one())


def newest_seq(session: Session) -> int:
    """`seq` of the last event; 0 before the first."""
    return int(session.execute(select(func.coalesce(func.max(FeedbackEvent.seq), 0))).scalar_one())


def live_on_turn(session: Session, *, turn_id: str) -> list[FeedbackEvent]:
    """What counts on one turn, oldest first."""
    query = select(FeedbackEvent).where(FeedbackEvent.turn_id == turn_id, is_live())
    return list(session.exec(query.order_by(col(FeedbackEvent.seq))))


def role_of(user_id: str, *, salt: str, judge_share: float = JUDGE_SHARE) -> str:
    """`train` or `judge`: which half of a cycle hears this user. The same for the same salt, on any machine."""
    digest = hashlib.sha256(f"{salt}\n{user_id}".encode()).digest()
    return "judge" if int.from_bytes(digest[:8], "big") / 2**64 < judge_share else "train"


def used_in(session: Session, event: FeedbackEvent) -> Iterator[Use]:
    """Finished cycles that read this vote, oldest first: computed from their range and filters, never stored."""
    if event.kind not in LABELS or event.value in (None, "skip") or event.status == "quarantined":
        return
    turn = session.get(Turn, event.turn_id)
    if turn is None or not turn.train:
        return
    cycles = session.exec(
        select(Cycle)
        .where(
            Cycle.segment == event.segment,
            col(Cycle.through) >= event.seq,
            col(Cycle.state).in_(READ_BY),
            col(Cycle.dry_run).is_(False),
        )
        .order_by(col(Cycle.through), col(Cycle.id))
    )
    for cycle in cycles:
        if _was_live(session, event, through=cycle.through) and not _beyond_cap(session, event, cycle):
            collected = cycle.config.get("collect", {})
            role = role_of(
                event.user_id,
                salt=str(cycle.config.get("salt", "")),
                judge_share=float(collected.get("judge_share", JUDGE_SHARE)),
            )
            yield Use(cycle.id, cycle.version, role)


def _was_live(session: Session, event: FeedbackEvent, *, through: int) -> bool:
    query = select(FeedbackEvent.seq).where(FeedbackEvent.seq == event.seq, is_live(through))
    return session.exec(query).first() is not None


def _beyond_cap(session: Session, event: FeedbackEvent, cycle: Cycle) -> bool:
    """Whether the cycle read so many newer votes that this one no longer fitted in."""
    most = cycle.config.get("collect", {}).get("max_votes")
    if most is None or cycle.through - event.seq < most:
        return False
    newer = (
        select(FeedbackEvent.seq)
        .where(
            FeedbackEvent.segment == event.segment,
            col(FeedbackEvent.seq) > event.seq,
            *_may_train(),
            is_live(cycle.through),
        )
        .limit(most)
    )
    return bool(session.execute(select(func.count()).select_from(newer.subquery())).scalar_one() >= most)


def _may_train() -> tuple[ColumnElement[bool], ...]:
    return (
        col(FeedbackEvent.kind).in_(LABELS),
        col(FeedbackEvent.value) != "skip",
        col(FeedbackEvent.status) != "quarantined",
    )


def is_live(through: int = NEWEST) -> ColumnElement[bool]:
    """Newest of its (user, target, kind, criterion) that was not retracted, as of `through`."""
    newer, back, newer_back = (aliased(FeedbackEvent) for _ in range(3))

    def taken_back(event: Any, retraction: Any) -> ColumnElement[bool]:
        return exists().where(
            retraction.target_id == event.id, retraction.kind == "retraction", retraction.seq <= through
        )

    replaced = exists().where(
        col(newer.target_id) == FeedbackEvent.target_id,
        col(newer.user_id) == FeedbackEvent.user_id,
        col(newer.kind) == FeedbackEvent.kind,
        col(newer.criterion) == FeedbackEvent.criterion,
        col(newer.seq) > FeedbackEvent.seq,
        col(newer.seq) <= through,
        ~taken_back(newer, newer_back),
    )
    return and_(
        col(FeedbackEvent.seq) <= through,
        col(FeedbackEvent.kind) != "retraction",
        ~taken_back(FeedbackEvent, back),
        ~replaced,
    )
