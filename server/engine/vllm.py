"""The engine in other processes: one or several vLLM servers that all serve one base, spoken to over HTTP.

    generate: count -> wait for a turn -> choose a server -> ids out -> pieces in -> our own text -> deltas
              lost before the first delta: the next server; lost after it: the reply ends with an error

vLLM gets token ids and answers with token ids; text is made here, by the very lines that make it in the local engine.
So stop strings, halves of characters and the blank before a reply are the same whoever generates. Refuses to know
users, segments and the store, and loads no weights.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from server.checkpoint import base_id_of, check_servable, hash_base, locate, read_config
from server.engine import Served
from server.engine.base import (
    NOTHING_PROMISED,
    Answered,
    BaseIdentity,
    Delta,
    EngineStatus,
    FinishReason,
    Prompt,
    Sampling,
)
from server.engine.fleet import Attempts, Fleet
from server.engine.greeting import Check
from server.engine.member import Member
from server.engine.places import Places
from server.engine.refusals import AGAIN_SECONDS, Lacks, Lost
from server.engine.replica import Replica
from server.engine.reply import Reply, deltas_of
from server.engine.text import TextStream
from server.engine.turns import Turns
from server.errors import Busy, Conflict, Invalid, NotFound, SetupError, Unavailable
from server.prompts import Renderer
from server.settings import Settings

log = logging.getLogger(__name__)

SCORES_AT_ONCE = 4
"""Of one caller's many: the rest waits here, not in vLLM's queue, where it would stand before what people wait for."""
BROKEN_BY_A_REPLY = 1
"""A request that may have brought two servers down is not shown to a third."""
BROKEN_BY_A_SCORE = 0
"""Scoring needs memory that vLLM did not set aside: what may have cost one server its life is not shown to another."""


class AdaptersSeen(NamedTuple):
    """Where the adapters directory lies for this process, and where for vLLM; `there` empty: at the same path."""

    here: Path
    there: str

    def path(self, folder: Path) -> str:
        """A folder as vLLM finds it. Raises Unavailable for one that it could not see."""
        absolute = Path(os.path.abspath(folder))
        if not self.there:
            return str(absolute)
        if not absolute.is_relative_to(self.here):
            raise Unavailable(f"{folder} lies outside of the adapters directory {self.here}")
        return f"{self.there.rstrip('/')}/{absolute.relative_to(self.here).as_posix()}"


class VllmEngine:
    """Replies from a fleet of vLLM servers. Made inside of a running event loop, on which it watches them."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        renderer: Renderer,
        *,
        base_id: str,
        adapters: AdaptersSeen,
        max_running: int,
        max_waiting: int,
    ) -> None:
        self.renderer = renderer
        self.base_id = base_id
        self.adapters = adapters
        self.max_running = max_running
        self._fleet = Fleet(replicas, renderer)
        self._places = Places(running=max_running, waiting=max_waiting)
        self._turns = Turns(max_running)
        # Never shut down: what a reply still brings after the end is spelled, too. Its thread goes with this object.
        self._speller = ThreadPoolExecutor(1, thread_name_prefix="hone-text")
        self._uses: Counter[int] = Counter()
        self._closing = False

    async def load(self, version: int, path: Path) -> None:
        """Bring the adapter in `path` to every server that is well, and see that all hold the same."""
        check = await asyncio.to_thread(Check.of, path, self.renderer)
        await self._fleet.load(version, self.adapters.path(path), check)

    async def unload(self, version: int) -> None:
        """Let go of `version`. Raises Conflict (code `version_in_use`) rather than pull it from under a reply."""
        if not version:
            return
        if self._uses[version]:
            raise Conflict(f"replies still run on version {version}", code="version_in_use")
        await self._fleet.unload(version)

    def must_admit(self, n: int, *, who: str = "", promised: Mapping[str, int] = NOTHING_PROMISED) -> None:
        """Raises Busy when `who` may not have `n` more replies now, Unavailable when no server is well."""
        self._must_be_ready()
        self._places.must_admit(n, who=who, promised=promised)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        """Stream `n` replies, as one request. What can be refused is refused before the first delta."""
        self._must_answer(prompt, version)
        self._places.take(n, who=who)
        self._uses[version] += 1
        begun, left = set[int](), set(range(n))
        try:
            draw = self._draw(prompt, sampling, version, n)
            async with self._turns.turn(n, who=who), aclosing(draw) as deltas:
                async for delta in deltas:
                    if delta.index not in begun:
                        begun.add(delta.index)
                        self._places.begin(who)
                    if delta.finish_reason:
                        left.discard(delta.index)
                        self._places.leave(who, begun=True)
                    yield delta
        finally:
            for index in left:
                self._places.leave(who, begun=index in begun)
            self._uses[version] -= 1

    async def logprobs(self, version: int, prompt: Prompt, response: tuple[int, ...]) -> tuple[float, ...]:
        """Raw-policy log probability of each response id, in nats."""
        self._must_answer(prompt, version)
        token_ids = (*prompt.token_ids, *response)
        if len(token_ids) > self.renderer.context:
            raise Invalid(f"prompt and response exceed the context of {self.renderer.context} tokens")
        if not response:
            return ()
        self._uses[version] += 1
        try:
            attempts = Attempts(self._fleet, version, most_broken=BROKEN_BY_A_SCORE)
            while True:
                member = await attempts.next()
                with _busy(member, 1):
                    try:
                        scored = await member.replica.score(member.name_for(version), token_ids)
                        return scored[-len(response) :]
                    except (Lost, Lacks, Busy) as error:
                        attempts.failed(member, error)
        finally:
            self._uses[version] -= 1

    async def score_many(self, version: int, items: Sequence[Answered]) -> list[tuple[float, ...]]:
        """`logprobs` of each item, a few at a time."""
        places = asyncio.Semaphore(SCORES_AT_ONCE)

        async def score(prompt: Prompt, response: tuple[int, ...]) -> tuple[float, ...]:
            async with places:
                return await self.logprobs(version, prompt, response)

        scores = [asyncio.create_task(score(prompt, response)) for prompt, response in items]
        try:
            return list(await asyncio.gather(*scores))
        finally:
            for task in scores:  # one has failed, or the caller has left: the others are of no use
                task.cancel()
            await asyncio.gather(*scores, return_exceptions=True)

    async def status(self) -> EngineStatus:
        """Read from counters and from the last look at each server."""
        await self._fleet.looked()
        return EngineStatus(
            ready=not self._closing and self._fleet.well > 0,
            name=f"vllm:{self.base_id}",
            versions=self._fleet.versions,
            running=min(self._places.taken, self._places.running),
            waiting=max(self._places.taken - self._places.running, 0),
            detail="closed" if self._closing else self._fleet.detail,
        )

    async def close(self) -> None:
        """Stop; running replies end as cancelled, here and at the servers."""
        self._closing = True
        await self._fleet.close()

    # --- places and refusals -------------------------------------------------------------------------------

    def _must_be_ready(self) -> None:
        if self._closing:
            raise Unavailable("the engine is closed", code="engine_unavailable", retry_after=AGAIN_SECONDS)
        if not self._fleet.well:
            raise self._fleet.nobody()
        # vLLM's own queue is first come first served: what waits here waits by turns of users.
        self._places.running = self._turns.places = self.max_running * self._fleet.well

    def _must_answer(self, prompt: Prompt, version: int) -> None:
        self._must_be_ready()
        if version not in self._fleet.versions:
            raise NotFound(f"version {version} is not held", code="unknown_version")
        if not 0 < len(prompt.token_ids) < self.renderer.context:
            raise Invalid(
                f"the prompt has {len(prompt.token_ids)} tokens, the context {self.renderer.context}",
                code="prompt_too_long",
                param="messages",
            )

    # --- drawing -------------------------------------------------------------------------------------------

    async def _draw(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int
    ) -> AsyncGenerator[Delta, None]:
        """The deltas of `n` replies, from the first server that comes as far as a delta."""
        attempts = Attempts(self._fleet, version, most_broken=BROKEN_BY_A_REPLY)
        while True:
            if self._is_over():  # it has waited for its turn until the end
                for index in range(n):
                    yield _cancelled(index)
                return
            member = await attempts.next()
            replies = [Reply(i, self._text(sampling), self.renderer.stop_ids) for i in range(n)]
            body = {"model": member.name_for(version)} | self._body(prompt, sampling, n)
            is_begun = False
            try:
                with _busy(member, n):
                    async with aclosing(deltas_of(member.replica, body, replies, self._speller)) as deltas:
                        async for delta in deltas:
                            is_begun = True
                            yield delta
                return
            except (Lost, Lacks, Busy) as error:
                if all(reply.has_ended for reply in replies):
                    return
                if self._is_over():
                    for reply in replies:
                        if not reply.has_ended:
                            yield _cancelled(reply.index)
                    return
                if is_begun:
                    log.warning("vLLM on %s broke off a reply: %s", member.replica.name, error.message)
                    if not isinstance(error, Busy):
                        self._fleet.has_failed(member, version, error)
                    raise Unavailable(
                        "the engine failed while answering", code="engine_failed", retry_after=AGAIN_SECONDS
                    ) from error
                attempts.failed(member, error)

    def _is_over(self) -> bool:
        """Asked anew after each wait: it may have changed meanwhile."""
        return self._closing

    def _text(self, sampling: Sampling) -> TextStream:
        stops = (*sampling.stop, *self.renderer.stop_strings)
        return TextStream(self.renderer.decode, stops=stops, prefix=self.renderer.reply_prefix)

    def _body(self, prompt: Prompt, sampling: Sampling, n: int) -> dict[str, Any]:
        """The request for `n` replies, everything said: a checkpoint's own sampling never applies silently."""
        is_greedy = sampling.temperature <= 0
        return {
            "prompt": list(prompt.token_ids),
            "max_tokens": min(sampling.max_tokens, self.renderer.context - len(prompt.token_ids)),
            # vLLM gives reply i of a request the seed `seed + i`, which is this project's own rule: one request
            # for a pair, and a stored seed makes its reply again by itself. Greedy, vLLM refuses n > 1, and all
            # replies are the same: one is drawn and told n times.
            "n": 1 if is_greedy else n,
            "seed": sampling.seed,
            "temperature": max(sampling.temperature, 0.0),
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self.renderer.stop_ids),
            # Stop strings are not sent: one judge of what a text says, and it is the same for all engines.
            "logprobs": sampling.top_logprobs,
        }


def _cancelled(index: int) -> Delta:
    return Delta("", (), (), FinishReason.CANCELLED, index)


@contextmanager
def _busy(member: Member, replies: int) -> Iterator[None]:
    """Count what a server is writing for us."""
    member.running += replies
    try:
        yield
    finally:
        member.running -= replies


def vllm_engine(settings: Settings) -> Served:
    """An engine over the servers that the settings name, with the renderer and the identity of the base beside us.

    The base's files are needed here too, for its template and its hash; its weights are read once, to be hashed.
    """
    urls = settings.vllm_urls
    if not urls:
        raise SetupError("no vLLM server is named: hone serve --engine vllm --vllm-url http://HOST:PORT")
    key = settings.vllm_key.get_secret_value()
    replicas = [Replica(url, key=key) for url in urls]
    folder = locate(settings.model)
    try:
        check_servable(read_config(folder))
        renderer = Renderer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(
            f"the model at {settings.model} cannot be read: {error}", code="model_unreadable"
        ) from error
    identity = BaseIdentity(
        base_id_of(settings.model, folder),
        hash_base(folder),
        renderer.template_hash,
        # What the servers compute in is theirs to choose; unless told, the tolerance of their usual type is taken.
        "float32" if settings.dtype == "float32" else "bfloat16",
    )
    engine = VllmEngine(
        replicas,
        renderer,
        base_id=identity.base_id,
        adapters=AdaptersSeen(settings.adapters_dir, settings.vllm_adapters),
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
    )
    return Served(engine, renderer, identity)
