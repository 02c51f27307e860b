"""Prompts and responses laid out as padded rows, and how likely a model finds each response, teacher-forced.

B rows of T = P + R positions, padded on the right, so that padding comes after everything a real position can see;
positions are explicit and lengths come from the sampler, never from looking for a pad id. Runs under the caller's
grad mode and active adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from server.modeling.base import hidden_states, logits_of

HEAD_ELEMENTS = 1 << 25
"""Logits held at once: response tokens times vocabulary (128 MiB in float32)."""

Ids = Sequence[int]
STRETCH = 1.3
"""Longest row over the shortest in one micro-batch."""

Pair = tuple[Ids, Ids]
"""A prompt's ids and a response's."""


class Rows(NamedTuple):
    """Prompt + response of B pairs."""

    token_ids: Tensor
    """(B, T)"""
    positions: Tensor
    """(1, T)"""
    before: Tensor
    """(B, R) where the hidden state stands that predicts response token r (one position before it)."""
    at: Tensor
    """(B, R) where response token r itself stands."""
    response_ids: Tensor
    """(B, R)"""
    is_response: Tensor
    """(B, R)"""


def pad_rows(pairs: Sequence[Pair], *, device: torch.device | str = "cpu") -> Rows:
    """Lay prompts and responses out as one padded batch. Prompts hold at least one id."""
    assert all(len(p) > 0 for p, _ in pairs), "a prompt has at least one id"
    longest = max(len(p) + len(r) for p, r in pairs)
    width = max(1, max(len(r) for _, r in pairs))
    rows = [[*p, *r] + [0] * (longest - len(p) - len(r)) for p, r in pairs]
    starts = torch.tensor([len(p) for p, _ in pairs])[:, None]
    lengths = torch.tensor([len(r) for _, r in pairs])[:, None]
    offsets = torch.arange(width)[None]
    is_response = offsets < lengths
    at = torch.where(is_response, starts + offsets, starts - 1)
    token_ids = torch.tensor(rows)
    return Rows(
        token_ids.to(device),
        torch.arange(longest, device=device)[None],
        torch.where(is_response, at - 1, starts - 1).to(device),
        at.to(device),
        torch.where(is_response, token_ids.gather(1, at), 0).to(device),
        is_response.to(device),
    )


def micro_batches(pairs: Sequence[Pair], *, size: int) -> Iterator[list[int]]:
    """Row numbers in groups of at most `size`, a fixed order.

    Rows of like length go together, and a group ends before its longest row would make its shortest pay more than
    `STRETCH` times its own length: one long prompt among short ones would otherwise treble a whole batch's work.
    """
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    group: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: (lengths[i], i)):
        if group and (len(group) == size or lengths[i] > STRETCH * lengths[group[0]]):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def gather_rows(hidden: Tensor, where: Tensor) -> Tensor:
    """(B, T, H) at (B, R) -> (B, R, H)"""
    return hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))


def mean_over(hidden: Tensor, is_response: Tensor) -> Tensor:
    """Mean of (B, R, H) over the response's tokens, float32: (B, H); zero for an empty response."""
    count = is_response.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(is_response[..., None], hidden.float(), 0.0).sum(dim=1) / count


def token_logprobs(model: Any, rows: Rows, *, temperature: float = 1.0) -> Tensor:
    """Log probability in nats of each response token under the active adapter: (B, R), 0 outside the response."""
    hidden = hidden_states(model, rows.token_ids, rows.positions)
    return logprobs_of_states(model, hidden, rows, temperature=temperature)


def logprobs_of_states(model: Any, hidden: Tensor, rows: Rows, *, temperature: float = 1.0) -> Tensor:
    """The same from the last hidden states (B, T, H) of a pass that was made already.

    Only response positions meet the head, a chunk at a time; with gradients a chunk's logits are made again on the
    way back instead of being kept.
    """
    states = gather_rows(hidden, rows.before)[rows.is_response]
    targets = rows.response_ids[rows.is_response]

    def chunk(some: Tensor, target: Tensor) -> Tensor:
        return -functional.cross_entropy(logits_of(model, some) / temperature, target, reduction="none")

    size = max(1, HEAD_ELEMENTS // model.config.get_text_config().vocab_size)
    pieces = list(zip(states.split(size), targets.split(size), strict=True))
    again = torch.is_grad_enabled() and len(pieces) > 1
    found = [checkpoint(chunk, *piece, use_reentrant=False) if again else chunk(*piece) for piece in pieces]
    flat = torch.zeros(rows.is_response.shape, device=states.device)
    return flat.masked_scatter(rows.is_response, torch.cat(found)) if len(targets) else flat


def sequence_logprobs(
    model: Any, pairs: Sequence[Pair], *, temperature: float = 1.0, micro_batch: int = 16
) -> list[Tensor]:
    """Log probabilities of any number of responses: for each pair float32 (R,)."""
    device = next(model.parameters()).device
    found: list[Tensor] = [torch.empty(0)] * len(pairs)
    for chosen in micro_batches(pairs, size=micro_batch):
        values = token_logprobs(
            model, pad_rows([pairs[i] for i in chosen], device=device), temperature=temperature
        )
        for i, row in zip(chosen, values, strict=True):
            found[i] = row[: len(pairs[i][1])]
    return found
