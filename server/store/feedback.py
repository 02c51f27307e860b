"""What users say about replies: an append-only log with a gapless `seq` in commit order.

The live vote of a (user, target, kind, criterion) is the newest that was not retracted. Nothing is changed here
afterwards; a retraction is a row of its own. It calls no learner: what a cycle read is computed from its range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import String, bindparam, delete, exists, func, insert, or_, tuple_, update
from sqlalchemy import select as sa_select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from server.errors import Conflict, Invalid, NotFound
from server.store.ids import new_id, now
from server.store.live import (
    LABELS,
    LiveVote,
    Use,
    count_live_votes,
    is_void,
    live_on_turn,
    live_votes,
    newest_seq,
    numbers_of,
    role_of,
    used_in,
)
from server.store.tables import (
    Comparison,
    Conversation,
    Counter,
    EndUser,
    FeedbackEvent,
    IdempotentAnswer,
    Reply,
    Turn,
    Voter,
)

__all__ = [
    "LABELS", "LiveVote", "NewFeedback", "Receipt", "Use", "append", "count_live_votes", "forget_answers",
    "idempotent", "list_feedback", "live_on_turn", "live_votes", "newest_seq", "numbers_of", "receipt", "retract",
    "role_of", "shown", "used_in",
]  # fmt: skip
PICKS = frozenset({"first", "second", "tie", "both_bad", "skip"})
THUMBS = frozenset({"up", "down"})
LONGEST_CURSOR = 18
"""Digits that every database can count to."""
VOID = "Both replies of this pair are the same, or one is not whole."


@dataclass(frozen=True, slots=True)
class NewFeedback:
    """What a user says, checked by the API's schema."""

    kind: str
    target_kind: str
    target_id: str
    value: str | None = None
    criterion: str = ""
    score: float | None = None
    text: str | None = None
    comment: str | None = None
    tags: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of it."""

    id: str
    kind: str
    status: str
    reason: str | None
    created_at: datetime
    used_in: tuple[Use, ...] = ()


class Target(NamedTuple):
    """What a feedback is about: its owner, its lane, and what allows or forbids a vote."""

    client_id: str
    user_id: str
    segment: str
    turn_id: str | None
    state: str


# Made once: at a thousand votes a second, building a statement would cost more than running it.
_REPLY = (
    sa_select(col(Turn.client_id), col(Turn.user_id), col(Turn.segment), col(Turn.id), col(Reply.state))
    .join(Reply, col(Reply.turn_id) == Turn.id)
    .where(col(Reply.id) == bindparam("target"))
)
_COMPARISON = (
    sa_select(col(Turn.client_id), col(Turn.user_id), col(Turn.segment), col(Turn.id), col(Comparison.state))
    .join(Comparison, col(Comparison.turn_id) == Turn.id)
    .where(col(Comparison.id) == bindparam("target"))
)
_CONVERSATION = sa_select(
    col(Conversation.client_id), col(Conversation.user_id), col(Conversation.segment), col(Conversation.id)
).where(col(Conversation.id) == bindparam("target"))
_COUNT = (
    update(Counter)
    .where(col(Counter.name) == "feedback_seq")
    .values(value=Counter.value + 1)
    .returning(col(Counter.value))
)
_INSERT = insert(FeedbackEvent)
_HAS_VOTED = sa_select(col(Voter.number)).where(
    col(Voter.segment) == bindparam("segment"), col(Voter.user_id) == bindparam("user_id")
)
_FIRST_VOTE = insert(Voter).from_select(
    ["segment", "user_id", "number"],
    sa_select(
        bindparam("segment", type_=String),
        col(EndUser.id),
        sa_select(func.coalesce(func.max(Voter.number) + 1, 0))
        .where(col(Voter.segment) == bindparam("segment"))
        .scalar_subquery(),
    ).where(col(EndUser.id) == bindparam("user_id"), col(EndUser.anonymous).is_(False)),
)


def append(session: Session, *, client_id: str, user_id: str | None, body: NewFeedback) -> Receipt:
    """Add one event. `user_id` None speaks for the target's owner.

    Raises NotFound for a target that is unknown or somebody else's, Conflict for a pick on a turn or reply of
    one's own (`not_a_pair`) or on a pair that takes none (`void_comparison`). The caller commits: then, and only
    then, it is kept.
    """
    _check(body)
    target = _target(session, body)
    if target is None or target.client_id != client_id or user_id not in (None, target.user_id):
        if body.kind == "pick" and _is_own_turn(session, body.target_id, client_id, user_id):
            raise Conflict("A pick needs the comparison of a pair.", code="not_a_pair", param="comparison_id")
        raise _unknown(body.target_kind, body.target_id)
    if body.kind == "pick" and target.state != "open":
        raise Conflict(f"This pair takes no pick. {VOID}", code="void_comparison")
    return _add(session, target, body)


def retract(session: Session, *, client_id: str, user_id: str | None, feedback_id: str) -> Receipt:
    """Take an event back; again changes nothing. Raises NotFound (`unknown_feedback`)."""
    event = _find(session, client_id=client_id, user_id=user_id, feedback_id=feedback_id)
    if not _is_retracted(session, event):
        target = Target(event.client_id, event.user_id, event.segment, event.turn_id, "")
        _add(session, target, NewFeedback("retraction", "feedback", event.id))
    return _receipt(event, retracted=True)


def receipt(session: Session, *, client_id: str, user_id: str | None, feedback_id: str) -> Receipt:
    """What became of an event, and which finished cycles read it. Raises NotFound (`unknown_feedback`)."""
    event = _find(session, client_id=client_id, user_id=user_id, feedback_id=feedback_id)
    retracted = _is_retracted(session, event)
    void = session.exec(select(FeedbackEvent.seq).where(FeedbackEvent.seq == event.seq, is_void())).first()
    found = _receipt(event, retracted=retracted, used_in=tuple(used_in(session, event)))
    return found if void is None or retracted else replace(found, status="quarantined", reason=VOID)


def idempotent(
    session: Session, *, client_id: str, key: str, body_hash: str, make: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The answer of the first request with this key, and whether it had been given before.

    Raises Conflict (`idempotency_conflict`) when the key came with another body. Two requests at once: the
    primary key lets one through, and the store runs the other again.
    """
    first = session.get(IdempotentAnswer, (client_id, key))
    if first is not None:
        if first.body_hash != body_hash:
            raise Conflict("This Idempotency-Key was used with another body.", code="idempotency_conflict")
        return first.answer, True
    answer = make()
    session.add(
        IdempotentAnswer(client_id=client_id, key=key, body_hash=body_hash, answer=answer, created_at=now())
    )
    session.flush()
    return answer, False


def forget_answers(session: Session, *, before: datetime, limit: int) -> int:
    """Drop the oldest answers kept for retries from before a moment, `limit` at most; how many went."""
    key = tuple_(col(IdempotentAnswer.client_id), col(IdempotentAnswer.key))
    old = (
        sa_select(col(IdempotentAnswer.client_id), col(IdempotentAnswer.key))
        .where(col(IdempotentAnswer.created_at) < before)
        .order_by(col(IdempotentAnswer.created_at))
        .limit(limit)
    )
    return session.connection().execute(delete(IdempotentAnswer).where(key.in_(old))).rowcount


def list_feedback(
    session: Session, *, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 100
) -> tuple[list[dict[str, Any]], str | None]:
    """Events newest first, and the next cursor. Filters: `segment kind user turn_id since`; None means any."""
    retraction = aliased(FeedbackEvent)
    taken_back = exists().where(
        col(retraction.target_id) == FeedbackEvent.id, col(retraction.kind) == "retraction"
    )
    query = select(FeedbackEvent, EndUser.name, taken_back, is_void()).join(
        EndUser, col(EndUser.id) == FeedbackEvent.user_id
    )
    columns: dict[str, Any] = {
        "segment": col(FeedbackEvent.segment),
        "kind": col(FeedbackEvent.kind),
        "turn_id": col(FeedbackEvent.turn_id),
        "user": col(EndUser.name),
    }
    for name, wanted in filters.items():
        if wanted is None:
            continue
        query = query.where(
            col(FeedbackEvent.created_at) >= wanted if name == "since" else columns[name] == wanted
        )
    if cursor is not None:
        if not cursor.isdecimal() or len(cursor) > LONGEST_CURSOR:
            raise Invalid("this cursor is not one of ours", param="cursor")
        query = query.where(col(FeedbackEvent.seq) < int(cursor))
    found = session.exec(query.order_by(col(FeedbackEvent.seq).desc()).limit(limit + 1)).all()
    rows = [
        shown(event)
        | {"user": user}
        | ({"status": "quarantined", "reason": VOID} if void else {})
        | ({"status": "retracted"} if gone else {})
        for event, user, gone, void in found[:limit]
    ]
    return rows, str(rows[-1]["seq"]) if len(found) > limit else None


def shown(event: FeedbackEvent) -> dict[str, Any]:
    """An event as operators see it."""
    return {
        "id": event.id,
        "seq": event.seq,
        "kind": event.kind,
        "client_id": event.client_id,
        "user_id": event.user_id,
        "segment": event.segment,
        "target_kind": event.target_kind,
        "target_id": event.target_id,
        "turn_id": event.turn_id,
        "criterion": event.criterion,
        "value": event.value,
        "score": event.score,
        "text": event.text,
        "comment": event.comment,
        "tags": event.tags,
        "seconds": event.seconds,
        "status": event.status,
        "reason": event.reason,
        "created_at": event.created_at.isoformat(),
    }


# --- rows --------------------------------------------------------------------------------------------------


def _check(body: NewFeedback) -> None:
    """The API's schema has refused anything else already."""
    match body.kind:
        case "pick":
            assert body.target_kind == "comparison", body
            assert body.value in PICKS, body
        case "thumb":
            assert body.target_kind == "reply", body
            assert body.value in THUMBS, body
        case "edit":
            assert body.target_kind == "reply", body
            assert body.text is not None, body
        case "rating":
            assert body.target_kind in ("reply", "conversation"), body
            assert body.score is not None, body
        case "signal":
            assert body.target_kind == "reply", body
            assert body.criterion, body
        case _:
            raise AssertionError(f"no such feedback: {body.kind}")


def _target(session: Session, body: NewFeedback) -> Target | None:
    """What the body is about; None when it is unknown."""
    connection = session.connection()
    named = {"target": body.target_id}
    if body.target_kind == "conversation":
        row = connection.execute(_CONVERSATION, named).first()
        return None if row is None else Target(row[0], row[1], row[2], None, "")
    query = _COMPARISON if body.target_kind == "comparison" else _REPLY
    found = connection.execute(query, named).first()
    return None if found is None else Target._make(found)


def _is_own_turn(session: Session, name: str, client_id: str, user_id: str | None) -> bool:
    """Whether a pick names the caller's own turn or reply; of somebody else's it must not learn that they exist."""
    query = select(Turn.user_id).outerjoin(Reply, col(Reply.turn_id) == Turn.id)
    query = query.where(Turn.client_id == client_id, or_(col(Turn.id) == name, col(Reply.id) == name))
    owner = session.exec(query.limit(1)).first()
    return owner is not None and user_id in (None, owner)


def _add(session: Session, target: Target, body: NewFeedback) -> Receipt:
    """The row, under the next `seq`: the counter stays locked until commit, so that is the order of commits."""
    connection = session.connection()
    seq = connection.execute(_COUNT).scalar_one()
    event_id, moment = new_id("fb"), now()
    connection.execute(
        _INSERT,
        {
            "seq": seq,
            "id": event_id,
            "kind": body.kind,
            "client_id": target.client_id,
            "user_id": target.user_id,
            "segment": target.segment,
            "target_kind": body.target_kind,
            "target_id": body.target_id,
            "turn_id": target.turn_id,
            "criterion": body.criterion,
            "value": body.value,
            "score": body.score,
            "text": body.text,
            "comment": body.comment,
            "tags": list(body.tags),
            "seconds": body.seconds,
            "status": "counted",
            "reason": None,
            "created_at": moment,
        },
    )
    if body.kind in LABELS:
        whose = {"segment": target.segment, "user_id": target.user_id}
        if connection.execute(_HAS_VOTED, whose).first() is None:
            connection.execute(_FIRST_VOTE, whose)
    return Receipt(event_id, body.kind, "counted", None, moment)


def _find(session: Session, *, client_id: str, user_id: str | None, feedback_id: str) -> FeedbackEvent:
    query = select(FeedbackEvent).where(
        FeedbackEvent.id == feedback_id,
        FeedbackEvent.client_id == client_id,
        FeedbackEvent.kind != "retraction",
    )
    if user_id is not None:
        query = query.where(FeedbackEvent.user_id == user_id)
    event = session.exec(query).first()
    if event is None:
        raise _unknown("feedback", feedback_id)
    return event


def _is_retracted(session: Session, event: FeedbackEvent) -> bool:
    query = select(FeedbackEvent.seq).where(
        FeedbackEvent.target_id == event.id, FeedbackEvent.kind == "retraction"
    )
    return session.exec(query).first() is not None


def _receipt(event: FeedbackEvent, *, retracted: bool, used_in: tuple[Use, ...] = ()) -> Receipt:
    status = "retracted" if retracted else event.status
    return Receipt(event.id, event.kind, status, event.reason, event.created_at, used_in)


def _unknown(kind: str, name: str) -> NotFound:
    return NotFound(f"There is no {kind} {name!r}.", code=f"unknown_{kind}", param=f"{kind}_id")
