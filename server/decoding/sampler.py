"""Choosing the next id of each row, and what the raw policy thought of it.

The uniform number of a draw depends on (seed, position) alone, so a reply is the same alone or in a crowd.
Log probabilities are those of the raw policy: temperature 1, nothing truncated, float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from server.engine.base import Sampling

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


class Draw(NamedTuple):
    """How one row draws its id number `position` (0 for the first of the reply)."""

    sampling: Sampling
    position: int


class Choice(NamedTuple):
    """The id chosen for one row. `top` holds (id, logprob) of the likeliest ids, when they were asked for."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to (seed, position): two rounds of splitmix64."""
    bits = _mix(_mix(seed & MASK) + position * GOLDEN & MASK)
    return (bits >> 12) * 2.0**-52


def _mix(state: int) -> int:
    # Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014), the variant of splitmix64.
    state = state + GOLDEN & MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """One choice per row of float32 `logits` (B, V). Raises FloatingPointError when a row is not finite."""
    raw = torch.log_softmax(logits, dim=-1)
    chosen = logits.argmax(dim=-1)
    warm = [i for i, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if warm:
        some = warm if len(warm) < len(draws) else slice(None)
        chosen[some] = _sample(logits[some], [draws[i] for i in warm])
    logprobs = raw.gather(1, chosen[:, None])[:, 0]
    if not bool(torch.isfinite(logprobs).all()):
        raise FloatingPointError("the policy gave a row without a finite probability")
    tops = _tops(raw, draws)
    return [
        Choice(token_id, logprob, top)
        for token_id, logprob, top in zip(chosen.tolist(), logprobs.tolist(), tops, strict=True)
    ]


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Ids (B,) by inverse CDF in the order of the vocabulary."""
    device = logits.device
    temperature = torch.tensor([d.sampling.temperature for d in draws], device=device)
    probabilities = torch.softmax(logits / temperature[:, None], dim=-1)
    cut = [i for i, d in enumerate(draws) if d.sampling.top_k > 0 or d.sampling.top_p < 1]
    if cut:
        probabilities[cut] = _truncate(probabilities[cut], [draws[i].sampling for i in cut])
    cdf = probabilities.cumsum(dim=-1, dtype=torch.float64)
    points = torch.tensor(
        [uniform(d.sampling.seed, d.position) for d in draws], dtype=torch.float64, device=device
    )
    found = torch.searchsorted(cdf, points[:, None] * cdf[:, -1:], right=True)[:, 0]
    return found.clamp_(max=logits.shape[-1] - 1)


def _truncate(probabilities: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Zero all but the `top_k` likeliest ids and the smallest set that holds `top_p` of what is left."""
    device, size = probabilities.device, probabilities.shape[-1]
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    most = torch.tensor([s.top_k if s.top_k > 0 else size for s in samplings], device=device)
    ordered = ordered * (torch.arange(size, device=device)[None] < most[:, None])
    mass = torch.tensor([min(s.top_p, 1.0) for s in samplings], device=device)[:, None]
    before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
    keep = before < mass * ordered.sum(dim=-1, keepdim=True)
    keep[:, 0] = True
    return torch.zeros_like(probabilities).scatter_(1, order, ordered * keep)


def _tops(raw: Tensor, draws: Sequence[Draw]) -> list[tuple[tuple[int, float], ...]]:
    most = max(draw.sampling.top_logprobs for draw in draws)
    if most < 1:
        return [()] * len(draws)
    values, ids = raw.topk(min(most, raw.shape[-1]), dim=-1)
    return [
        tuple(zip(row_ids, row_values, strict=True))[: draw.sampling.top_logprobs]
        for row_ids, row_values, draw in zip(ids.tolist(), values.tolist(), draws, strict=True)
    ]
