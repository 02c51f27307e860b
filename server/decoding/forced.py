"""What the model thinks of text that already exists: log probabilities and hidden states, teacher-forced.

B rows, P prompt and R response positions, T = P + R, H hidden size. Rows are right-padded, so that padding comes after
everything a real position can see; positions are explicit. Runs under the caller's grad mode and active adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from server.modeling import hidden_states, logits_of

HEAD_ELEMENTS = 1 << 25
"""Logits computed at once: rows times vocabulary (128 MiB in float32)."""

Ids = Sequence[int]


def sequence_logprobs(
    model: Any,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    temperature: float = 1.0,
    micro_batch: int = 16,
) -> list[Tensor]:
    """Log probability in nats of each response id: per row float32 (R,).

    Only the states that predict a response id go through the head.
    """
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for rows, hidden in _forward(model, prompts, responses, micro_batch=micro_batch):
        states = [
            hidden[at, len(prompts[i]) - 1 : len(prompts[i]) + len(responses[i]) - 1]
            for at, i in enumerate(rows)
        ]
        targets = torch.tensor(
            [t for i in rows for t in responses[i]], dtype=torch.long, device=hidden.device
        )
        values = _head(model, torch.cat(states), targets, temperature=temperature)
        for i, part in zip(rows, values.split([len(responses[i]) for i in rows]), strict=True):
            found[i] = part
    return found


def sequence_hidden(
    model: Any, prompts: Sequence[Ids], responses: Sequence[Ids], *, micro_batch: int = 16
) -> list[Tensor]:
    """Last hidden states around each response: per row (R + 1, H), at positions P-1 .. P+R-1.

    Entry t is the state in which response id t is chosen (what a value head reads); the last entry is the state
    after the whole response (what a reward head reads).
    """
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for rows, hidden in _forward(model, prompts, responses, micro_batch=micro_batch):
        for at, i in enumerate(rows):
            found[i] = hidden[at, len(prompts[i]) - 1 : len(prompts[i]) + len(responses[i])]
    return found


def _forward(
    model: Any, prompts: Sequence[Ids], responses: Sequence[Ids], *, micro_batch: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Which rows, and their hidden states (B, T, H); rows of like length share a batch."""
    assert len(prompts) == len(responses), "one response per prompt"
    assert all(len(prompt) > 0 for prompt in prompts), "a prompt has at least one id"
    device = next(model.parameters()).device
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), micro_batch):
        rows = order[start : start + micro_batch]
        width = max(lengths[i] for i in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for at, i in enumerate(rows):
            ids[at, : lengths[i]] = torch.tensor([*prompts[i], *responses[i]], dtype=torch.long)
        positions = torch.arange(width, device=device)[None]
        yield rows, hidden_states(model, ids.to(device), positions)


def _head(model: Any, states: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Log probability of each target (N,) under states (N, H), a chunk of the vocabulary's logits at a time."""
    if not len(targets):
        return torch.empty(0, device=states.device)
    size = max(1, HEAD_ELEMENTS // _vocabulary(model))
    parts = [
        -functional.cross_entropy(logits_of(model, some) / temperature, target, reduction="none")
        for some, target in zip(states.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)


def _vocabulary(model: Any) -> int:
    size: int = model.config.get_text_config().vocab_size
    return size
