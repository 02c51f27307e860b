"""Replies over vLLM while they are written: its ids come in, our deltas go out.

Knows one request at one server. What a text says, and where it ends, is for `text` to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

from server.engine.base import Delta, FinishReason
from server.engine.refusals import Lost
from server.engine.replica import Piece, Replica
from server.engine.text import TextStream


class Reply:
    """One reply while it is written: vLLM's ids in, our deltas out."""

    def __init__(self, index: int, text: TextStream, stop_ids: frozenset[int]) -> None:
        self.index = index
        self.has_ended = False
        self._text = text
        self._stop_ids = stop_ids

    def take(self, piece: Piece) -> Delta | None:
        """What `piece` adds. Ids that were drawn after the end are no part of the reply."""
        said, reason, count = "", None, 0
        for token_id in piece.token_ids:
            count += 1
            if token_id in self._stop_ids:
                said, reason = said + self._text.finish(), FinishReason.STOP
            else:
                said += self._text.push(token_id)
                reason = FinishReason.STOP if self._text.stopped else None
            if reason:
                break
        if piece.ended and not reason:
            said += self._text.finish()
            is_full = piece.ended == "length" and not self._text.stopped
            reason = FinishReason.LENGTH if is_full else FinishReason.STOP
        self.has_ended = reason is not None
        if not count and reason is None:
            return None
        return Delta(
            said, piece.token_ids[:count], piece.logprobs[:count], reason, self.index, piece.tops[:count]
        )


async def deltas_of(
    replica: Replica, body: dict[str, Any], replies: Sequence[Reply], speller: Executor
) -> AsyncGenerator[Delta, None]:
    """The replies of one request to one server. Raises as `Replica.complete` does.

    Text is made on a thread of `speller`'s: a tokenizer holds nobody up who waits for the event loop.
    """
    loop, drawn = asyncio.get_running_loop(), body["n"]
    going_on = set(range(drawn))  # those that the server itself has not ended
    async with aclosing(replica.complete(body)) as pieces:
        async for piece in pieces:
            if piece.ended:
                going_on.discard(piece.index)
            for reply in replies[piece.index :: drawn]:
                if not reply.has_ended and (delta := await loop.run_in_executor(speller, reply.take, piece)):
                    yield delta
            if going_on and all(reply.has_ended for reply in replies):
                return  # a stop string was met: closing the stream cancels the rest of it there
    if not all(reply.has_ended for reply in replies):
        raise Lost("it ended a stream without ending its replies", reached=True)
