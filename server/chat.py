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
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import Any, cast

from sqlmodel import Session

from server import pairing
from server.engine.base import Delta, Engine, FinishReason, Prompt, Sampling
from server.errors import DeadlineExceeded, HoneError, Unavailable
from server.keeping import Keeping
from server.metrics import Metrics
from server.prompts import Rendered, Renderer
from server.serving import Serving
from server.store import conversations
from server.store.session import Store
from server.turn import LiveReply, LiveTurn

log = logging.getLogger(__name__)
RECENT = 20_000
"""Replies and comparisons whose version is remembered for the metrics."""
RESTART_SECONDS = 5.0
"""When one who is refused by a server that stops may try again: another has started by then."""
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
    top_k: int = 0
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

    @property
    def who(self) -> str:
        """Whose request it is where places are shared out: users take turns, not clients."""
        return f"{self.client_id}/{self.user or ''}"


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
        self._keeping = Keeping(store)
        self._live: dict[str, LiveTurn] = {}
        self._running: set[LiveTurn] = set()
        self._writers: OrderedDict[str, int] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: Counter[str] = Counter()
        """Replies of each who that were promised a place and have not yet asked the engine for it."""

    async def begin(self, ask: Ask) -> LiveTurn:
        """Open a turn and start to answer it: its rows stand before its first token.

        A full engine refuses before anything is written: a storm of requests must not fill the record.
        """
        began = asyncio.get_running_loop().time()
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
        if self.stopping:
            raise _stopping("The server is stopping; ask again in a moment.")
        self.engine.must_admit(len(plan.draws), who=ask.who, promised=self._opening)
        self._promise(ask.who, len(plan.draws))
        try:
            return await self._begin(ask, plan, version, began=began)
        except BaseException:
            self._promise(ask.who, -len(plan.draws))
            raise

    async def _begin(self, ask: Ask, plan: pairing.Plan, version: int, *, began: float) -> LiveTurn:
        """The part of opening that takes time, while its places are promised but not taken."""
        room = self.renderer.context - ask.max_tokens
        rendered = await asyncio.to_thread(self.renderer.render, ask.messages, max_prompt_tokens=room)
        sampling = self._sampling(ask, plan, rendered)
        await self.serving.hold(version)
        try:
            opened = await self.store.write_async(lambda s: self._open(s, ask, plan, rendered, sampling))
            turn = self._live_turn(ask, plan, rendered, sampling, opened)
            turn.stamp = self.serving.stamp(version)
            turn.deadline = began + self.reply_seconds if self.reply_seconds else None
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
        """Let what was begun end within `limit` seconds; cut off the rest and keep what there is of it."""
        self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._tasks or self._opening:
                    await self._wait()
        await self.close()

    def cut(self) -> None:
        """End every reply that is being written. Returns at once; each is kept as it is, and its reader told why."""
        self._keeping.give_up()
        for turn in list(self._running):
            turn.cancel(
                _stopping("The server stopped before this reply was finished; what was written is kept.")
            )

    async def close(self) -> None:
        """Cut off what is still written and keep it; what was being opened is begun first, then cut off as well."""
        self.stop()
        while self._tasks or self._opening:
            self.cut()
            await self._wait()

    async def _wait(self) -> None:
        """For tasks to end, but not long: others may come out of what is being opened, or be left behind."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.1)
        else:
            await asyncio.sleep(0.01)

    def _promise(self, who: str, replies: int) -> None:
        self._opening[who] += replies
        if not self._opening[who]:
            del self._opening[who]

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
            top_k=ask.top_k,
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
            "top_k": sampling.top_k,
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
            who=ask.who,
        )

    # --- answering -----------------------------------------------------------------------------------------

    async def _answer(self, turn: LiveTurn, version: int) -> None:
        """Write all replies of a turn, and leave the record whole however it ends."""
        self._running.add(turn)
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
            second = turn.replies[1]
            second.begin_again(1 + max(reply.seed for reply in turn.replies))
            await self._draw(turn, [second], began)

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
