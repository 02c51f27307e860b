"""One turn, as a page to read aloud.

    plan -> ask for room -> render -> lease the version -> open the turn (one short transaction) -> generate -> keep

Opening and generation run in tasks of their own. The one can be cut off, the other owns persistence: when a client
leaves, the framework cancels whatever serves its response, again at every await, so that task may only read a queue. No
database session is open while tokens stream. This module knows neither HTTP nor JSON.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from random import Random, SystemRandom
from typing import Any, cast

from server import pairing
from server.draft import Ask, Draft
from server.engine.base import Delta, Engine, FinishReason
from server.errors import Busy, DeadlineExceeded, HoneError, Unavailable
from server.keeping import Keeping
from server.metrics import Metrics
from server.prompts import Renderer
from server.serving import Serving
from server.store.session import Store
from server.turn import LiveReply, LiveTurn

log = logging.getLogger(__name__)
RECENT = 20_000
"""Replies and comparisons whose version is remembered for the metrics."""
RESTART_SECONDS = 5.0
"""When one who is refused by a server that stops may try again: another has started by then."""
VOTE_SECONDS = 5.0
"""How long a vote waits for the end of its reply."""


class Chat:
    """Opens turns and answers them."""

    def __init__(
        self,
        *,
        store: Store,
        serving: Serving,
        engine: Engine,
        renderer: Renderer,
        metrics: Metrics,
        reply_seconds: float = 0,
    ) -> None:
        self.store = store
        self.serving = serving
        self.engine = engine
        self.renderer = renderer
        self.metrics = metrics
        self.reply_seconds = reply_seconds
        self.dice: Random = SystemRandom()
        self.stopping = False
        """Whether new turns are refused because this server ends."""
        self.is_cut = False
        """Whether what was begun has been told to end, too."""
        self._keeping = Keeping(store)
        self._live: dict[str, LiveTurn] = {}
        self._running: set[LiveTurn] = set()
        self._writers: OrderedDict[str, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        """All that may still bring something into the record."""
        self._openings: set[asyncio.Task[LiveTurn]] = set()
        self._promised: Counter[str] = Counter()
        """Replies of each who that were promised a place and have not yet asked the engine for it."""

    async def begin(self, ask: Ask) -> LiveTurn:
        """Open a turn and start to answer it: its rows stand before its first token.

        A full engine refuses before anything is written: a storm of requests must not fill the record. Raises
        DeadlineExceeded when opening alone takes as long as the whole reply may, Unavailable when the server ends.
        """
        if self.stopping:
            raise _stopping("The server is stopping; ask again in a moment.")
        limit = self.reply_seconds or None
        opening = asyncio.create_task(self._open(ask, began=asyncio.get_running_loop().time()))
        self._openings.add(opening)
        opening.add_done_callback(self._opened)
        try:
            await asyncio.wait({opening}, timeout=limit)
        finally:
            is_late = not opening.done()
            opening.cancel()  # nothing, when it has come to its end
        if is_late:
            log.warning("a turn took too long to open", extra={"segment": ask.segment})
            raise DeadlineExceeded(f"The reply was not begun within {limit:g} s.")
        if opening.cancelled():
            raise _stopping("The server stopped before this reply was begun.")
        return opening.result()

    def _opened(self, opening: asyncio.Task[LiveTurn]) -> None:
        self._openings.discard(opening)
        if not opening.cancelled():
            opening.exception()  # seen: whoever asked may have gone meanwhile

    async def _open(self, ask: Ask, *, began: float) -> LiveTurn:
        post = await self.serving.post(ask.segment)
        version = post.version if ask.pinned is None else ask.pinned
        plan = pairing.plan(
            pairing.Wishes(
                version=version,
                temperature=ask.temperature,
                candidates=ask.candidates,
                n=ask.n,
                seed=ask.seed,
                pinned=ask.pinned is not None,
            ),
            post.wanted.pairing,
            self.dice,
        )
        self.engine.must_admit(len(plan.draws), who=ask.who, promised=self._promised)
        self._promise(ask.who, len(plan.draws))
        try:
            draft = await asyncio.to_thread(Draft.of, ask, plan, self.renderer)
            await self.serving.hold(version)
            try:
                turn = await self._written(draft)
                turn.deadline = began + self.reply_seconds if self.reply_seconds else None
                self._answer_soon(turn, version)
            except BaseException:
                self.serving.release(version)
                raise
        except BaseException:
            self._promise(ask.who, -len(plan.draws))
            raise
        return turn

    async def _written(self, draft: Draft) -> LiveTurn:
        """The turn once its rows stand. If it is given up meanwhile, no reply is left that seems to be written."""

        async def write() -> LiveTurn:
            return draft.live(await self.store.write_async(draft.write))

        async def put_away() -> None:
            with suppress(HoneError):
                await self._keeping.later(await writing)

        writing = asyncio.ensure_future(write())
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._spawn(put_away())
            raise

    def _answer_soon(self, turn: LiveTurn, version: int) -> None:
        """Nothing is awaited from here to the first step of the answer: the lease and the places go over to it."""
        turn.stamp = self.serving.stamp(version)
        for name in turn.names:
            self._live[name] = turn
            self._writers[name] = version
        while len(self._writers) > RECENT:
            self._writers.popitem(last=False)
        self._running.add(turn)
        turn.task = self._spawn(self._answer(turn, version))

    async def settled(self, target_id: str) -> None:
        """A vote may race the end of its reply: give the reply a moment to be stored."""
        turn = self._live.get(target_id)
        if turn is not None and turn.task is not None and not turn.has_kept(target_id):
            await asyncio.wait({turn.task}, timeout=VOTE_SECONDS)

    def writer(self, target_id: str) -> str:
        """Which version wrote what a vote is about, for counting; known for what this process wrote of late."""
        return str(self._writers.get(target_id, "unknown"))

    # --- ending --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Open no turn from now on. Only a flag, so that a signal's handler may set it."""
        self.stopping = True

    async def drain(self, limit: float) -> None:
        """Let what was begun end within `limit` seconds; cut off the rest and keep what there is of it.

        Replies that only wait for the record use none of that time up: they are offered until nobody is written any
        more, and once again then.
        """
        self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._running or self._openings:
                    await self._wait()
        await self.close()

    def cut(self) -> None:
        """End what is being opened or written. Returns at once; replies are kept as they are, their readers told why.

        Called again it also ends what openings do to clean up behind them, be it at a server that has fallen silent.
        """
        self.is_cut = True
        self._keeping.give_up()
        for opening in list(self._openings):
            opening.cancel()
        for turn in list(self._running):
            turn.cancel(
                _stopping("The server stopped before this reply was finished; what was written is kept.")
            )

    async def close(self) -> None:
        """Cut off what is still opened or written, and keep what there is of it."""
        self.stop()
        self.cut()
        while self._tasks or self._openings:
            await self._wait()
            self.cut()

    async def _wait(self) -> None:
        """For tasks to end, but not long: others may come out of what is being opened."""
        await asyncio.wait({*self._tasks, *self._openings}, timeout=0.1)

    def _promise(self, who: str, replies: int) -> None:
        self._promised[who] += replies
        if not self._promised[who]:
            del self._promised[who]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- answering -----------------------------------------------------------------------------------------

    async def _answer(self, turn: LiveTurn, version: int) -> None:
        """Write all replies of a turn, and leave the record whole however it ends."""
        self._promise(turn.who, -len(turn.replies))  # nothing is awaited before the engine's own count
        error = await self._outcome(turn, version)
        try:
            await self._keeping.rest(turn)
        except HoneError as problem:
            error = error or problem
            self._spawn(self._keeping.later(turn))
        except Exception:
            log.exception("a reply could not be stored", extra={"turn": turn.id, "version": version})
            error = error or Unavailable("The reply could not be stored.", code="not_stored")
            self._spawn(self._keeping.later(turn))
        finally:
            self.serving.release(version)
            self._running.discard(turn)
            for name in turn.names:
                self._live.pop(name, None)
            self._count(turn)
            turn.end(error)

    async def _outcome(self, turn: LiveTurn, version: int) -> HoneError | None:
        """Write all replies; what their reader must be told if they did not come to their end."""
        limit = asyncio.timeout_at(turn.deadline)
        try:
            async with limit:
                await self._write_replies(turn)
        except asyncio.CancelledError:
            for reply in turn.replies:
                reply.finish_reason = reply.finish_reason or FinishReason.CANCELLED
            return turn.cut or Unavailable("The reply was cancelled.", code="cancelled")
        except HoneError as problem:
            return problem
        except Exception:
            if limit.expired():
                log.warning("a reply took too long", extra={"turn": turn.id, "version": version})
                return DeadlineExceeded(
                    f"The reply took longer than {self.reply_seconds:g} s and was cut off."
                )
            log.exception("the engine failed", extra={"turn": turn.id, "version": version})
            return Unavailable("The engine failed while it wrote this reply.", code="engine_failed")
        return None

    async def _write_replies(self, turn: LiveTurn) -> None:
        """Draw the replies; a pair that came out equal gets one more throw when nobody has seen it yet."""
        began = time.monotonic()
        await self._draw(turn, sorted(turn.replies, key=lambda reply: reply.seed), began)
        if turn.equal_texts and not turn.streams:
            again = turn.replies[1].anew(1 + max(reply.seed for reply in turn.replies))
            # Both replies are whole: whatever keeps a third from being drawn (no place, no time, nobody who waits for
            # it) leaves a pair of equals, of which one is shown.
            with suppress(Busy, Unavailable, asyncio.CancelledError):
                await self._draw(turn, [again], began)
                turn.replies[1] = again

    async def _draw(self, turn: LiveTurn, replies: Sequence[LiveReply], began: float) -> None:
        """Replies of one version with neighbouring seeds, in one call, so that the engine may share their prompt."""
        first = replies[0]
        sampling = replace(turn.sampling, seed=first.seed)
        stream = self.engine.generate(turn.prompt, sampling, first.version, n=len(replies), who=turn.who)
        # Every engine is an async generator; the protocol promises only what callers iterate.
        async with aclosing(cast(AsyncGenerator[Delta, None], stream)):
            async for delta in stream:
                if not turn.moved.is_set():
                    self.metrics.first_token_seconds.observe(time.monotonic() - began)
                reply = replies[delta.index]
                reply.add(delta, remember=turn.keep_deltas)
                if delta.finish_reason is not None and turn.streams:
                    await self._keeping.ended(turn, reply)
                turn.push(reply, delta)

    def _count(self, turn: LiveTurn) -> None:
        self.metrics.prompt_tokens.inc(turn.prompt_tokens)
        for reply in turn.replies:
            self.metrics.reply_tokens.labels(reply.version).inc(len(reply.token_ids))
            self.metrics.replies.labels(reply.version, reply.purpose.value, reply.state).inc()


def _stopping(message: str) -> Unavailable:
    return Unavailable(message, code="stopping", retry_after=RESTART_SECONDS)
