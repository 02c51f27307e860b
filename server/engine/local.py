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
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from server.decoding import AdapterBank, Decoder, DecodeRequest, Emission
from server.engine import Served
from server.engine.base import BaseIdentity, Delta, EngineStatus, FinishReason, Prompt, Sampling
from server.engine.pace import Pace
from server.errors import Busy, Conflict, HoneError, Invalid, NotFound, Unavailable
from server.modeling import Base, load_base, sequence_logprobs
from server.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

HEAL_SECONDS = 5.0
"""How often a broken engine tries itself again."""


@dataclass(frozen=True, slots=True)
class _Channel:
    """Where the deltas of one `generate` call go; an exception in it ends the call."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Delta | HoneError]


class LocalEngine:
    """Continuous batching over one base, many adapter versions at once."""

    def __init__(self, base: Base, *, max_running: int, max_waiting: int) -> None:
        self.base = base
        self.max_running, self.max_waiting = max_running, max_waiting
        self._bank = AdapterBank(base)
        self._decoder = Decoder(base, slots=max_running, bank=self._bank)
        self._decoder.check()
        self._numbers = itertools.count(1)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._channels: dict[int, tuple[_Channel, int]] = {}  # by request id; the int is the delta's index
        self._lock = threading.Lock()  # guards _channels and _pace: both sides count with them
        self._pace = Pace()
        self._versions: tuple[int, ...] = self._bank.versions
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

        if version:
            await self._between_steps(remove)

    def must_admit(self, n: int) -> None:
        """Raises Busy when `n` more replies would find no place, Unavailable when the engine is not well."""
        self._must_be_ready()
        with self._lock:
            self._must_have_room(n)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1
    ) -> AsyncIterator[Delta]:
        """Stream `n` replies. Everything that can be refused is refused before the first delta."""
        self._must_answer(prompt, version)
        channel = _Channel(asyncio.get_running_loop(), asyncio.Queue())
        requests = [
            DecodeRequest(
                next(self._numbers), prompt.token_ids, replace(sampling, seed=sampling.seed + i), version
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
        self._must_answer(prompt, version)
        if len(prompt.token_ids) + len(response) > self.base.context:
            raise Invalid(f"prompt and response exceed the context of {self.base.context} tokens")

        def score() -> tuple[float, ...]:
            self._bank.select([version])
            with torch.no_grad():
                (values,) = sequence_logprobs(self.base.model, [(prompt.token_ids, response)])
            return tuple(values.tolist())

        return await self._between_steps(score)

    async def status(self) -> EngineStatus:
        """Read from counters; never waits for a step."""
        with self._lock:
            taken = len(self._channels)
        return EngineStatus(
            ready=self._ready,
            name=f"local:{self.base.base_id}",
            versions=self._versions,
            running=min(taken, self.max_running),
            waiting=max(taken - self.max_running, 0),
            detail="closed" if self._closing else self._trouble,
        )

    async def close(self) -> None:
        """Stop after the step that runs; running replies end as cancelled."""
        self._closing = True
        self._inbox.put(lambda: None)
        await asyncio.to_thread(self._thread.join)
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

    def _must_have_room(self, places: int) -> None:
        """Asked under the lock."""
        if len(self._channels) + places > self.max_running + self.max_waiting:
            raise Busy(
                "every place is taken, and so is the queue", retry_after=self._pace.seconds_until(places)
            )

    def _take_places(self, requests: Sequence[DecodeRequest], channel: _Channel) -> None:
        with self._lock:
            self._must_have_room(len(requests))
            self._channels |= {request.id: (channel, i) for i, request in enumerate(requests)}

    def _abandon(self, request_ids: Sequence[int]) -> None:
        """Nobody reads these any more: end them with the next step."""
        with self._lock:
            running = [i for i in request_ids if self._channels.pop(i, None)]
        if running:
            self._inbox.put(lambda: self._decoder.cancel(*running))

    # The engine thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._obey()
                if not self._decoder.idle and not self._closing:
                    self._deliver(self._decoder.step())
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
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _admit(self, requests: Sequence[DecodeRequest]) -> None:
        """Queue what is still wanted: a caller may have gone, or its version been unloaded, since it asked."""
        for request in requests:
            with self._lock:
                known = request.id in self._channels
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
                found = self._channels.get(emission.id)
                if emission.finish_reason:
                    self._channels.pop(emission.id, None)
                    self._pace.reply_ended()
                if found:
                    channel, index = found
                    batches[channel.loop].append((channel, _delta(emission, index)))
        for loop, batch in batches.items():
            _wake(loop, batch)

    def _end(self, request_id: int, error: HoneError) -> None:
        with self._lock:
            found = self._channels.pop(request_id, None)
        if found:
            _wake(found[0].loop, [(found[0], error)])

    def _fail(self) -> None:
        with self._lock:
            running = list(self._channels)
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
            self._decoder.check()
        except Exception as error:  # whatever is wrong is said in the status and tried again
            log.error("the engine is not well: %s", error)
            self._trouble = f"{type(error).__name__}: {error}"
        else:
            self._trouble = ""

    def _cancel_everything(self) -> None:
        with self._lock:
            running = list(self._channels)
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


def local_engine(settings: Settings) -> Served:
    """Load the base that the settings name and start an engine over it."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    base = load_base(settings.model, device=settings.device, dtype=settings.dtype)
    engine = LocalEngine(base, max_running=settings.max_running, max_waiting=settings.max_waiting)
    dtype = str(base.dtype).removeprefix("torch.")
    identity = BaseIdentity(base.base_id, base.base_hash, base.renderer.template_hash, dtype)
    return Served(engine, base.renderer, identity)


def _delta(emission: Emission, index: int) -> Delta:
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
