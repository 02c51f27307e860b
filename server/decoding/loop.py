"""The step loop: replies join and leave a running batch, and every step adds one id to each of them.

    admit -> wait for a place -> read the prompt -> one decode step for all -> leave

What one step reads of prompts is bounded, so that nobody who is being answered waits long for somebody who comes: short
prompts are read together, padded on the right; a long one is read in pieces, and short ones overtake it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache
from server.decoding.prefixes import Prefix, Prefixes
from server.decoding.rows import DecodeRequest, Row, Rows
from server.decoding.sampler import Choice, Draw, choose
from server.decoding.trunk import StockTrunk, Trunk
from server.decoding.waiting import FairQueue
from server.engine.base import FinishReason, TopLogprob
from server.engine.text import TextStream
from server.errors import Invalid
from server.modeling import Base

PREFILL_TOKENS = 512
"""Prompt ids, padding included, that one step may read before it decodes."""
LEAST_PIECE = 64
"""… and what a long prompt gets of them when short ones have taken the rest."""


@dataclass(frozen=True, slots=True)
class Emission:
    """What one step added to one reply. A cancelled reply's last emission has no ids."""

    id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason | None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()


@dataclass(slots=True)
class _Reading:
    """A prompt on its way into the cache, and the requests that begin with it: both sides of a pair read it once."""

    requests: list[DecodeRequest]
    done: int = 0
    """Ids whose keys are there already."""
    prefix: Prefix | None = None
    cache: SlotCache = field(default_factory=SlotCache)

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
    ) -> None:
        """`cache_tokens` bounds rows times the positions of the longest; 0 lets every slot use the whole context."""
        self.base = base
        self.slots = slots
        self.bank = bank
        self.trunk = trunk or StockTrunk(base)
        self.prefixes = Prefixes(prefix_bytes)
        self._cache_tokens = cache_tokens or slots * base.context
        self._rows = Rows()
        self._long: deque[_Reading] = deque()
        self._waiting: FairQueue[DecodeRequest] = FairQueue()
        self._cancelled: set[int] = set()

    @property
    def running(self) -> int:
        """Replies that have a place."""
        return len(self._rows) + len(self._long)

    @property
    def waiting(self) -> int:
        """Replies that wait for one."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._rows and not self._long and not self._waiting

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
        self._rows = Rows()
        self._long.clear()
        self._waiting.clear()
        self._cancelled.clear()
        self.prefixes.forget()

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Add one id to every running reply, and one more to those that join now."""
        return [*self._reap(), *self._read(), *self._decode()]

    def _requests(self) -> list[DecodeRequest]:
        reading = [request for one in self._long for request in one.requests]
        return [*self._waiting, *reading, *(row.request for row in self._rows)]

    # Leaving before the end

    def _reap(self) -> list[Emission]:
        gone, self._cancelled = self._cancelled, set()
        if not gone:
            return []
        ended = [i for i in sorted(gone) if self._waiting.remove(i)]
        for reading in self._long:
            ended += [request.id for request in reading.requests if request.id in gone]
            reading.requests = [request for request in reading.requests if request.id not in gone]
        self._long = deque(reading for reading in self._long if reading.requests)
        emissions = [Emission(i, (), (), "", FinishReason.CANCELLED) for i in ended]
        for at in reversed(range(len(self._rows))):
            row = self._rows[at]
            if row.request.id in gone:
                emissions.append(Emission(row.request.id, (), (), row.text.finish(), FinishReason.CANCELLED))
                self._rows.leave(at)
        return emissions

    # Joining

    def _read(self) -> list[Emission]:
        """Spend this step's share of reading: half of it on the oldest long prompt, when there are others."""
        budget = PREFILL_TOKENS
        together = self._next_together(budget // 2 if self._long else budget)
        emissions: list[Emission] = []
        if self._long:
            width = max((one.left for one in together), default=0)
            piece = max(budget - width * len(together), LEAST_PIECE)
            emissions += self._read_piece(self._long[0], piece)
        return emissions + self._read_together(together)

    def _next_together(self, budget: int) -> list[_Reading]:
        """Prompts that wait and may be read now, in the order in which they came; long ones are put aside."""
        together: list[_Reading] = []
        width = taken = 0
        while self._waiting and self._has_room(
            self._waiting.peek(), [one for r in together for one in r.requests]
        ):
            request = self._waiting.peek()
            twins = [one for one in (*together, *self._long) if one.is_of(request)]
            if twins:
                twins[0].requests.append(self._waiting.pop())
                continue
            reading = self._begin(request)
            if reading.left > PREFILL_TOKENS:
                self._long.append(reading)
                self._waiting.pop()
                continue
            wider = max(width, reading.left)
            if taken and wider * (taken + 1) > budget:
                break
            together.append(reading)
            self._waiting.pop()
            width, taken = wider, taken + 1
        return together

    def _has_room(self, request: DecodeRequest, joining: Sequence[DecodeRequest]) -> bool:
        """Whether there is a slot for `request`, and enough positions for every row to be as long as the longest."""
        reading = [one for r in self._long for one in r.requests]
        rows = len(self._rows) + len(reading) + len(joining) + 1
        longest = max(self._rows.longest, *(one.most_tokens for one in (request, *reading, *joining)))
        fits = rows * min(longest, self.base.context) <= self._cache_tokens
        return rows <= self.slots and (fits or rows == 1)

    def _begin(self, request: DecodeRequest) -> _Reading:
        prefix = self.prefixes.find(request.version, request.prompt_ids)
        return _Reading([request], prefix.length if prefix else 0, prefix)

    def _read_piece(self, reading: _Reading, budget: int) -> list[Emission]:
        """Go on with a long prompt, which has a cache of its own until it is read."""
        if reading.prefix:
            reading.cache.write(0, reading.prefix.kept, length=reading.done)
            reading.prefix = None
        piece = reading.ids[reading.done : reading.done + budget]
        states = self._states([piece], [reading.version], reading.cache, starts=[reading.done])
        reading.done += len(piece)
        if reading.left:
            return []
        self._long.remove(reading)
        return self._join([reading], states[:, -1], reading.cache)

    def _read_together(self, together: Sequence[_Reading]) -> list[Emission]:
        if not together:
            return []
        cache = SlotCache()
        for at, reading in enumerate(together):
            if reading.prefix:
                cache.write(at, reading.prefix.kept, length=reading.done)
        states = self._states(
            [reading.ids[reading.done :] for reading in together],
            [reading.version for reading in together],
            cache,
            starts=[reading.done for reading in together],
        )
        last = torch.tensor([reading.left - 1 for reading in together], device=states.device)
        return self._join(together, states[torch.arange(len(together), device=states.device), last], cache)

    def _join(self, read: Sequence[_Reading], states: Tensor, cache: SlotCache) -> list[Emission]:
        """Rows for all requests whose prompts were read into rows of `cache`; each gets its first id."""
        first = len(self._rows)
        whose: list[int] = []
        for at, reading in enumerate(read):
            prompt = cache.read(at, length=len(reading.ids))
            for request in reading.requests:
                self._rows.join(Row(request, self._text_of(request)), prompt)
                whose.append(at)
        logits = self.trunk.logits(states)[whose]
        return self._add(
            first, choose(logits, [Draw(row.request.sampling, 0) for row in list(self._rows)[first:]])
        )

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

    def _add(self, first: int, choices: Sequence[Choice]) -> list[Emission]:
        """Give rows `first ..` their new ids; the ones that end leave, from the last backwards."""
        rows = list(self._rows)[first:]
        emissions = [self._advance(row, choice) for row, choice in zip(rows, choices, strict=True)]
        for at in reversed(range(len(emissions))):
            if emissions[at].finish_reason:
                row = rows[at]
                kept = self._rows.cache.read(first + at, length=row.position)
                self.prefixes.keep(row.request.version, row.cached_ids, kept)
                self._rows.leave(first + at)
        return emissions

    def _advance(self, row: Row, choice: Choice) -> Emission:
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
