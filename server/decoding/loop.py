"""The step loop: replies join and leave a running batch, and every step adds one id to each of them.

    admit -> wait for a place -> read the prompt -> one decode step for all -> leave

What one step reads of prompts is bounded, so that nobody who is being answered waits long for somebody who comes: short
prompts are read together, padded on the right; a long one is read in pieces, one at a time, and short ones overtake it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache
from server.decoding.prefixes import Prefix, Prefixes
from server.decoding.rows import DecodeRequest, Row, Rows
from server.decoding.sampler import Choice, Draw, choose
from server.decoding.trunk import StockTrunk, Trunk
from server.engine.base import FinishReason, TopLogprob
from server.engine.text import TextStream
from server.engine.waiting import FairQueue
from server.errors import Invalid
from server.modeling import Base

PREFILL_TOKENS = 512
"""Prompt ids, padding included, that one step reads at most before it decodes; few where reading is slow (`pace`)."""
LEAST_SHARE = 8
"""One part in so many is a long prompt's when short ones have taken the rest."""


@dataclass(frozen=True, slots=True)
class Emission:
    """What one step added to one reply. The last emission of a reply that is cancelled or fails has no ids."""

    id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason | None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()
    has_failed: bool = False
    """The policy gave no finite probability; the reply ends without a finish reason."""

    @property
    def is_last(self) -> bool:
        return self.has_failed or self.finish_reason is not None


@dataclass(slots=True)
class _Reading:
    """A prompt on its way into the cache, and the requests that begin with it: both sides of a pair read it once."""

    requests: list[DecodeRequest]
    done: int = 0
    """Ids whose keys are there already."""
    prefix: Prefix | None = None
    cache: SlotCache | None = None
    """Of its own, while it is read in pieces."""

    @property
    def ids(self) -> tuple[int, ...]:
        return self.requests[0].prompt_ids

    @property
    def version(self) -> int:
        return self.requests[0].version

    @property
    def left(self) -> int:
        return len(self.ids) - self.done

    def is_of(self, request: DecodeRequest) -> bool:
        return (self.version, self.ids) == (request.version, request.prompt_ids)


class Decoder:
    """Runs one model for many replies. Not thread-safe: whoever owns it calls everything from one thread."""

    def __init__(
        self,
        base: Base,
        *,
        slots: int = 32,
        bank: AdapterBank | None = None,
        trunk: Trunk | None = None,
        cache_tokens: int = 0,
        prefix_bytes: int = 0,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        """`cache_tokens` bounds rows times the positions of the longest; 0 lets every slot use the whole context."""
        self.base = base
        self.slots = slots
        self.bank = bank
        self.trunk = trunk or StockTrunk(base)
        self.prefixes = Prefixes(prefix_bytes)
        self._cache_tokens = cache_tokens or slots * base.context
        self._prefill_tokens = prefill_tokens
        self._rows = self._no_rows()
        self._long: _Reading | None = None
        self._waiting: FairQueue[DecodeRequest] = FairQueue()
        self._long_ones: FairQueue[DecodeRequest] = FairQueue()
        """Those whose turn has come while another long prompt is being read."""
        self._cancelled: set[int] = set()

    @property
    def running(self) -> int:
        """Replies that have a place."""
        return len(self._rows) + len(self._being_read)

    @property
    def waiting(self) -> int:
        """Replies that wait for one."""
        return len(self._waiting) + len(self._long_ones)

    @property
    def held_bytes(self) -> int:
        """What keys and values of running replies may take, and those kept of earlier ones do."""
        return (
            self.prefixes.held_bytes
            + self._rows.cache.held_bytes
            + (self._long.cache.held_bytes if self._long and self._long.cache else 0)
        )

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self.running and not self.waiting

    def uses(self, version: int) -> bool:
        """Whether a running or waiting reply needs `version`."""
        return any(request.version == version for request in self._requests())

    def admit(self, request: DecodeRequest) -> None:
        """Queue a reply. Raises Invalid when its prompt leaves no room for a single id."""
        if not 0 < len(request.prompt_ids) < self.base.context:
            raise Invalid(
                f"a prompt has 1 to {self.base.context - 1} tokens, not {len(request.prompt_ids)}",
                code="prompt_too_long",
                param="messages",
            )
        assert self.bank or not request.version, "a version needs a bank"
        self._waiting.push(request)

    def cancel(self, *request_ids: int) -> None:
        """Let the next step end these replies; an unknown id is ignored, it may have ended already."""
        self._cancelled.update(request_ids)

    def reset(self) -> None:
        """Forget every reply and all keys and values."""
        self._rows = self._no_rows()
        self._long = None
        self._waiting.clear()
        self._long_ones.clear()
        self._cancelled.clear()
        self.prefixes.forget()

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Add one id to every running reply, and one more to those that join now."""
        return [*self._reap(), *self._read(), *self._decode()]

    def _no_rows(self) -> Rows:
        return Rows(slots=self.slots, context=self.base.context, most_tokens=self._cache_tokens)

    @property
    def _being_read(self) -> list[DecodeRequest]:
        return self._long.requests if self._long else []

    def _requests(self) -> list[DecodeRequest]:
        running = [row.request for row in self._rows]
        return [*self._waiting, *self._long_ones, *self._being_read, *running]

    # Leaving before the end

    def _reap(self) -> list[Emission]:
        gone, self._cancelled = self._cancelled, set()
        if not gone:
            return []
        ended = [i for i in sorted(gone) if self._waiting.remove(i) or self._long_ones.remove(i)]
        if self._long:
            ended += [request.id for request in self._long.requests if request.id in gone]
            self._long.requests = [request for request in self._long.requests if request.id not in gone]
            if not self._long.requests:
                self._long = None
        emissions = [Emission(i, (), (), "", FinishReason.CANCELLED) for i in ended]
        for at in reversed(range(len(self._rows))):
            row = self._rows[at]
            if row.request.id in gone:
                emissions.append(Emission(row.request.id, (), (), row.text.finish(), FinishReason.CANCELLED))
                self._rows.leave(at)
        return emissions

    # Joining

    def _read(self) -> list[Emission]:
        """Spend this step's share of reading: half of it on the long prompt, when there are others."""
        budget = self._prefill_tokens
        self._next_long()
        together = self._next_together(budget // 2 if self._long else budget)
        emissions: list[Emission] = []
        if self._long:
            width = max((one.left for one in together), default=0)
            piece = max(budget - width * len(together), budget // LEAST_SHARE)
            emissions += self._read_piece(self._long, piece)
        return emissions + self._read_together(together)

    def _next_long(self) -> None:
        if self._long is None and self._long_ones and self._has_room(self._long_ones.peek()):
            self._long = self._begin(self._long_ones.pop())
            self._take_twins(self._long, self._long_ones)

    def _next_together(self, budget: int) -> list[_Reading]:
        """Prompts that wait and may be read now, in the order in which they came; long ones are put aside.

        All of them are read from their beginnings, or all go on from kept keys: what one row goes on from would have
        to be masked for the others.
        """
        together: list[_Reading] = []
        if self._long_ones and self._long is None:
            return together  # the long prompt whose turn it is gets its room only when nobody takes it before
        width = deepest = 0
        while self._waiting and self._has_room(self._waiting.peek(), together):
            request = self._waiting.peek()
            if self._long and self._long.is_of(request):
                self._long.requests.append(self._waiting.pop())
                continue
            reading = self._begin(request)
            if reading.left > self._prefill_tokens:
                self._put_aside(reading)
                continue
            wider, deeper = max(width, reading.left), max(deepest, reading.done)
            if together and (
                wider * (len(together) + 1) > budget
                or deeper + wider > self.base.context
                or bool(reading.done) != bool(deepest)
            ):
                break
            together.append(reading)
            self._waiting.pop()
            self._take_twins(reading, self._waiting, together)
            width, deepest = wider, deeper
        return together

    def _take_twins(
        self, reading: _Reading, queue: FairQueue[DecodeRequest], together: Sequence[_Reading] = ()
    ) -> None:
        """Those in `queue` that begin with the very same prompt need not wait for their turns: it is read anyway."""
        for request in [one for one in queue if reading.is_of(one)]:
            if self._has_room(request, together):
                queue.remove(request.id)
                reading.requests.append(request)

    def _put_aside(self, reading: _Reading) -> None:
        """The one that waits first has a long prompt: it is the one that is read in pieces, or waits for that."""
        request = self._waiting.pop()
        if self._long is None and not self._long_ones:
            self._long = reading
        else:
            self._long_ones.push(request)

    def _has_room(self, request: DecodeRequest, together: Sequence[_Reading] = ()) -> bool:
        """Whether there is a slot for `request`, and enough positions for every row to be as long as the longest."""
        others = [*self._being_read, *(one for reading in together for one in reading.requests)]
        rows = len(self._rows) + len(others) + 1
        longest = max(self._rows.longest, *(one.most_tokens for one in (request, *others)))
        fits = rows * min(longest, self.base.context) <= self._cache_tokens
        return rows <= self.slots and (fits or rows == 1)

    def _begin(self, request: DecodeRequest) -> _Reading:
        prefix = self.prefixes.find(request.version, request.prompt_ids)
        return _Reading([request], prefix.length if prefix else 0, prefix)

    def _read_piece(self, reading: _Reading, budget: int) -> list[Emission]:
        """Go on with a long prompt, which has a cache of its own until it is read."""
        cache = reading.cache or self._cache_of([reading])
        reading.cache = cache
        piece = reading.ids[reading.done : reading.done + budget]
        states = self._states([piece], [reading.version], cache, starts=[reading.done])
        reading.done += len(piece)
        if reading.left:
            return []
        self._long = None
        return self._join([reading], states[:, -1], cache)

    def _read_together(self, together: Sequence[_Reading]) -> list[Emission]:
        if not together:
            return []
        cache = self._cache_of(together)
        states = self._states(
            [reading.ids[reading.done :] for reading in together],
            [reading.version for reading in together],
            cache,
            starts=[reading.done for reading in together],
        )
        last = torch.tensor([reading.left - 1 for reading in together], device=states.device)
        return self._join(together, states[torch.arange(len(together), device=states.device), last], cache)

    def _cache_of(self, readings: Sequence[_Reading]) -> SlotCache:
        """Room for whole prompts, a row each, with the keys that they go on from."""
        longest = max(len(reading.ids) for reading in readings)
        cache = SlotCache(most=self.base.context, rows=len(readings), length=longest)
        for at, reading in enumerate(readings):
            if reading.prefix:
                cache.write(at, reading.prefix.kept, length=reading.done)
                reading.prefix = None
        return cache

    def _join(self, read: Sequence[_Reading], states: Tensor, cache: SlotCache) -> list[Emission]:
        """Rows for all requests whose prompts were read into rows of `cache`; each gets its first id."""
        first = len(self._rows)
        self._rows.make_room([request for reading in read for request in reading.requests])
        whose: list[int] = []
        for at, reading in enumerate(read):
            prompt = cache.read(at, length=len(reading.ids))
            for request in reading.requests:
                self._rows.join(Row(request, self._text_of(request)), prompt)
                whose.append(at)
        draws = [Draw(row.request.sampling, 0) for row in list(self._rows)[first:]]
        return self._add(first, choose(self.trunk.logits(states)[whose], draws))

    # Every step

    def _decode(self) -> list[Emission]:
        if not self._rows:
            return []
        states = self._states(
            [row.ids[-1:] for row in self._rows],
            [row.request.version for row in self._rows],
            self._rows.cache,
            starts=[row.position for row in self._rows],
        )
        logits = self.trunk.logits(states[:, 0])
        return self._add(0, choose(logits, [Draw(row.request.sampling, len(row.ids)) for row in self._rows]))

    def _states(
        self,
        pieces: Sequence[Sequence[int]],
        versions: Sequence[int],
        cache: SlotCache,
        *,
        starts: Sequence[int],
    ) -> Tensor:
        """Hidden states (B, L, H) of ids that go on from `starts` in rows 0.. of `cache`, padded on the right."""
        length = max(map(len, pieces))
        ids = torch.tensor(
            [[*piece, *[0] * (length - len(piece))] for piece in pieces], device=self.base.device
        )
        if self.bank:
            self.bank.select(versions, length=length)
        return self.trunk.states(ids, cache.begin(0, starts, length, self.base.device), cache)

    def _text_of(self, request: DecodeRequest) -> TextStream:
        renderer = self.base.renderer
        stops = (*request.sampling.stop, *renderer.stop_strings)
        return TextStream(renderer.decode, stops=stops, prefix=renderer.reply_prefix)

    def _add(self, first: int, choices: Sequence[Choice | None]) -> list[Emission]:
        """Give rows `first ..` their new ids; the ones that end leave, from the last backwards."""
        rows = list(self._rows)[first:]
        emissions = [self._advance(row, choice) for row, choice in zip(rows, choices, strict=True)]
        for at in reversed(range(len(emissions))):
            if emissions[at].finish_reason:
                row = rows[at]
                kept = self._rows.cache.read(first + at, length=row.position)
                self.prefixes.keep(row.request.version, row.cached_ids, kept)
            if emissions[at].has_failed:
                self._rows.cache.clear(first + at)  # what is not finite would spread to the row's next owner
            if emissions[at].is_last:
                self._rows.leave(first + at)
        return emissions

    def _advance(self, row: Row, choice: Choice | None) -> Emission:
        if choice is None:  # this row's alone: others go on
            return Emission(row.request.id, (), (), row.text.finish(), None, has_failed=True)
        row.ids.append(choice.token_id)
        sampling = row.request.sampling
        used = len(row.request.prompt_ids) + len(row.ids)
        reason: FinishReason | None = None
        if choice.token_id in self.base.renderer.stop_ids:
            text, reason = row.text.finish(), FinishReason.STOP
        else:
            text = row.text.push(choice.token_id)
            if row.text.stopped:
                reason = FinishReason.STOP
            elif len(row.ids) >= sampling.max_tokens or used >= self.base.context:
                text += row.text.finish()
                reason = FinishReason.STOP if row.text.stopped else FinishReason.LENGTH
        top = tuple(TopLogprob(i, value) for i, value in choice.top)
        return Emission(
            row.request.id,
            (choice.token_id,),
            (choice.logprob,),
            text,
            reason,
            (top,) if sampling.top_logprobs else (),
        )
