"""Many replies at once, with nobody waiting: what the learner's rollouts and judges need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.decoding.loop import Decoder, Emission
from server.decoding.rows import DecodeRequest
from server.engine.base import FinishReason


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished reply."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason


def generate_offline(
    decoder: Decoder,
    requests: Sequence[DecodeRequest],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completed]:
    """All replies, in the order of the requests, which join in that order: the same bytes every time on one thread.

    `on_progress` is called with (finished, all) whenever a reply ends. Raises FloatingPointError when the policy gives
    a row without a finite probability.
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
            if emission.has_failed:
                raise FloatingPointError("the policy gave a row without a finite probability")
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
