"""One turn, as a page to read aloud.

    plan -> ask for room -> render -> lease the version -> open the turn (one short transaction) -> generate -> keep

Generation runs in a task of its own that owns persistence: when a client leaves, the framework cancels whatever
serves its response, again at every await, so that task may only read a queue. No database session is open
while tokens stream. This module knows neither HTTP nor JSON.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import Any, cast

from sqlmodel import Session

from server import pairing
from server.engine.base import Delta, Engine, FinishReason, Prompt, Sampling
from server.errors import HoneError, Unavailable
from server.metrics import Metrics
from server.prompts import Rendered, Renderer
from server.serving import Serving
from server.store import conversations
from server.store.session import Store
from server.turn import LiveReply, LiveTurn

log = logging.getLogger(__name__)
RECENT = 20_000
"""Replies and comparisons whose version is remembered for the metrics."""
KEEP_AGAIN_SECONDS = 1.0
"""How soon a reply that the record could not take is offered again; then ever less often, up to the longest pause."""
LONGEST_PAUSE = 30.0
VOTE_SECONDS = 5.0
"""How long a vote waits for the end of its reply."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request: who asks, what, and how it wants to be answered."""

    client_id: str
    user: str | None
    segment: str
    messages: tuple[dict[str, str], ...]
    temperature: float
    max_tokens: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    keep_deltas: bool = False
    """Whether single steps are needed afterwards, for log probabilities."""
    seed: int | None = None
    n: int = 1
    candidates: pairing.Candidates = 1
    pinned: int | None = None
    conversation_id: str | None = None
    train: bool = True
    stream: bool = False


class Chat:
    """Opens turns and answers them."""

    def __init__(
        self, *, store: Store, serving: Serving, engine: Engine, renderer: Renderer, metrics: Metrics
    ) -> None:
        self.store = store
        self.serving = serving
        self.engine = engine
        self.renderer = renderer
        self.metrics = metrics
        self.dice: Random = SystemRandom()
        self._live: dict[str, LiveTurn] = {}
        self._writers: OrderedDict[str, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = 0
        """Replies that were promised a place and have not yet asked the engine for it."""

    async def begin(self, ask: Ask) -> LiveTurn:
        """Open a turn and start to answer it: its rows stand before its first token.

        A full engine refuses before anything is written: a storm of requests must not fill the record.
        """
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
        self.engine.must_admit(self._opening + len(plan.draws))
        self._opening += len(plan.draws)
        try:
            return await self._begin(ask, plan, version)
        except BaseException:
            self._opening -= len(plan.draws)
            raise

    async def _begin(self, ask: Ask, plan: pairing.Plan, version: int) -> LiveTurn:
        """The part of opening that takes time, while its places are promised but not taken."""
        room = self.renderer.context - ask.max_tokens
        rendered = await asyncio.to_thread(self.renderer.render, ask.messages, max_prompt_tokens=room)
        sampling = self._sampling(ask, plan, rendered)
        await self.serving.hold(version)
        try:
            opened = await self.store.write_async(lambda s: self._open(s, ask, plan, rendered, sampling))
            turn = self._live_turn(ask, plan, rendered, sampling, opened)
            turn.stamp = self.serving.stamp(version)
            for name in turn.names:
                self._live[name] = turn
                self._writers[name] = version
            while len(self._writers) > RECENT:
                self._writers.popitem(last=False)
            turn.task = self._spawn(self._answer(turn, version))
        except BaseException:
            self.serving.release(version)
            raise
        return turn

    async def settled(self, target_id: str) -> None:
        """A vote may race the end of its reply: give the reply a moment to be stored."""
        turn = self._live.get(target_id)
        if turn is not None and turn.task is not None:
            await asyncio.wait({turn.task}, timeout=VOTE_SECONDS)

    def writer(self, target_id: str) -> str:
        """Which version wrote what a vote is about, for counting; known for what this process wrote of late."""
        return str(self._writers.get(target_id, "unknown"))

    async def close(self) -> None:
        """Cancel what is still written and keep it."""
        while tasks := list(
            self._tasks
        ):  # one that ends now may leave another behind, to keep its reply later
            for task in tasks:
                if not task.cancelling():
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- opening -------------------------------------------------------------------------------------------

    def _sampling(self, ask: Ask, plan: pairing.Plan, rendered: Rendered) -> Sampling:
        return Sampling(
            temperature=plan.temperature,
            top_p=ask.top_p,
            max_tokens=min(ask.max_tokens, self.renderer.context - len(rendered.token_ids)),
            stop=(*ask.stop, *self.renderer.stop_strings),
            seed=min(draw.seed for draw in plan.draws),
            top_logprobs=ask.top_logprobs,
        )

    def _open(
        self, session: Session, ask: Ask, plan: pairing.Plan, rendered: Rendered, sampling: Sampling
    ) -> conversations.OpenedTurn:
        """The one short transaction before the first token."""
        user = conversations.resolve_user(
            session, client_id=ask.client_id, name=ask.user, conversation_id=ask.conversation_id
        )
        shared = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        return conversations.open_turn(
            session,
            client_id=ask.client_id,
            user=user,
            segment=ask.segment,
            conversation_id=ask.conversation_id,
            messages=list(ask.messages),
            prompt_token_ids=list(rendered.token_ids),
            template_hash=self.renderer.template_hash,
            truncated=rendered.truncated,
            train=ask.train and ask.pinned is None,
            replies=[
                conversations.PlannedReply(
                    version=draw.version,
                    seed=draw.seed,
                    sampling=shared | {"stop": list(sampling.stop)},
                    purpose=draw.purpose.value,
                )
                for draw in plan.draws
            ],
            pairing=plan.pairing,
            propensity=plan.propensity,
        )

    def _live_turn(
        self,
        ask: Ask,
        plan: pairing.Plan,
        rendered: Rendered,
        sampling: Sampling,
        opened: conversations.OpenedTurn,
    ) -> LiveTurn:
        return LiveTurn(
            id=opened.turn_id,
            conversation_id=opened.conversation_id,
            segment=ask.segment,
            model=ask.segment if ask.pinned is None else f"{ask.segment}@{ask.pinned}",
            comparison_id=opened.comparison_id,
            truncated=rendered.truncated,
            prompt=Prompt(rendered.token_ids),
            sampling=sampling,
            stamp="",
            created=int(time.time()),
            streams=ask.stream,
            keep_deltas=ask.keep_deltas,
            replies=[
                LiveReply(reply_id, draw.position, draw.version, draw.seed, draw.purpose)
                for reply_id, draw in zip(opened.reply_ids, plan.draws, strict=True)
            ],
            was_pair=plan.is_pair,
        )

    # --- answering -----------------------------------------------------------------------------------------

    async def _answer(self, turn: LiveTurn, version: int) -> None:
        """Write all replies of a turn, and leave the record whole however it ends."""
        self._opening -= len(turn.replies)  # nothing is awaited between here and the engine's own count
        error: BaseException | None = None
        try:
            await self._write_replies(turn)
        except asyncio.CancelledError:
            for reply in turn.replies:
                reply.finish_reason = reply.finish_reason or FinishReason.CANCELLED
            error = Unavailable("The reply was cancelled.", code="cancelled")
        except HoneError as problem:
            error = problem
        except Exception:
            log.exception("the engine failed", extra={"turn": turn.id, "version": version})
            error = Unavailable("The engine failed while it wrote this reply.", code="engine_failed")
        try:
            await self._keep_rest(turn)
        except HoneError as problem:
            error = error or problem
            self._spawn(self._keep_later(turn))
        except Exception:
            log.exception("a reply could not be stored", extra={"turn": turn.id, "version": version})
            error = error or Unavailable("The reply could not be stored.", code="not_stored")
            self._spawn(self._keep_later(turn))
        finally:
            self.serving.release(version)
            for name in turn.names:
                self._live.pop(name, None)
            self._count(turn)
            turn.end(error)

    async def _write_replies(self, turn: LiveTurn) -> None:
        """Draw the replies; a pair that came out equal gets one more throw when nobody has seen it yet."""
        began = time.monotonic()
        await self._draw(turn, sorted(turn.replies, key=lambda reply: reply.seed), began)
        if turn.equal_texts and not turn.streams:
            second = turn.replies[1]
            second.begin_again(1 + max(reply.seed for reply in turn.replies))
            await self._draw(turn, [second], began)

    async def _draw(self, turn: LiveTurn, replies: Sequence[LiveReply], began: float) -> None:
        """Replies of one version with neighbouring seeds, in one call, so that the engine may share their prompt."""
        first = replies[0]
        sampling = replace(turn.sampling, seed=first.seed)
        stream = self.engine.generate(turn.prompt, sampling, first.version, n=len(replies))
        # Every engine is an async generator; the protocol promises only what callers iterate.
        async with aclosing(cast(AsyncGenerator[Delta, None], stream)):
            async for delta in stream:
                if not turn.moved.is_set():
                    self.metrics.first_token_seconds.observe(time.monotonic() - began)
                reply = replies[delta.index]
                reply.add(delta, remember=turn.keep_deltas)
                if delta.finish_reason is not None and turn.streams:
                    await self._keep_ended(turn, reply)
                turn.push(reply, delta)

    # --- keeping -------------------------------------------------------------------------------------------

    async def _keep_ended(self, turn: LiveTurn, reply: LiveReply) -> None:
        """Store a reply before its last chunk is sent, so that a vote on what has ended finds it."""
        reply.is_last = all(other.finish_reason is not None for other in turn.replies)
        await asyncio.shield(self._keep(turn, [reply], over=reply.is_last))

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
            self._live.pop(comparison_id or "", None)
        for reply in replies:
            reply.kept = True
            self._live.pop(reply.id, None)

    async def _keep_rest(self, turn: LiveTurn) -> None:
        """Write what is not yet written of a turn that is over. Again changes nothing: a reply ends once."""
        await self._keep(turn, [reply for reply in turn.replies if not reply.kept], over=True)

    async def _interrupt(self, turn: LiveTurn) -> None:
        await self.store.write_async(lambda s: conversations.mark_interrupted(s, turn_id=turn.id))

    async def _keep_later(self, turn: LiveTurn) -> None:
        """Offer a turn to the record until it is back; what it refuses for good ends as interrupted.

        Few can wait here: while the record takes nothing, no turn is opened.
        """
        end, pause = self._keep_rest, KEEP_AGAIN_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await end(turn)
            except HoneError as problem:
                log.warning("a reply still cannot be stored: %s", problem.message, extra={"turn": turn.id})
            except Exception:
                log.exception("a reply cannot be stored; it ends as interrupted", extra={"turn": turn.id})
                end = self._interrupt
            else:
                return

    def _count(self, turn: LiveTurn) -> None:
        self.metrics.prompt_tokens.inc(turn.prompt_tokens)
        for reply in turn.replies:
            self.metrics.reply_tokens.labels(reply.version).inc(len(reply.token_ids))
            self.metrics.replies.labels(reply.version, reply.purpose.value, reply.state).inc()
