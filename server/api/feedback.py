"""Votes and everything else that users say about replies. A 201 means that it is on disk.

No learner is called and nothing waits in memory: a vote is one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from sqlmodel import Session

from server.api import envelope
from server.api.deps import Operator, Parts, PartsDep, Rating, needs_feedback
from server.api.schemas import (
    AnyFeedback,
    EditBody,
    FeedbackBody,
    Moment,
    PickBody,
    RatingBody,
    SignalBody,
    ThumbBody,
)
from server.callers import Caller
from server.errors import Invalid
from server.store import conversations, feedback

router = APIRouter(tags=["feedback"])
LONGEST_KEY = 255
FEEDBACK: TypeAdapter[FeedbackBody] = TypeAdapter(AnyFeedback)


def inlined(schema: Any, named: dict[str, Any]) -> Any:
    """A JSON schema without references: those of pydantic do not resolve inside an OpenAPI document."""
    if isinstance(schema, list):
        return [inlined(part, named) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(named[schema["$ref"].rpartition("/")[2]], named)
    return {
        name: inlined(part, named) for name, part in schema.items() if name not in {"$defs", "discriminator"}
    }


SCHEMA = inlined(FEEDBACK.json_schema(), FEEDBACK.json_schema()["$defs"])


@router.post(
    "/v1/feedback",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": SCHEMA}}}},
)
async def give(request: Request) -> Response:
    """Store what a user said about a reply, a pair or a conversation.

    The busiest route: it reads its request by itself, because the framework's way costs as much as the vote.
    """
    parts: Parts = request.state.parts
    caller = await needs_feedback(request)
    body = read_body(await request.body())
    idempotency_key = read_idempotency_key(request, caller)
    new = to_new(body)
    user = caller.speaks_for(body.user)
    await parts.chat.settled(new.target_id)

    def append(session: Session) -> dict[str, Any]:
        user_id = (
            None if user is None else conversations.find_user(session, client_id=caller.client_id, name=user)
        )
        return first_answer(feedback.append(session, client_id=caller.client_id, user_id=user_id, body=new))

    def append_once(session: Session) -> tuple[dict[str, Any], bool]:
        if idempotency_key is None:
            return append(session), False
        digest = hashlib.sha256(f"{user}\n{body.model_dump_json()}".encode()).hexdigest()
        return feedback.idempotent(
            session,
            client_id=caller.client_id,
            key=idempotency_key,
            body_hash=digest,
            make=lambda: append(session),
        )

    answer, replayed = await parts.store.write_async(append_once)
    if not replayed:
        parts.metrics.votes.labels(new.kind, new.value or "", parts.chat.writer(new.target_id)).inc()
    headers = {"Idempotent-Replay": "true"} if replayed else None
    return envelope.answer(answer, status=201, headers=headers)


def read_body(raw: bytes) -> FeedbackBody:
    """Raises what the framework raises for its own bodies, so that it leaves in the same envelope."""
    try:
        return FEEDBACK.validate_json(raw)
    except ValidationError as error:
        raise RequestValidationError(_without_tags(error.errors(include_url=False))) from None


def _without_tags(problems: Sequence[Any]) -> list[dict[str, Any]]:
    """A field's place is `value`, not `thumb.value`: the kind is how pydantic finds the right model."""
    without = {"union_tag_not_found": "missing", "union_tag_invalid": "literal_error"}
    return [
        dict(problem) | {"type": without[problem["type"]], "loc": ("body", "kind")}
        if problem["type"] in without
        else dict(problem) | {"loc": ("body", *problem["loc"][1:])}
        for problem in problems
    ]


def read_idempotency_key(request: Request, caller: Caller) -> str | None:
    """The caller's own: browsers of one client do not know each other's. Raises Invalid for one of a wrong length."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= LONGEST_KEY:
        raise Invalid(f"Idempotency-Key takes 1 to {LONGEST_KEY} characters", param="Idempotency-Key")
    if key is None or caller.user is None:
        return key
    return hashlib.sha256(f"{caller.user}\n{key}".encode()).hexdigest()


def to_new(body: FeedbackBody) -> feedback.NewFeedback:
    """The body in the record's words. Raises Invalid for a rating of nothing, or of two things."""
    shared: dict[str, Any] = {"comment": body.comment, "tags": tuple(body.tags)}
    match body:
        case PickBody():
            return feedback.NewFeedback(
                kind="pick",
                target_kind="comparison",
                target_id=body.comparison_id,
                value=body.value,
                criterion=body.criterion,
                seconds=body.seconds,
                **shared,
            )
        case ThumbBody():
            return feedback.NewFeedback(
                kind="thumb", target_kind="reply", target_id=body.reply_id, value=body.value, **shared
            )
        case EditBody():
            return feedback.NewFeedback(
                kind="edit", target_kind="reply", target_id=body.reply_id, text=body.text, **shared
            )
        case SignalBody():
            return feedback.NewFeedback(
                kind="signal",
                target_kind="reply",
                target_id=body.reply_id,
                criterion=body.name,
                score=body.value,
                **shared,
            )
        case RatingBody():
            if (body.reply_id is None) == (body.conversation_id is None):
                raise Invalid("a rating is about either a reply or a conversation", param="reply_id")
            return feedback.NewFeedback(
                kind="rating",
                target_kind="reply" if body.reply_id else "conversation",
                target_id=body.reply_id or body.conversation_id or "",
                score=float(body.score),
                criterion=body.criterion,
                **shared,
            )
    raise AssertionError(f"no such feedback: {type(body).__name__}")


def first_answer(receipt: feedback.Receipt) -> dict[str, Any]:
    return {
        "id": receipt.id,
        "kind": receipt.kind,
        "status": receipt.status,
        "reason": receipt.reason,
        "created_at": receipt.created_at.isoformat(),
    }


@router.get("/v1/feedback/{feedback_id}")
async def receipt(feedback_id: str, caller: Rating, parts: PartsDep) -> Response:
    """What became of it: counted or not, and which cycles read it."""
    found = await parts.store.read_async(
        lambda session: feedback.receipt(
            session,
            client_id=caller.client_id,
            user_id=session_user(session, caller),
            feedback_id=feedback_id,
        )
    )
    used_in = [{"cycle": use.cycle, "version": use.version, "role": use.role} for use in found.used_in]
    return envelope.answer(first_answer(found) | {"used_in": used_in})


@router.delete("/v1/feedback/{feedback_id}")
async def retract(feedback_id: str, caller: Rating, parts: PartsDep) -> Response:
    """Take it back. The row stays; a later row says that it no longer counts."""
    found = await parts.store.write_async(
        lambda session: feedback.retract(
            session,
            client_id=caller.client_id,
            user_id=session_user(session, caller),
            feedback_id=feedback_id,
        )
    )
    return envelope.answer(first_answer(found))


@router.get("/v1/feedback")
async def listing(
    caller: Operator,
    parts: PartsDep,
    segment: str | None = None,
    kind: str | None = None,
    user: str | None = None,
    turn: str | None = None,
    since: Moment | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """All feedback, newest first."""
    filters = {"segment": segment, "kind": kind, "user": user, "turn_id": turn, "since": since}
    rows, next_cursor = await parts.store.read_async(
        lambda session: feedback.list_feedback(session, filters=filters, cursor=cursor, limit=limit)
    )
    return envelope.answer({"data": rows, "next_cursor": next_cursor})


def session_user(session: Session, caller: Caller) -> str | None:
    """A session sees only its own user's feedback; a key sees all of its client's."""
    if caller.user is None:
        return None
    return conversations.find_user(session, client_id=caller.client_id, name=caller.user)
