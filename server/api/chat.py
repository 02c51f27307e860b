"""Talking: chat completions, and what is kept about a turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server.api import envelope, sse
from server.api.deps import Chatting, Operator, Parts, PartsDep
from server.api.models import unknown_version
from server.api.schemas import PINNED, ChatBody
from server.callers import Caller
from server.draft import Ask
from server.errors import Forbidden, HoneError
from server.store import adapters, conversations
from server.turn import LiveTurn

router = APIRouter(tags=["chat"])
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.post("/v1/chat/completions")
async def complete(request: Request, body: ChatBody, caller: Chatting, parts: PartsDep) -> Response:
    """Answer a conversation, with one reply or two."""
    ask = to_ask(body, caller, parts)
    await refuse_strangers(ask, parts)
    turn = await parts.chat.begin(ask)
    decoder = parts.renderer if body.logprobs else None
    headers = {"X-Hone-Turn-Id": turn.id}
    if not turn.streams:
        await finish_or_leave(request, turn)
        answer = (
            sse.completion(turn, decoder=None)
            if decoder is None
            else await asyncio.to_thread(sse.completion, turn, decoder=decoder)
        )
        return envelope.answer(answer, headers=headers)
    try:
        await turn.admitted()
    except BaseException:
        turn.cancel()
        raise
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    chunks = sse.Chunks(turn, include_usage=include_usage, decoder=decoder)
    return TurnResponse(turn, chunks, headers=headers | STREAM_HEADERS)


def to_ask(body: ChatBody, caller: Caller, parts: Parts) -> Ask:
    """The request in Hone's words. Raises what its fields or its caller do not allow."""
    segment, pinned = segment_of(body, caller)
    settings = parts.settings
    metadata = body.metadata or {}
    return Ask(
        client_id=caller.client_id,
        user=caller.speaks_for(body.user) or body.safety_identifier,
        segment=segment,
        pinned=pinned,
        messages=tuple(message.plain() for message in body.messages),
        temperature=settings.temperature if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        max_tokens=body.max_completion_tokens or body.max_tokens or settings.max_tokens,
        stop=tuple(body.stop or ()),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
        keep_deltas=bool(body.logprobs),
        seed=body.seed,
        n=body.n or 1,
        candidates=body.candidates,
        conversation_id=body.conversation_id,
        train=str(metadata.get("hone_train", "true")).lower() != "false",
        stream=bool(body.stream),
    )


def segment_of(body: ChatBody, caller: Caller) -> tuple[str, int | None]:
    """`default`, or for operators `default@13`."""
    pinned = PINNED.fullmatch(body.model)
    segment = caller.lane(pinned["segment"] if pinned else body.model)
    if pinned is None:
        return segment, None
    if not caller.may("operator"):
        raise Forbidden("Naming a version needs the scope `operator`.", param="model")
    return segment, int(pinned["version"])


async def refuse_strangers(ask: Ask, parts: Parts) -> None:
    """Raises NotFound (`unknown_version`) for a named version that is unknown or another segment's."""
    version = ask.pinned
    if version is None or await parts.store.read_async(
        lambda session: adapters.may_answer(session, version, segment=ask.segment)
    ):
        return
    raise unknown_version(f"{ask.segment}@{version}")


async def finish_or_leave(request: Request, turn: LiveTurn) -> None:
    """Wait for a whole answer; a client that leaves meanwhile cancels it (the framework would not).

    Raises what went wrong, or ClientDisconnect once the partial reply is kept.
    """
    finished = asyncio.ensure_future(turn.finished())
    left = asyncio.ensure_future(until_left(request))
    try:
        await asyncio.wait({finished, left}, return_when=asyncio.FIRST_COMPLETED)
        if not finished.done():
            turn.cancel()
            with suppress(HoneError):
                await finished
            raise ClientDisconnect
        await finished
    finally:
        left.cancel()
        turn.cancel()


async def until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class TurnResponse(StreamingResponse):
    """The events of one answer. A client that leaves cancels what is still being written.

    The cancelling is here and not in the generator: one that was never begun would never come to its end.
    """

    def __init__(self, turn: LiveTurn, chunks: sse.Chunks, *, headers: dict[str, str]) -> None:
        super().__init__(stream(turn, chunks), media_type="text/event-stream", headers=headers)
        self.turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.turn.cancel()


async def stream(turn: LiveTurn, chunks: sse.Chunks) -> AsyncIterator[bytes]:
    """What is written, as it is written."""
    yield chunks.opening()
    async for batch in turn.batches():
        if not batch:
            yield sse.KEEP_ALIVE
        elif chunks.decoder is None:
            yield chunks.pieces(batch)
        else:  # a tokenizer says what each token is: that is no work for the event loop
            yield await asyncio.to_thread(chunks.pieces, batch)
    if turn.error is not None:
        yield chunks.trouble(turn.error) + sse.DONE
    else:
        yield chunks.closing()


@router.get("/v1/turns")
async def turns(
    caller: Operator,
    parts: PartsDep,
    segment: str | None = None,
    train: bool | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """What was asked, newest first; `train` chooses turns that may train, or those that were kept out of it."""
    rows, next_cursor = await parts.store.read_async(
        lambda session: conversations.list_turns(
            session, segment=segment, train=train, cursor=cursor, limit=limit
        )
    )
    return envelope.answer({"data": rows, "next_cursor": next_cursor})


@router.get("/v1/turns/{turn_id}")
async def turn_detail(turn_id: str, caller: Operator, parts: PartsDep) -> Response:
    """Everything that is kept about a turn: which weights wrote it, from which ids, and what was said of it."""
    detail = await parts.store.read_async(lambda session: conversations.turn_detail(session, turn_id=turn_id))
    return envelope.answer(detail)
