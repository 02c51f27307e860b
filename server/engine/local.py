"""The engine in this process: one thread runs the step loop, event loops get what it makes.

    generate() -> inbox -> [engine thread: commands, step, commands, step …] -> one wake-up per step -> channels

Everything that touches the model runs on the engine thread, between two steps; only reading an adapter's file does
not. A reply that is read slowly holds nobody up: its channel is unbounded, and `max_tokens` bounds what it gets.
Knows nothing of users, segments and the store.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from server.decoding import (
    PREFILL_TOKENS,
    Decoder,
    DecodeRequest,
    Emission,
    Fitted,
    Merger,
    Scoring,
    check,
)
from server.engine.base import (
    NOTHING_PROMISED,
    Answered,
    Delta,
    EngineStatus,
    FinishReason,
    Prompt,
    Sampling,
)
from server.engine.places import Places
from server.errors import Conflict, HoneError, Invalid, NotFound, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

HEAL_SECONDS = 5.0
"""How often a broken engine tries itself again."""


@dataclass(frozen=True, slots=True)
class _Channel:
    """Where the deltas of one `generate` call go; an exception in it ends the call."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Delta | HoneError]


@dataclass(slots=True)
class _Seat:
    """One reply's place, and where its deltas go. `begun` once it has left the queue."""

    channel: _Channel
    index: int
    who: str
    begun: bool = False


class LocalEngine:
    """Continuous batching over one base, many adapter versions at once."""

    def __init__(
        self,
        fitted: Fitted,
        *,
        max_running: int,
        max_waiting: int,
        cache_tokens: int = 0,
        prefix_bytes: int = 0,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        self.base, self._trunk, self._bank, self._expected = fitted
        self._prefill_tokens = prefill_tokens
        self._decoder = Decoder(
            self.base,
            slots=max_running,
            bank=self._bank,
            trunk=self._trunk,
            cache_tokens=cache_tokens,
            prefix_bytes=prefix_bytes,
            prefill_tokens=prefill_tokens,
        )
        self._merger = Merger(self._trunk, self._bank)
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._seats: dict[int, _Seat] = {}  # by request id
        self._places = Places(running=max_running, waiting=max_waiting)
        self._lock = threading.Lock()  # guards _seats and _places: both sides count with them
        self._versions: tuple[int, ...] = self._bank.versions
        self._counted = 0, 0
        """Replies in the loop, and bytes held for them: counted by the engine thread after each turn of it."""
        self._trouble = ""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hone-engine", daemon=True)
        self._thread.start()

    # What callers ask, from an event loop

    async def load(self, version: int, path: Path) -> None:
        """Read `path` beside the running replies, then write it between two steps."""
        if version in self._versions:
            return
        prepared = await asyncio.to_thread(self._bank.prepare, path)
        await self._between_steps(lambda: self._bank.write(version, prepared))

    async def unload(self, version: int) -> None:
        """Let go of `version`. Raises Conflict (code `version_in_use`) rather than pull it from under a reply."""

        def remove() -> None:
            if self._decoder.uses(version):
                raise Conflict(f"replies still run on version {version}", code="version_in_use")
            self._bank.remove(version)
            self._decoder.prefixes.forget(version)

        if version:
            await self._between_steps(remove)

    def must_admit(self, n: int, *, who: str = "", promised: Mapping[str, int] = NOTHING_PROMISED) -> None:
        """Raises Busy when `who` may not have `n` more places, Unavailable when the engine is not well."""
        self._must_be_ready()
        with self._lock:
            self._places.must_admit(n, who=who, promised=promised)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        """Stream `n` replies. Everything that can be refused is refused before the first delta."""
        self._must_answer(prompt, version)
        channel = _Channel(asyncio.get_running_loop(), asyncio.Queue())
        requests = [
            DecodeRequest(
                next(self._numbers), prompt.token_ids, replace(sampling, seed=sampling.seed + i), version, who
            )
            for i in range(n)
        ]
        self._take_places(requests, channel)
        left = n
        try:
            self._post(lambda: self._admit(requests))
            while left:
                delta = await channel.queue.get()
                if isinstance(delta, HoneError):
                    raise delta
                left -= delta.finish_reason is not None
                yield delta
        finally:
            if left:
                self._abandon([request.id for request in requests])

    async def logprobs(self, version: int, prompt: Prompt, response: tuple[int, ...]) -> tuple[float, ...]:
        """Raw-policy log probability of each response id, in nats."""
        return (await self.score_many(version, [(prompt, response)]))[0]

    async def score_many(self, version: int, items: Sequence[Answered]) -> list[tuple[float, ...]]:
        """`logprobs` of many: read together, a piece between any two steps."""
        for prompt, response in items:
            self._must_answer(prompt, version)
            if len(prompt.token_ids) + len(response) > self.base.context:
                raise Invalid(f"prompt and response exceed the context of {self.base.context} tokens")
        scoring = Scoring(
            self._trunk,
            self._bank,
            version,
            [(p.token_ids, r) for p, r in items],
            piece=self._prefill_tokens,
        )
        while not scoring.is_over:
            await self._between_steps(scoring.step)
        return scoring.found

    async def status(self) -> EngineStatus:
        """Read from counters; never waits for a step."""
        with self._lock:
            taken, running = self._places.taken, self._places.running
        rows, held_bytes = self._counted
        return EngineStatus(
            ready=self._ready,
            name=f"local:{self.base.base_id} ({self._trunk.name})",
            versions=self._versions,
            running=min(taken, running),
            waiting=max(taken - running, 0),
            detail="closed" if self._closing else self._trouble,
            rows=rows,
            held_bytes=held_bytes,
        )

    async def close(self) -> None:
        """Stop after the step that runs; running replies end as cancelled."""
        self._closing = True
        self._inbox.put(lambda: None)
        await asyncio.to_thread(self._thread.join)
        self._merger.close()
        self._bank.close()

    # Places and refusals

    @property
    def _ready(self) -> bool:
        return not self._closing and not self._trouble and self._thread.is_alive()

    def _must_be_ready(self) -> None:
        if not self._ready:
            raise Unavailable(
                self._trouble or "the engine is closed", code="engine_unavailable", retry_after=HEAL_SECONDS
            )

    def _must_answer(self, prompt: Prompt, version: int) -> None:
        self._must_be_ready()
        if version not in self._versions:
            raise NotFound(f"version {version} is not held", code="unknown_version")
        if not 0 < len(prompt.token_ids) < self.base.context:
            raise Invalid(
                f"the prompt has {len(prompt.token_ids)} tokens, the context {self.base.context}",
                code="prompt_too_long",
                param="messages",
            )

    def _take_places(self, requests: Sequence[DecodeRequest], channel: _Channel) -> None:
        with self._lock:
            self._places.take(len(requests), who=requests[0].who)
            self._seats |= {request.id: _Seat(channel, i, request.who) for i, request in enumerate(requests)}

    def _give_back(self, request_id: int) -> _Seat | None:
        """Asked under the lock; nothing when the place was given back before."""
        seat = self._seats.pop(request_id, None)
        if seat:
            self._places.leave(seat.who, begun=seat.begun)
        return seat

    def _abandon(self, request_ids: Sequence[int]) -> None:
        """Nobody reads these any more: end them with the next step."""
        with self._lock:
            running = [i for i in request_ids if self._give_back(i)]
        if running:
            self._inbox.put(lambda: self._decoder.cancel(*running))

    # The engine thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._obey()
                if not self._decoder.idle and not self._closing:
                    self._deliver(self._decoder.step())
                    self._merger.between_steps()
                self._counted = self._decoder.running + self._decoder.waiting, self._decoder.held_bytes
            except Exception:  # the edge of the engine: replies end with an error, the engine stays
                log.exception("a step failed; its replies end with an error")
                self._fail()
        self._cancel_everything()
        self._obey(block=False)

    def _obey(self, *, block: bool = True) -> None:
        """Run what has been posted; wait for something when there is nothing else to do."""
        if block and self._decoder.idle and not self._closing:
            try:
                self._inbox.get(timeout=HEAL_SECONDS if self._trouble else None)()
            except queue.Empty:
                self._heal()
        for _ in range(
            self._inbox.qsize()
        ):  # what comes meanwhile waits for a step: replies must not stand still
            self._inbox.get_nowait()()

    def _admit(self, requests: Sequence[DecodeRequest]) -> None:
        """Queue what is still wanted: a caller may have gone, or its version been unloaded, since it asked."""
        for request in requests:
            with self._lock:
                known = request.id in self._seats
            if not known:
                continue
            if request.version in self._bank.versions:
                self._decoder.admit(request)
            else:
                self._end(
                    request.id, NotFound(f"version {request.version} is not held", code="unknown_version")
                )

    def _deliver(self, emissions: Sequence[Emission]) -> None:
        """Hand a step's emissions over: one wake-up for each event loop, whatever the number of replies."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[_Channel, Delta | HoneError]]] = defaultdict(list)
        with self._lock:
            for emission in emissions:
                seat = self._seats.get(emission.id)
                if seat is None:
                    continue
                if not seat.begun:
                    seat.begun = True
                    self._places.begin(seat.who)
                if emission.is_last:
                    self._give_back(emission.id)
                batches[seat.channel.loop].append((seat.channel, _told(emission, seat.index)))
        for loop, batch in batches.items():
            _wake(loop, batch)

    def _end(self, request_id: int, error: HoneError) -> None:
        with self._lock:
            seat = self._give_back(request_id)
        if seat:
            _wake(seat.channel.loop, [(seat.channel, error)])

    def _fail(self) -> None:
        with self._lock:
            running = list(self._seats)
        self._decoder.reset()
        self._heal()  # before the callers hear of it, so that the status they read next is true
        for request_id in running:
            self._end(
                request_id,
                Unavailable(
                    "the engine failed while answering", code="engine_failed", retry_after=HEAL_SECONDS
                ),
            )

    def _heal(self) -> None:
        """Ready again only when the model gives a sound answer."""
        try:
            check(self.base, self._trunk, self._bank, self._expected)
        except Exception as error:  # whatever is wrong is said in the status and tried again
            log.error("the engine is not well: %s", error)
            self._trouble = f"{type(error).__name__}: {error}"
        else:
            self._trouble = ""

    def _cancel_everything(self) -> None:
        with self._lock:
            running = list(self._seats)
        cancelled = [Emission(i, (), (), "", FinishReason.CANCELLED) for i in running]
        self._decoder.reset()
        self._deliver(cancelled)

    def _post(self, command: Callable[[], None]) -> None:
        if self._closing:
            raise Unavailable("the engine is closed", code="engine_unavailable")
        self._inbox.put(command)

    async def _between_steps(self, work: Callable[[], T]) -> T:
        """Run `work` on the engine thread and wait for it, without blocking the loop."""
        future: Future[T] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                done = work()
            except Exception as error:  # belongs to the caller, not to the engine
                future.set_exception(error)
            else:
                self._versions = self._bank.versions  # before the caller wakes and asks for the new version
                future.set_result(done)

        self._post(command)
        return await asyncio.wrap_future(future)


def _told(emission: Emission, index: int) -> Delta | HoneError:
    if emission.has_failed:
        return Unavailable(
            "the policy gave no finite probability", code="engine_failed", retry_after=HEAL_SECONDS
        )
    return Delta(
        emission.text,
        emission.token_ids,
        emission.logprobs,
        emission.finish_reason,
        index,
        emission.top_logprobs,
    )


def _wake(loop: asyncio.AbstractEventLoop, batch: Sequence[tuple[_Channel, Delta | HoneError]]) -> None:
    def put() -> None:
        for channel, delta in batch:
            channel.queue.put_nowait(delta)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the loop is closed: nobody is left to read
        log.debug("a reply's event loop has gone")
