"""Which feedback counts, and for which cycle: computed from the log, never stored.

The live vote of a (user, target, kind, criterion) is the newest that was not retracted, as of any `seq` one asks
for: what was read once reads the same for ever. Knows nothing of how events are added (`feedback`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, exists, func, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from server.store.tables import Adapter, Comparison, Cycle, FeedbackEvent, Reply, Turn, Voter

LABELS = ("pick", "thumb")
"""The kinds that a cycle learns from."""
READ_BY = ("promoted", "published", "refused")
"""States of a cycle that read its votes to the end; dry runs and failures leave no trace on a receipt."""
ROUNDING = 1e-9
"""A third three times is 1, however a third is written down."""
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
    """Live picks and thumbs that may train now: with the template of the newest turn. `most` stops counting there."""
    through = NEWEST if through_seq is None else through_seq
    template = select(Turn.template_hash).where(Turn.segment == segment)
    spoken = session.exec(template.order_by(col(Turn.created_at).desc()).limit(1)).first()
    query = select(FeedbackEvent.seq).where(
        FeedbackEvent.segment == segment,
        col(FeedbackEvent.seq) > after_seq,
        *may_train(spoken),
        is_live(through),
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


def role_of(number: int | None, *, judge_share: float) -> str:
    """`train` or `judge`: which half of a cycle hears the voice that came to vote after `number` others.

    Of three in a row the third judges, for a share of a third: a toss for each of two dozen would leave anything from
    one judge to thirteen. It never changes, so who judges one cycle never trained another. Who has no number trains.
    """
    if number is None:
        return "train"
    before, after = (math.floor(n * judge_share + ROUNDING) for n in (number, number + 1))
    return "judge" if after > before else "train"


def numbers_of(session: Session, *, segment: str, user_ids: Iterable[str]) -> dict[str, int]:
    """How many had voted in the segment before each of these did; without those who have not, or have no name."""
    query = select(Voter.user_id, Voter.number).where(
        Voter.segment == segment, col(Voter.user_id).in_(list(user_ids))
    )
    return dict(session.exec(query).all())


def used_in(session: Session, event: FeedbackEvent) -> Iterator[Use]:
    """Finished cycles that read this vote, oldest first: computed from their range and filters, never stored."""
    if event.kind not in LABELS:
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
    number = numbers_of(session, segment=event.segment, user_ids=[event.user_id]).get(event.user_id)
    for cycle in cycles:
        if _was_read(session, event, cycle) and not _beyond_cap(session, event, cycle):
            role = role_of(number, judge_share=float(cycle.config["collect"]["judge_share"]))
            yield Use(cycle.id, cycle.version, role)


def _was_read(session: Session, event: FeedbackEvent, cycle: Cycle) -> bool:
    """Whether it counted for the cycle, and could train with the template that the cycle rendered with."""
    made = session.get(Adapter, cycle.version) if cycle.version else None
    template = made.manifest.get("template_hash") if made else None
    query = select(FeedbackEvent.seq).where(
        FeedbackEvent.seq == event.seq, *may_train(template), is_live(cycle.through)
    )
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
            *_says_something(),
            is_live(cycle.through),
        )
        .limit(most)
    )
    return bool(session.execute(select(func.count()).select_from(newer.subquery())).scalar_one() >= most)


def may_train(template_hash: str | None) -> tuple[ColumnElement[bool], ...]:
    """What a cycle may learn from; `learner.collect` leaves the same votes out, and counts why.

    The turn is not kept out of training and was rendered by `template_hash` (None: by any); every reply that the
    vote is about is whole and of no pinned version; a pair shows two different ones.
    """
    first, second, rated = (aliased(Reply) for _ in range(3))
    turn = [col(Turn.id) == FeedbackEvent.turn_id, col(Turn.train).is_(True)]
    if template_hash is not None:
        turn.append(col(Turn.template_hash) == template_hash)
    compared = exists().where(
        col(Comparison.id) == FeedbackEvent.target_id,
        col(Comparison.state) != "void",
        col(first.id) == Comparison.first_reply_id,
        col(second.id) == Comparison.second_reply_id,
        *_is_whole(first),
        *_is_whole(second),
    )
    liked = exists().where(col(rated.id) == FeedbackEvent.target_id, *_is_whole(rated))
    return (*_says_something(), exists().where(*turn), or_(compared, liked))


def _is_whole(reply: Any) -> tuple[ColumnElement[bool], ...]:
    return (
        col(reply.state) == "done",
        col(reply.purpose) != "pinned",
        func.json_array_length(reply.token_ids) > 0,
    )


def is_void() -> ColumnElement[bool]:
    """A pick that was taken before its pair turned out to show nothing to choose between."""
    return exists().where(col(Comparison.id) == FeedbackEvent.target_id, col(Comparison.state) == "void")


def _says_something() -> tuple[ColumnElement[bool], ...]:
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
