"""What was written goes into the record: a reply when it ends, the rest with its turn, later when the record was away.

Nothing here knows who asked, engines or HTTP. Writing the same reply twice changes nothing: a reply ends once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sqlmodel import Session

from server.errors import HoneError
from server.store import conversations
from server.store.session import Store
from server.turn import LiveReply, LiveTurn

log = logging.getLogger(__name__)
AGAIN_SECONDS = 1.0
"""How soon a reply that the record could not take is offered again; then ever less often, up to the longest pause."""
LONGEST_PAUSE = 30.0


class Keeping:
    """Writes live turns into the record."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._over = asyncio.Event()

    async def ended(self, turn: LiveTurn, reply: LiveReply) -> None:
        """Store a reply before its last chunk is sent, so that a vote on what has ended finds it."""
        reply.is_last = all(other.finish_reason is not None for other in turn.replies)
        await asyncio.shield(self._keep(turn, [reply], over=reply.is_last))

    async def rest(self, turn: LiveTurn) -> None:
        """Write what is not yet written of a turn that is over. Who is cancelled meanwhile still learns how it went."""
        missing = [reply for reply in turn.replies if not reply.kept]
        writing = asyncio.ensure_future(self._keep(turn, missing, over=True))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing

    async def later(self, turn: LiveTurn) -> None:
        """Offer a turn to the record until it is back; what it refuses for good ends as interrupted.

        Few can wait here: while the record takes nothing, no turn is opened.
        """
        pause, is_last = AGAIN_SECONDS, False
        while not is_last:
            is_last = await self._over_within(pause)
            if await self._is_taken(turn):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
        log.error(
            "the server ends and the record has never taken a reply: it is lost", extra={"turn": turn.id}
        )

    def give_up(self) -> None:
        """The server ends: what still waits for the record is offered once more, now."""
        self._over.set()

    async def _is_taken(self, turn: LiveTurn) -> bool:
        """Offer a turn; one that the record cannot hold at least as interrupted. False: it is away still."""
        for offer in (self.rest, self._interrupt):
            try:
                await offer(turn)
            except HoneError as problem:
                log.warning("a reply still cannot be stored: %s", problem.message, extra={"turn": turn.id})
                return False
            except Exception:
                log.exception("a reply cannot be stored; it ends as interrupted", extra={"turn": turn.id})
            else:
                return True
        return False

    async def _over_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    async def _keep(self, turn: LiveTurn, replies: Sequence[LiveReply], *, over: bool) -> None:
        """Write replies as they are. A pair with equal, missing or partial sides takes no pick."""
        whole = all(reply.state == "done" for reply in turn.replies)
        void = over and turn.comparison_id is not None and (turn.equal_texts or not whole)
        comparison_id = turn.comparison_id
        if not replies and not void:
            return

        def write(session: Session) -> None:
            for reply in replies:
                conversations.finish_reply(
                    session,
                    reply_id=reply.id,
                    text=reply.text,
                    token_ids=reply.token_ids,
                    logprobs=reply.logprobs,
                    state=reply.state,
                    finish_reason=reply.finish_reason.value if reply.finish_reason else None,
                    seed=reply.seed,
                )
            if void and comparison_id is not None:
                conversations.void_comparison(session, comparison_id=comparison_id)

        await self.store.write_async(write)
        if void:
            turn.comparison_id = None
        for reply in replies:
            reply.kept = True

    async def _interrupt(self, turn: LiveTurn) -> None:
        await self.store.write_async(lambda s: conversations.mark_interrupted(s, turn_id=turn.id))
