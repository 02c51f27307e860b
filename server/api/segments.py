"""Segments and the moves of their champions: promote, roll back, roll forward, pin, unpin.

Every move is one row of the promotion log and one line of the audit, in the same transaction. The answer waits
a moment for the follower, to say whether the new version already serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from sqlmodel import Session

from server.api import envelope
from server.api.deps import Operator, Parts, PartsDep
from server.api.schemas import MoveBody, PromoteBody, RollbackBody, SegmentBody, SegmentName
from server.callers import Caller
from server.errors import Invalid
from server.serving import Post
from server.store import adapters, keys
from server.store.tables import Promotion, Segment

router = APIRouter(tags=["segments"])
SERVING_SECONDS = 2.0
LONGEST_VERSION = 10
"""Digits."""
IfMatch = Annotated[str | None, Header()]


@router.get("/v1/segments")
async def listing(caller: Operator, parts: PartsDep) -> Response:
    """All segments, with who serves in them."""
    rows = await parts.store.read_async(
        lambda session: [shown(session, row) for row in adapters.list_segments(session)]
    )
    posts = {post.wanted.segment: post for post in parts.serving.posts()}
    return envelope.answer(
        {"data": [row | now_serving(posts.get(row["name"])) for row in rows], "next_cursor": None}
    )


@router.put("/v1/segments/{name}")
async def put(name: SegmentName, body: SegmentBody, caller: Operator, parts: PartsDep) -> Response:
    """Make a segment, or change its policies; what the body leaves out stays."""

    def work(session: Session) -> dict[str, Any]:
        adapters.ensure_segment(session, name)
        changes = body.model_dump(exclude_none=True, exclude_unset=True)
        row = adapters.update_segment(session, name, **changes)
        keys.audit(session, actor=caller.actor, action="segment.put", target=name, detail=changes)
        return shown(session, row)

    row = await parts.store.write_async(work)
    post = await parts.serving.wait_serving(name, patience=SERVING_SECONDS)
    return envelope.answer(row | now_serving(post))


@router.post("/v1/segments/{name}/promote")
async def promote(
    name: str, body: PromoteBody, caller: Operator, parts: PartsDep, if_match: IfMatch = None
) -> Response:
    """Make a version the champion."""
    return await move(
        parts,
        caller,
        name,
        "promote",
        expected(body, if_match),
        lambda session: adapters.promote(
            session,
            segment=name,
            version=body.version,
            by=caller.actor,
            reason=body.reason,
        ),
    )


@router.post("/v1/segments/{name}/rollback")
async def rollback(
    name: str, body: RollbackBody, caller: Operator, parts: PartsDep, if_match: IfMatch = None
) -> Response:
    """Take the last promotion back, or go back to a version that served before."""
    return await move(
        parts,
        caller,
        name,
        "rollback",
        expected(body, if_match),
        lambda session: adapters.rollback(
            session, segment=name, by=caller.actor, reason=body.reason, to=body.to
        ),
    )


@router.post("/v1/segments/{name}/rollforward")
async def rollforward(
    name: str, body: MoveBody, caller: Operator, parts: PartsDep, if_match: IfMatch = None
) -> Response:
    """Undo the last rollback."""
    return await move(
        parts,
        caller,
        name,
        "rollforward",
        expected(body, if_match),
        lambda session: adapters.rollforward(session, segment=name, by=caller.actor, reason=body.reason),
    )


@router.post("/v1/segments/{name}/pin")
async def pin(
    name: str, body: MoveBody, caller: Operator, parts: PartsDep, if_match: IfMatch = None
) -> Response:
    """Nothing is promoted automatically until it is unpinned."""
    return await move(
        parts,
        caller,
        name,
        "pin",
        expected(body, if_match),
        lambda session: adapters.pin(session, segment=name, by=caller.actor, reason=body.reason),
    )


@router.post("/v1/segments/{name}/unpin")
async def unpin(
    name: str, body: MoveBody, caller: Operator, parts: PartsDep, if_match: IfMatch = None
) -> Response:
    """Let promotions happen again, after a pin or a rollback."""
    return await move(
        parts,
        caller,
        name,
        "unpin",
        expected(body, if_match),
        lambda session: adapters.unpin(session, segment=name, by=caller.actor, reason=body.reason),
    )


@router.get("/v1/promotions")
async def promotions(
    caller: Operator,
    parts: PartsDep,
    segment: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """The log, newest first."""

    def work(session: Session) -> tuple[list[dict[str, Any]], str | None]:
        rows, following = adapters.list_promotions(session, segment=segment, cursor=cursor, limit=limit)
        return [moved(row) for row in rows], following

    rows, next_cursor = await parts.store.read_async(work)
    return envelope.answer({"data": rows, "next_cursor": next_cursor})


async def move(
    parts: Parts,
    caller: Caller,
    name: str,
    action: str,
    expecting: Sequence[int],
    work: Callable[[Session], Promotion],
) -> Response:
    """Write one move and its audit line, then say whether it already serves."""

    def write(session: Session) -> dict[str, Any]:
        for champion in expecting:
            adapters.expect(session, name, champion)
        row = moved(work(session))
        keys.audit(session, actor=caller.actor, action=f"segment.{action}", target=name, detail=row)
        return row

    row = await parts.store.write_async(write)
    post = await parts.serving.wait_serving(name, patience=SERVING_SECONDS)
    return envelope.answer(row | now_serving(post, seq=row["seq"]))


def now_serving(post: Post | None, *, seq: int = 0) -> dict[str, Any]:
    """`serving` when the champion answers; otherwise `pending` says what it waits for."""
    if post is None or post.wanted.own_seq < seq:
        return {"serving": False, "pending": "the server has not read the log yet"}
    if post.serves_champion:
        return {"serving": True, "pending": None}
    return {"serving": False, "pending": post.trouble or "loading"}


def expected(body: MoveBody, if_match: str | None) -> list[int]:
    """The champion that the operator had in view, as the body and `If-Match: "12"` say it: neither may be stale.

    Raises Invalid for a header that names no version.
    """
    said = [] if body.expecting is None else [body.expecting]
    if if_match is None:
        return said
    text = if_match.strip().removeprefix("W/").strip('"').removeprefix("v")
    if not text.isdecimal() or len(text) > LONGEST_VERSION:
        raise Invalid('If-Match must name a version, as in `"12"`', param="If-Match")
    return [*said, int(text)]


def moved(row: Promotion) -> dict[str, Any]:
    """One row of the log."""
    return {
        "id": row.id,
        "segment": row.segment,
        "seq": row.seq,
        "kind": row.kind,
        "champion": row.version,
        "version": row.version,
        "previous": row.previous,
        "pinned": row.pinned,
        "held": row.held,
        "by": row.by,
        "reason": row.reason,
        "created_at": row.created_at.isoformat(),
    }


def shown(session: Session, row: Segment) -> dict[str, Any]:
    """A segment, with the state of its log."""
    lane = adapters.lane(session, row.name)
    return {
        "name": row.name,
        "champion": lane.champion,
        "since": lane.since.isoformat() if lane.since else None,
        "pinned": lane.pinned,
        "held": lane.held,
        "rollout": row.rollout,
        "pairing": row.pairing,
        "length": row.length,
        "objectives": row.objectives,
        "created_at": row.created_at.isoformat(),
    }
