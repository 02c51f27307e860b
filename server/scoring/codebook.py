"""Kinds of tokens as the base sees them: clusters of its states, so that a reply can be counted instead of averaged.

    replies -> states of their tokens at some depths -> k-means -> for each token the number of its cluster

A manner is often a few tokens of a reply: an emoji, a question mark, "perhaps", a name. In a mean over fifty states it
hardly shows; how often the cluster occurs that such tokens fall into says it outright. Clusters are found in replies
alone, without any vote. Knows nothing of heads and of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TOKENS_FOR_ONE = 8
"""At most one cluster for so many tokens."""
ROUNDS = 15


class Book(NamedTuple):
    """One clustering: the code of a token is the row of the largest `states @ weights.T + bias`."""

    depth: int
    """Which of the depths that features are read from."""
    weights: Tensor
    """(K, H)"""
    bias: Tensor
    """(K,)"""

    def codes(self, states: Tensor) -> Tensor:
        """(..., H) -> (...,)"""
        return functional.linear(states.float(), self.weights, self.bias).argmax(dim=-1)

    def counts(self, codes: Tensor, is_response: Tensor) -> Tensor:
        """log(1 + how often each code occurs) in each response: (B, R), (B, R) -> (B, K)."""
        found = torch.zeros(len(codes), len(self.bias), device=codes.device)
        return found.scatter_add_(1, codes, is_response.float()).log1p()

    def running(self, codes: Tensor, is_response: Tensor, weights: Tensor) -> Tensor:
        """`counts @ weights` of every beginning that ends with each token: (B, R)."""
        marks = functional.one_hot(codes, len(self.bias)) * is_response[..., None]  # (B, R, K)
        so_far = marks.cumsum(dim=1).gather(2, codes[..., None])[..., 0].clamp(min=1).float()
        gained = (so_far.log1p() - so_far.log()) * weights[codes]
        return torch.where(is_response, gained, 0.0).cumsum(dim=1)


CodeBook = tuple[Book, ...]
"""Several clusterings; their counts stand side by side."""


def make_book(states: Tensor, *, depth: int, size: int, seed: int) -> Book:
    """Cluster standardised states (N, H) of tokens by k-means (Lloyd 1982), begun at tokens drawn by `seed`."""
    mean, sd = states.mean(dim=0), states.std(dim=0, unbiased=False).clamp(min=1e-6)
    x = (states - mean) / sd
    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(size, len(x) // TOKENS_FOR_ONE))
    centres = x[torch.randperm(len(x), generator=generator)[:size]].clone()
    for _ in range(ROUNDS):
        nearest = _nearest(x, centres)
        count = torch.bincount(nearest, minlength=size)[:, None]
        total = torch.zeros_like(centres).index_add_(0, nearest, x)
        centres = torch.where(count > 0, total / count.clamp(min=1), centres)
    # |x - c|² is least where x·c - |c|²/2 is largest; the standardising is folded in.
    weights = centres / sd
    return Book(depth, weights, -(weights @ mean) - 0.5 * (centres**2).sum(dim=1))


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return functional.linear(x, centres, -0.5 * (centres**2).sum(dim=1)).argmax(dim=1)


def to_tensors(book: CodeBook) -> dict[str, Tensor]:
    """For a safetensors file."""
    return {
        f"codes{i}.{name}": value.contiguous().clone()
        for i, one in enumerate(book)
        for name, value in (("depth", torch.tensor(one.depth)), ("weights", one.weights), ("bias", one.bias))
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> CodeBook:
    """What `to_tensors` wrote. Raises KeyError when a part is missing."""
    count = sum(name.startswith("codes") and name.endswith(".depth") for name in tensors)
    return tuple(
        Book(
            int(tensors[f"codes{i}.depth"]),
            tensors[f"codes{i}.weights"].clone(),
            tensors[f"codes{i}.bias"].clone(),
        )
        for i in range(count)
    )


def sizes(book: Sequence[Book]) -> list[int]:
    """How many codes each clustering has."""
    return [len(one.bias) for one in book]
