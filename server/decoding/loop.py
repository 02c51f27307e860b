"""The step loop: rows join and leave a running batch, and every step adds one id to each of them.

    admit -> wait for a place -> prefill (right-padded, under a token budget) -> one decode step for all -> leave

Slots are dense: rows 0..B-1 are in use, and the last row moves into the hole that a leaving row makes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache, causal_mask, step_mask
from server.decoding.sampler import Choice, Draw, choose
from server.engine.base import FinishReason, Sampling, TopLogprob
from server.engine.text import TextStream
from server.errors import Invalid
from server.modeling import STRANGE, Base, hidden_states, logits_of, unsupported

PREFILL_TOKENS = 512
"""Prompt ids, padding included, that one step may read before it decodes; a longer prompt goes alone."""


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One reply to make. `version` needs a bank; without one the model runs with whatever adapter is active."""

    id: int
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    version: int = 0


@dataclass(frozen=True, slots=True)
class Emission:
    """What one step added to one reply. A cancelled reply's last emission has no ids."""

    id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason | None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished reply."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason


@dataclass(slots=True)
class _Row:
    request: DecodeRequest
    text: TextStream
    ids: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the newest id stands; everything before it is in the cache."""
        return len(self.request.prompt_ids) + len(self.ids) - 1


class Decoder:
    """Runs one model for many replies. Not thread-safe: whoever owns it calls everything from one thread."""

    def __init__(self, base: Base, *, slots: int = 32, bank: AdapterBank | None = None) -> None:
        self.base = base
        self.slots = slots
        self.bank = bank
        self._rows: list[_Row] = []
        self._waiting: deque[DecodeRequest] = deque()
        self._cancelled: set[int] = set()
        self._cache = SlotCache(rows=slots, length=base.context)

    @property
    def running(self) -> int:
        """Replies that have a place."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Replies that wait for one."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._rows and not self._waiting

    def uses(self, version: int) -> bool:
        """Whether a running or waiting reply needs `version`."""
        return any(r.version == version for r in (*self._waiting, *(row.request for row in self._rows)))

    def admit(self, request: DecodeRequest) -> None:
        """Queue a reply. Raises Invalid when its prompt leaves no room for a single id."""
        if not 0 < len(request.prompt_ids) < self.base.context:
            raise Invalid(
                f"a prompt has 1 to {self.base.context - 1} tokens, not {len(request.prompt_ids)}",
                code="prompt_too_long",
                param="messages",
            )
        assert self.bank or not request.version, "a version needs a bank"
        self._waiting.append(request)

    def cancel(self, *request_ids: int) -> None:
        """Let the next step end these replies; an unknown id is ignored, it may have ended already."""
        self._cancelled.update(request_ids)

    def reset(self) -> None:
        """Forget every reply and all keys and values."""
        self._rows.clear()
        self._waiting.clear()
        self._cancelled.clear()
        self._cache = SlotCache(rows=self.slots, length=self.base.context)

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Add one id to every running reply, and one more to those that join now."""
        emissions = self._reap()
        emissions += self._prefill()
        emissions += self._decode()
        return emissions

    @torch.no_grad()
    def check(self) -> None:
        """Raises SetupError unless a step over cached keys gives what the whole sequence gives."""
        model, device = self.base.model, self.base.device
        ids = torch.arange(1, 7, device=device)[None] % model.config.get_text_config().vocab_size
        cache = SlotCache(rows=1, length=self.base.context)
        if self.bank:
            self.bank.select([0])
        try:
            whole = logits_of(model, hidden_states(model, ids, torch.arange(6, device=device)[None])[:, -1])
            self._run_prefill(cache, ids[:, :5], first_row=0)
            stepped = self._run_step(cache, ids[:, 5], torch.tensor([5], device=device))
        except STRANGE as error:
            raise unsupported(model, f"cannot be run step by step ({error})") from error
        tolerance = 1e-3 if self.base.dtype == torch.float32 else 0.5
        if not torch.allclose(whole, stepped, rtol=0.02, atol=tolerance):
            raise unsupported(model, "keeps more than keys and values between steps")

    def _reap(self) -> list[Emission]:
        gone, self._cancelled = self._cancelled, set()
        if not gone:
            return []
        ended = [r.id for r in self._waiting if r.id in gone]
        self._waiting = deque(r for r in self._waiting if r.id not in gone)
        emissions = [Emission(i, (), (), "", FinishReason.CANCELLED) for i in ended]
        for at in reversed(range(len(self._rows))):
            row = self._rows[at]
            if row.request.id in gone:
                emissions.append(Emission(row.request.id, (), (), row.text.finish(), FinishReason.CANCELLED))
                self._leave(at)
        return emissions

    def _prefill(self) -> list[Emission]:
        joining: list[DecodeRequest] = []
        width = 0
        while self._waiting and self.running + len(joining) < self.slots:
            wider = max(width, len(self._waiting[0].prompt_ids))
            if joining and wider * (len(joining) + 1) > PREFILL_TOKENS:
                break
            joining.append(self._waiting.popleft())
            width = wider
        if not joining:
            return []
        ids = torch.zeros(len(joining), width, dtype=torch.long)
        for at, request in enumerate(joining):
            ids[at, : len(request.prompt_ids)] = torch.tensor(request.prompt_ids)
        if self.bank:
            self.bank.select([request.version for request in joining])
        hidden = self._run_prefill(self._cache, ids.to(self.base.device), first_row=self.running)
        last = torch.tensor([len(r.prompt_ids) - 1 for r in joining], device=hidden.device)
        logits = logits_of(self.base.model, hidden[torch.arange(len(joining), device=hidden.device), last])
        first = self.running
        self._rows += [_Row(request, self._text_of(request)) for request in joining]
        return self._add(first, choose(logits, [Draw(r.sampling, 0) for r in joining]))

    def _decode(self) -> list[Emission]:
        if not self._rows:
            return []
        device = self.base.device
        ids = torch.tensor([row.ids[-1] for row in self._rows], device=device)
        positions = torch.tensor([row.position for row in self._rows], device=device)
        if self.bank:
            self.bank.select([row.request.version for row in self._rows])
        logits = self._run_step(self._cache, ids, positions)
        return self._add(0, choose(logits, [Draw(r.request.sampling, len(r.ids)) for r in self._rows]))

    def _run_prefill(self, cache: SlotCache, ids: Tensor, *, first_row: int) -> Tensor:
        """Hidden states (B, L, H) of right-padded prompts (B, L), whose keys go to rows `first_row ..`."""
        cache.begin_prefill(first_row, len(ids))
        length = ids.shape[1]
        return hidden_states(
            self.base.model,
            ids,
            torch.arange(length, device=ids.device)[None],
            attention_mask=causal_mask(length, dtype=self.base.dtype, device=ids.device),
            past_key_values=cache,
            use_cache=True,
        )

    def _run_step(self, cache: SlotCache, ids: Tensor, positions: Tensor) -> Tensor:
        """Float32 logits (B, V) after one more id (B,) per row at `positions` (B,)."""
        span = cache.begin_step(positions)
        hidden = hidden_states(
            self.base.model,
            ids[:, None],
            positions[:, None],
            attention_mask=step_mask(positions, span, dtype=self.base.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        return logits_of(self.base.model, hidden[:, -1])

    def _text_of(self, request: DecodeRequest) -> TextStream:
        renderer = self.base.renderer
        stops = (*request.sampling.stop, *renderer.stop_strings)
        return TextStream(renderer.decode, stops=stops, prefix=renderer.reply_prefix)

    def _add(self, first: int, choices: Sequence[Choice]) -> list[Emission]:
        """Give rows `first ..` their new ids; the ones that end leave, from the last backwards."""
        emissions = [
            self._advance(row, choice) for row, choice in zip(self._rows[first:], choices, strict=True)
        ]
        for at in reversed(range(len(emissions))):
            if emissions[at].finish_reason:
                self._leave(first + at)
        return emissions

    def _advance(self, row: _Row, choice: Choice) -> Emission:
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

    def _leave(self, at: int) -> None:
        last = len(self._rows) - 1
        if at != last:
            self._cache.move(last, at, length=self._rows[last].position + 1)
            self._rows[at] = self._rows[last]
        self._rows.pop()


def generate_offline(
    decoder: Decoder,
    requests: Sequence[DecodeRequest],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completed]:
    """All replies, in the order of the requests, which join in that order: the same bytes every time on one thread.

    `on_progress` is called with (finished, all) whenever a reply ends.
    """
    assert decoder.running + decoder.waiting == 0, "a decoder that works offline serves nobody else"
    assert len({request.id for request in requests}) == len(requests), "ids are distinct"
    for request in requests:
        decoder.admit(request)
    parts: dict[int, list[Emission]] = {request.id: [] for request in requests}
    finished = 0
    while not decoder.idle:
        for emission in decoder.step():
            parts[emission.id].append(emission)
            if emission.finish_reason:
                finished += 1
                if on_progress:
                    on_progress(finished, len(requests))
    return [_completed(parts[request.id]) for request in requests]


def _completed(emissions: Sequence[Emission]) -> Completed:
    reason = emissions[-1].finish_reason
    assert reason, "every reply ends"
    return Completed(
        token_ids=tuple(i for e in emissions for i in e.token_ids),
        logprobs=tuple(p for e in emissions for p in e.logprobs),
        text="".join(e.text for e in emissions),
        finish_reason=reason,
    )
