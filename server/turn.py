"""A turn while it is answered: what has been written so far, and who waits for the rest.

One task writes (`server.chat`), one reads (a response); between them is a queue. It knows neither engines' insides,
the store nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NamedTuple

from server import pairing
from server.engine.base import Delta, FinishReason, Prompt, Sampling
from server.errors import HoneError

KEEP_ALIVE_SECONDS = 15.0
ADMISSION_SECONDS = 0.2
"""How long a stream's headers wait, so that a full queue is still an honest 429."""


@dataclass(slots=True)
class LiveReply:
    """One reply while it is written."""

    id: str
    position: int
    version: int
    seed: int
    purpose: pairing.Purpose
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    kept: bool = False
    is_last: bool = False
    """Whether every other reply of its turn had ended before it."""

    def add(self, delta: Delta, *, remember: bool) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if remember:
            self.deltas.append(delta)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason

    def anew(self, seed: int) -> LiveReply:
        """The same reply before its first token, to be drawn with another seed."""
        return LiveReply(self.id, self.position, self.version, seed, self.purpose)

    @property
    def state(self) -> str:
        if self.finish_reason is None:
            return "interrupted"
        return "cancelled" if self.finish_reason is FinishReason.CANCELLED else "done"


class Piece(NamedTuple):
    """What one step added to one reply."""

    reply: LiveReply
    delta: Delta


@dataclass(slots=True, eq=False)
class LiveTurn:
    """A turn while it is answered. Whoever shows it reads `batches()` or awaits `finished()`."""

    id: str
    conversation_id: str
    segment: str
    model: str
    comparison_id: str | None
    truncated: bool
    prompt: Prompt
    sampling: Sampling
    stamp: str
    created: int
    streams: bool
    keep_deltas: bool
    replies: list[LiveReply]
    was_pair: bool
    who: str = ""
    """Whose turn it is to the engine, which serves one who after the other."""
    deadline: float | None = None
    """When it must have ended, by the event loop's clock."""
    task: asyncio.Task[None] | None = None
    error: BaseException | None = None
    cut: HoneError | None = None
    """Why it was cancelled, when not because its client has left."""
    queue: asyncio.Queue[Piece | None] = field(default_factory=asyncio.Queue)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first token, or with the end when there is none."""
    names: list[str] = field(init=False)
    """Every id that a vote may name while the turn is live."""

    def __post_init__(self) -> None:
        ids = [reply.id for reply in self.replies]
        self.names = ids if self.comparison_id is None else [*ids, self.comparison_id]

    def has_kept(self, name: str) -> bool:
        """Whether the record holds the end of what a vote names; a comparison ends with its turn."""
        return any(reply.id == name and reply.kept for reply in self.replies)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def shown(self) -> list[LiveReply]:
        """A pair whose texts came out equal shows one."""
        return self.replies[:1] if self.was_pair and self.comparison_id is None else self.replies

    @property
    def equal_texts(self) -> bool:
        return self.was_pair and self.replies[0].text == self.replies[1].text

    def push(self, reply: LiveReply, delta: Delta) -> None:
        self.moved.set()
        if self.streams:
            self.queue.put_nowait(Piece(reply, delta))

    def end(self, error: BaseException | None) -> None:
        self.error = error
        self.moved.set()
        self.queue.put_nowait(None)

    def cancel(self, because: HoneError | None = None) -> None:
        """The client has left, or `because`. Returns at once; the task keeps what was written."""
        if self.task is not None and not self.task.done() and not self.task.cancelling():
            self.cut = because
            self.task.cancel()

    async def admitted(self) -> None:
        """Wait briefly for the first token. Raises what stopped the turn before it had begun."""
        try:
            async with asyncio.timeout(ADMISSION_SECONDS):
                await self.moved.wait()
        except TimeoutError:
            return
        if self.error is not None and not any(reply.token_ids for reply in self.replies):
            raise self.error

    async def finished(self) -> None:
        """Wait for the end. Raises what went wrong."""
        while await self.queue.get() is not None:
            pass
        if self.error is not None:
            raise self.error

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """All pieces in order, as many at a time as there are; an empty list when nothing came for a while."""
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    item = await self.queue.get()
            except TimeoutError:
                yield []
                continue
            batch = []
            while item is not None:
                batch.append(item)
                if self.queue.empty():
                    break
                item = self.queue.get_nowait()
            if batch:
                yield batch
            if item is None:
                return
