"""The promotion log of a segment: pure replay of its rows, and the moves that add one.

    promote     a new champion; what could be redone is forgotten
    rollback    back to what served before it, repeated further back; behind the first lies version 0
    rollforward undo of a rollback
    pin, unpin  the champion stays; `pin` and a rollback's hold refuse automatic promotion, `unpin` lifts both

Rows are unique in (segment, seq) and written at seq = seen + 1: whoever saw an older row collides, and that is the
conflict. It knows neither folders nor engines; who may be promoted at all is in `adapters`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from server.errors import Conflict
from server.store.ids import new_id, now
from server.store.live import newest_seq
from server.store.tables import Promotion

DEFAULT = "default"


class Move(Protocol):
    """What replaying needs of a row."""

    @property
    def kind(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def previous(self) -> int: ...


class History(NamedTuple):
    """An editor's two stacks, nearest last, and the versions that a rollback ever took away."""

    undo: tuple[int, ...]
    redo: tuple[int, ...]
    rolled_back: frozenset[int]


@dataclass(frozen=True, slots=True)
class Lane:
    """Where a segment's log stands."""

    segment: str
    champion: int = 0
    seq: int = 0
    pinned: bool = False
    held: bool = False
    since: datetime | None = None
    """When the champion began to serve."""
    has_champion: bool = False
    """Whether anything was ever promoted here; if not, `champion` is `default`'s, which serves."""


def history(rows: Iterable[Move]) -> History:
    """Replay a segment's rows, oldest first."""
    undo: list[int] = []
    redo: list[int] = []
    gone: set[int] = set()
    for row in rows:
        champion = row.previous
        match row.kind:
            case "promote":
                undo.append(champion)
                redo.clear()
            case "rollback":
                while champion != row.version:
                    redo.append(champion)
                    gone.add(champion)
                    champion = undo.pop()
            case "rollforward":
                undo.append(champion)
                redo.pop()
    return History(tuple(undo), tuple(redo), frozenset(gone))


def rows_of(session: Session, segment: str) -> list[Promotion]:
    """The segment's log, oldest first."""
    query = select(Promotion).where(Promotion.segment == segment).order_by(col(Promotion.seq))
    return list(session.exec(query))


def lane_of(session: Session, segment: str) -> Lane:
    """Where the log stands, read from its last rows; a segment that nothing was promoted in follows `default`."""
    mine = select(Promotion).where(Promotion.segment == segment)
    last = session.exec(mine.order_by(col(Promotion.seq).desc()).limit(1)).first()
    moves = mine.where(col(Promotion.kind).in_(("promote", "rollback", "rollforward")))
    moved = session.exec(moves.order_by(col(Promotion.seq).desc()).limit(1)).first()
    followed = lane_of(session, DEFAULT).champion if moved is None and segment != DEFAULT else 0
    if last is None:
        return Lane(segment, champion=followed)
    return Lane(
        segment,
        champion=moved.version if moved else followed,
        seq=last.seq,
        pinned=last.pinned,
        held=last.held,
        since=moved.created_at if moved else None,
        has_champion=moved is not None,
    )


def served_before(session: Session, segment: str, version: int) -> bool:
    """Whether somebody took over from `version` here at any time: if it serves now, it serves again."""
    source = segment if lane_of(session, segment).has_champion else DEFAULT
    query = select(Promotion.id).where(
        Promotion.segment == source, Promotion.previous == version, Promotion.version != version
    )
    return session.exec(query.limit(1)).first() is not None


def back_to(found: History, to: int | None, *, champion: int) -> int:
    """The version that a rollback leads to. Raises Conflict (`nothing_to_roll_back`, `already_champion`)."""
    if to is not None and to == champion:
        raise Conflict(f"v{to} serves here already.", code="already_champion", param="to")
    if to is None and found.undo:
        return found.undo[-1]
    if to is not None and to in found.undo:
        return to
    if to is None:
        raise Conflict("Nothing was promoted before: nothing to roll back.", code="nothing_to_roll_back")
    raise Conflict(
        f"v{to} did not serve before: nothing to roll back to.", code="nothing_to_roll_back", param="to"
    )


def forward_to(found: History) -> int:
    """The version that a roll-forward leads to. Raises Conflict (`nothing_to_roll_forward`)."""
    if not found.redo:
        raise Conflict("Nothing was rolled back: nothing to redo.", code="nothing_to_roll_forward")
    return found.redo[-1]


def held_since(session: Session, segment: str) -> int:
    """Newest feedback `seq` at the rollback that holds the segment."""
    query = select(Promotion.newest_feedback).where(
        Promotion.segment == segment, Promotion.kind == "rollback"
    )
    return session.exec(query.order_by(col(Promotion.seq).desc()).limit(1)).one()


def write_row(
    session: Session,
    lane: Lane,
    *,
    kind: str,
    version: int,
    by: str,
    reason: str,
    pinned: bool | None = None,
    held: bool | None = None,
) -> Promotion:
    """The row after the one that `lane` saw. Raises Conflict (`version_conflict`) when somebody was faster."""
    row = Promotion(
        id=new_id("prm"),
        segment=lane.segment,
        seq=lane.seq + 1,
        kind=kind,
        version=version,
        previous=lane.champion,
        pinned=lane.pinned if pinned is None else pinned,
        held=lane.held if held is None else held,
        newest_feedback=newest_seq(session),
        by=by,
        reason=reason,
        created_at=now(),
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict("Somebody else has just moved this segment.", code="version_conflict") from error
    return row
