"""Choosing the next id of each row, and what the raw policy thought of it.

The uniform number of a draw depends on (seed, position) alone, so a reply is the same alone or in a crowd.
Log probabilities are those of the raw policy: temperature 1, nothing truncated, float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from server.engine.base import Sampling

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
COLD = 1e-5
"""Below this temperature the likeliest id is taken: float32 cannot divide by much less."""
LIKELIEST = 1024
"""So many ids are looked at first for what `top_p` keeps."""
BLOCK = 256
"""Ids whose probabilities are summed together before it is asked which of them was drawn."""


class Draw(NamedTuple):
    """How one row draws its id number `position` (0 for the first of the reply)."""

    sampling: Sampling
    position: int


class Choice(NamedTuple):
    """The id chosen for one row, its log probability, and (id, logprob) of the likeliest ids where asked for."""

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


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Choice | None]:
    """One choice for each row of float32 `logits` (B, V); None where the policy gave no finite probability."""
    norm = torch.logsumexp(logits, dim=-1)
    warm = [i for i, draw in enumerate(draws) if draw.sampling.temperature >= COLD]
    if len(warm) == len(draws):
        chosen = _sample(logits, draws)
    else:
        chosen = logits.argmax(dim=-1)
        if warm:
            chosen[warm] = _sample(logits[warm], [draws[i] for i in warm])
    logprobs = logits.gather(1, chosen[:, None])[:, 0] - norm
    tops = _tops(logits, norm, draws)
    return [
        Choice(token_id, logprob, top) if math.isfinite(logprob) else None
        for token_id, logprob, top in zip(chosen.tolist(), logprobs.tolist(), tops, strict=True)
    ]


def _sample(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Ids (B,) by inverse CDF in the order of the vocabulary."""
    device = logits.device
    temperature = torch.tensor([d.sampling.temperature for d in draws], device=device)
    probabilities = torch.softmax(logits / temperature[:, None], dim=-1)
    points = torch.tensor(
        [uniform(d.sampling.seed, d.position) for d in draws], dtype=torch.float64, device=device
    )[:, None]
    cut = [d.sampling.top_k > 0 or d.sampling.top_p < 1 for d in draws]
    if not any(cut):
        return _invert(probabilities, points)
    chosen = torch.empty(len(draws), dtype=torch.long, device=device)
    some, rest = (
        [i for i, is_cut in enumerate(cut) if is_cut],
        [i for i, is_cut in enumerate(cut) if not is_cut],
    )
    chosen[some] = _draw_cut(probabilities[some], points[some], [draws[i].sampling for i in some])
    if rest:
        chosen[rest] = _invert(probabilities[rest], points[rest])
    return chosen


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """Where the running sum of `weights` (B, K) passes the share `points` (B, 1) of the whole: (B,).

    In two stages, since a running sum over a whole vocabulary costs more than all else here: first the block of ids,
    then the id. What has weight 0 is never drawn.
    """
    rows, size = weights.shape
    blocks = functional.pad(weights, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    cdf = sums.cumsum(dim=-1)
    block = _passes(cdf, points * cdf[:, -1:])
    within = blocks[torch.arange(rows, device=weights.device), block[:, 0]].cumsum(
        dim=-1, dtype=torch.float64
    )
    before = (cdf - sums).gather(1, block)
    found = block * BLOCK + _passes(within, (points * cdf[:, -1:] - before).clamp_(min=0))
    return found[:, 0].clamp_(max=size - 1)  # where the policy gave no number there is nothing to find


def _passes(cdf: Tensor, points: Tensor) -> Tensor:
    """The first place (B, 1) of each row of `cdf` (B, K) that is larger than its point (B, 1), rounded into the row."""
    below = torch.nextafter(cdf[:, -1:], torch.zeros_like(points))
    found = torch.searchsorted(cdf, torch.minimum(points, below), right=True)
    return found.clamp_(max=cdf.shape[-1] - 1)


def _draw_cut(probabilities: Tensor, points: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Ids (B,) drawn from the `top_k` likeliest, and of those the fewest that hold `top_p`."""
    device, size = probabilities.device, probabilities.shape[-1]
    most = torch.tensor([s.top_k if s.top_k > 0 else size for s in samplings], device=device)[:, None]
    mass = torch.tensor([min(s.top_p, 1.0) for s in samplings], dtype=torch.float64, device=device)[:, None]
    ordered, order = probabilities.topk(min(LIKELIEST, size), dim=-1)
    holds_enough = ordered.sum(dim=-1, keepdim=True, dtype=torch.float64) >= mass
    chosen = _draw_ordered(ordered, order, points, most, mass, size)
    # Sorting the whole vocabulary would cost as much as a small model's step, and hardly ever has to be. Rows for
    # which it must be are taken apart: what one row draws does not depend on the others.
    rest = ((most > order.shape[1]) & ((most < size) | ~holds_enough))[:, 0]
    if bool(rest.any()):
        ordered, order = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        chosen[rest] = _draw_ordered(ordered, order, points[rest], most[rest], mass[rest], size)
    return chosen


def _draw_ordered(
    ordered: Tensor, order: Tensor, points: Tensor, most: Tensor, mass: Tensor, size: int
) -> Tensor:
    """Ids (B,) of `order` (B, K), whose probabilities fall; those that are kept are drawn in the vocabulary's order."""
    ordered = ordered.double() * (torch.arange(order.shape[1], device=order.device) < most)
    whole = torch.where(most < size, ordered.sum(dim=-1, keepdim=True), 1.0)
    keep = ordered.cumsum(dim=-1) - ordered < mass * whole
    keep[:, 0] = True
    ids, back = order.sort(dim=-1)
    return ids.gather(1, _invert((ordered * keep).gather(1, back), points)[:, None])[:, 0]


def _tops(logits: Tensor, norm: Tensor, draws: Sequence[Draw]) -> list[tuple[tuple[int, float], ...]]:
    most = max(draw.sampling.top_logprobs for draw in draws)
    if most < 1:
        return [()] * len(draws)
    values, ids = logits.topk(min(most, logits.shape[-1]), dim=-1)
    return [
        tuple(zip(row_ids, row_values, strict=True))[: draw.sampling.top_logprobs]
        for row_ids, row_values, draw in zip(
            ids.tolist(), (values - norm[:, None]).tolist(), draws, strict=True
        )
    ]
