"""The registry: segments, published versions, and who may serve where.

Every move of a champion is one row of the promotion log (`promotions` replays it). Folders are `server.artifacts`'s,
loading is `server.serving`'s; here stand the facts and the rules.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from server.errors import Conflict, NotFound
from server.store import promotions
from server.store.ids import now
from server.store.live import LABELS, count_live_votes, is_live
from server.store.paging import page
from server.store.promotions import DEFAULT, Lane, history, served_before
from server.store.tables import Adapter, AdapterCheck, Counter, FeedbackEvent, Promotion, Reply, Segment

__all__ = [
    "Adapter", "Lane", "adapter_state", "checks", "ensure_segment", "expect", "get_adapter", "has_segment", "history",
    "lane", "lineage", "list_adapters", "list_promotions", "list_segments", "may_answer", "pin", "promote",
    "record_check", "register", "reserve_version", "rollback", "rollforward", "served_before",
    "serving_version", "unpin", "update_segment", "votes_on",
]  # fmt: skip
HELD_VOTES = 300
"""Live votes after a rollback that a version must have been trained on, to be promoted without an `unpin`."""
REJECTED = "rejected"


# --- segments ----------------------------------------------------------------------------------------------


def ensure_segment(session: Session, name: str) -> Segment:
    """The segment, made with the usual policies when new."""
    row = session.get(Segment, name)
    if row is None:
        row = Segment(
            name=name,
            pairing={"share": 0.2, "min_temperature": 0.7},
            objectives={"votes": 1.0},
            created_at=now(),
        )
        session.add(row)
        session.flush()
    return row


def has_segment(session: Session, name: str) -> bool:
    return session.get(Segment, name) is not None


def list_segments(session: Session) -> list[Segment]:
    return list(session.exec(select(Segment).order_by(col(Segment.name))))


def update_segment(session: Session, name: str, **changes: Any) -> Segment:
    """Change policies; a partial `pairing` keeps what it does not name. Raises NotFound (`unknown_segment`)."""
    row = _segment(session, name)
    for field, value in changes.items():
        assert field in {"rollout", "pairing", "length", "objectives"}, field
        setattr(row, field, {**row.pairing, **value} if field == "pairing" else value)
    session.add(row)
    session.flush()
    return row


def lane(session: Session, segment: str) -> Lane:
    """Where the segment's log stands. Raises NotFound (`unknown_segment`)."""
    _segment(session, segment)
    return promotions.lane_of(session, segment)


def serving_version(session: Session, segment: str) -> int:
    """The version that should answer: the segment's champion, or `default`'s when it never had one."""
    return lane(session, segment).champion


# --- versions ----------------------------------------------------------------------------------------------


def reserve_version(session: Session, *, name: str = "adapter_version") -> int:
    """The next number, never given twice in this installation."""
    count = (
        update(Counter)
        .where(col(Counter.name) == name)
        .values(value=Counter.value + 1)
        .returning(col(Counter.value))
    )
    return int(session.connection().execute(count).scalar_one())


def register(
    session: Session,
    *,
    version: int,
    segment: str,
    parent: int,
    cycle_id: str | None,
    path: str,
    manifest: dict[str, Any],
    manifest_sha256: str,
    passed: bool,
    trained_through: int = 0,
) -> Adapter:
    """Enter a published folder; the same again changes nothing. Raises Conflict (`version_taken`)."""
    known = session.get(Adapter, version)
    if known is not None:
        if known.manifest_sha256 != manifest_sha256:
            raise Conflict(f"v{version} is another adapter already.", code="version_taken")
        return known
    row = Adapter(
        version=version,
        segment=_segment(session, segment).name,
        parent=parent,
        cycle_id=cycle_id,
        path=path,
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        passed=passed,
        trained_through=trained_through,
        created_at=now(),
    )
    session.add(row)
    session.flush()
    return row


def get_adapter(session: Session, version: int) -> Adapter:
    """Raises NotFound (`unknown_version`)."""
    row = session.get(Adapter, version)
    if row is None:
        raise NotFound(f"There is no version {version}.", code="unknown_version", param="version")
    return row


def may_answer(session: Session, version: int, *, segment: str) -> bool:
    """Whether a version is known and the segment's own or `default`'s; the bare base is everybody's."""
    row = session.get(Adapter, version)
    return version == 0 if row is None else row.segment in (segment, DEFAULT)


def list_adapters(session: Session, *, segment: str | None = None) -> list[Adapter]:
    """Newest first."""
    query = select(Adapter).order_by(col(Adapter.version).desc())
    return list(session.exec(query if segment is None else query.where(Adapter.segment == segment)))


def adapter_state(session: Session, row: Adapter) -> str:
    """`champion` (of any segment), `retired` (was one), `rejected` (by the gate or a server) or `candidate`.

    One that was promoted but that every server refused to load never served: it is not retired.
    """
    named = session.exec(select(Promotion.segment).where(Promotion.version == row.version).distinct()).all()
    if any(promotions.lane_of(session, segment).champion == row.version for segment in named):
        return "champion"
    if named and {check.outcome for check in checks(session, row.version)} != {REJECTED}:
        return "retired"
    return REJECTED if not row.passed or _was_rejected(session, row.version) else "candidate"


def lineage(session: Session, version: int) -> list[int]:
    """The versions it was trained on from, nearest first, ending with 0."""
    line: list[int] = []
    while version != 0:
        version = get_adapter(session, version).parent
        line.append(version)
    return line


def record_check(session: Session, *, version: int, outcome: str, detail: str) -> AdapterCheck:
    """What a server found when it loaded the version."""
    row = AdapterCheck(version=version, outcome=outcome, detail=detail, at=now())
    session.add(row)
    session.flush()
    return row


def checks(session: Session, version: int) -> list[AdapterCheck]:
    """Newest first."""
    query = select(AdapterCheck).where(AdapterCheck.version == version)
    return list(session.exec(query.order_by(col(AdapterCheck.id).desc())))


def votes_on(session: Session, version: int) -> dict[str, int]:
    """How its own replies are liked: live thumbs by value, and live picks on pairs whose sides it wrote."""
    wrote = select(Reply.turn_id).where(Reply.version == version)
    query = (
        select(FeedbackEvent.kind, FeedbackEvent.value, func.count())
        .where(
            col(FeedbackEvent.turn_id).in_(wrote),
            col(FeedbackEvent.kind).in_(LABELS),
            is_live(),
        )
        .group_by(col(FeedbackEvent.kind), col(FeedbackEvent.value))
    )
    return {f"{kind}_{value}": count for kind, value, count in sorted(session.exec(query))}


# --- moves -------------------------------------------------------------------------------------------------


def promote(
    session: Session,
    *,
    segment: str,
    version: int,
    by: str,
    reason: str,
    expecting: int | None = None,
    automatic: bool = False,
) -> Promotion:
    """Make `version` the champion.

    Raises NotFound (`unknown_version`, `unknown_segment`) and Conflict: `version_conflict` when the champion is not
    the one that was expected, `already_champion`, `version_rejected`; an automatic one also `segment_pinned` and
    `segment_held`.
    """
    expect(session, segment, expecting)
    seen = lane(session, segment)
    if seen.has_champion and version == seen.champion:
        raise Conflict(f"v{version} serves here already.", code="already_champion")
    _refuse_strangers(session, segment, version)
    if automatic:
        assert expecting is not None, "an automatic promotion names the champion it was judged against"
        _refuse_automatic(session, seen, version)
    held = False if automatic else seen.held
    return promotions.write_row(
        session, seen, kind="promote", version=version, by=by, reason=reason, held=held
    )


def expect(session: Session, segment: str, champion: int | None) -> None:
    """Refuse a move that was decided upon with another version in view. Raises Conflict (`version_conflict`)."""
    serving = serving_version(session, segment)
    if champion not in (None, serving):
        raise Conflict(f"v{serving} serves here now, not v{champion}.", code="version_conflict")


def rollback(session: Session, *, segment: str, by: str, reason: str, to: int | None = None) -> Promotion:
    """Back to what served before, or to the version `to` that did; holds the segment.

    Raises Conflict (`nothing_to_roll_back`, `already_champion`).
    """
    seen = lane(session, segment)
    found = history(promotions.rows_of(session, segment))
    target = promotions.back_to(found, to, champion=seen.champion)
    return promotions.write_row(
        session, seen, kind="rollback", version=target, by=by, reason=reason, held=True
    )


def rollforward(session: Session, *, segment: str, by: str, reason: str) -> Promotion:
    """Undo the last rollback; the hold stays. Raises Conflict (`nothing_to_roll_forward`)."""
    seen = lane(session, segment)
    target = promotions.forward_to(history(promotions.rows_of(session, segment)))
    return promotions.write_row(session, seen, kind="rollforward", version=target, by=by, reason=reason)


def pin(session: Session, *, segment: str, by: str, reason: str) -> Promotion:
    """Nothing is promoted automatically until `unpin`."""
    seen = lane(session, segment)
    return promotions.write_row(
        session, seen, kind="pin", version=seen.champion, by=by, reason=reason, pinned=True
    )


def unpin(session: Session, *, segment: str, by: str, reason: str) -> Promotion:
    """Lift pin and hold."""
    seen = lane(session, segment)
    return promotions.write_row(
        session, seen, kind="unpin", version=seen.champion, by=by, reason=reason, pinned=False, held=False
    )


def list_promotions(
    session: Session, *, segment: str | None = None, cursor: str | None = None, limit: int = 100
) -> tuple[list[Promotion], str | None]:
    """Newest first, and the cursor of the next page."""
    query = select(Promotion)
    if segment is not None:
        query = query.where(Promotion.segment == segment)
    return page(session, query, at=Promotion.created_at, key=Promotion.id, cursor=cursor, limit=limit)


def _refuse_strangers(session: Session, segment: str, version: int) -> None:
    """What nobody may promote, operators included."""
    if not may_answer(session, version, segment=segment):
        raise NotFound(f"{segment!r} has no version {version}.", code="unknown_version", param="version")
    if _was_rejected(session, version):
        raise Conflict(f"v{version} was rejected by the server that loaded it.", code="version_rejected")


def _refuse_automatic(session: Session, seen: Lane, version: int) -> None:
    """What only an operator may promote."""
    if seen.pinned:
        raise Conflict("The segment is pinned.", code="segment_pinned")
    row = get_adapter(session, version)
    if not row.passed:
        raise Conflict(f"v{version} was refused by the gate.", code="version_rejected")
    if version in history(promotions.rows_of(session, seen.segment)).rolled_back:
        raise Conflict(
            f"v{version} was rolled back; only an operator brings it back.", code="version_rejected"
        )
    if not seen.held:
        return
    newer = count_live_votes(
        session,
        segment=seen.segment,
        after_seq=promotions.held_since(session, seen.segment),
        through_seq=row.trained_through,
        most=HELD_VOTES,
    )
    if newer < HELD_VOTES:
        raise Conflict(
            "The segment is held since a rollback: unpin it, or wait for more votes.", code="segment_held"
        )


def _was_rejected(session: Session, version: int) -> bool:
    newest = checks(session, version)[:1]
    return bool(newest) and newest[0].outcome == REJECTED


def _segment(session: Session, name: str) -> Segment:
    row = session.get(Segment, name)
    if row is None:
        raise NotFound(f"There is no segment {name!r}.", code="unknown_segment", param="segment")
    return row
