"""How likely a version finds a reply, through the very forward that serves it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.decoding.bank import AdapterBank
from server.decoding.cache import SlotCache
from server.decoding.trunk import Trunk

PIECE = 512
"""Tokens read at once; bounds the logits that are held."""


@torch.no_grad()
def score(
    trunk: Trunk, bank: AdapterBank, version: int, prompt: Sequence[int], response: Sequence[int]
) -> tuple[float, ...]:
    """Raw-policy log probability in nats of each id of `response`, temperature 1, nothing truncated."""
    if not response:
        return ()
    device = bank.device
    ids = torch.tensor([[*prompt, *response]], device=device)
    cache, found = SlotCache(), []
    first = len(prompt) - 1  # whose state predicts the first id of the response
    for start in range(0, ids.shape[1] - 1, PIECE):
        end = min(start + PIECE, ids.shape[1] - 1)
        bank.select([version], length=end - start)
        states = trunk.states(ids[:, start:end], cache.begin(0, [start], end - start, device), cache)[0]
        if end > first:
            at = max(first - start, 0)
            logprobs = torch.log_softmax(trunk.logits(states[at:]), dim=-1)
            found.append(logprobs.gather(1, ids[0, start + at + 1 : end + 1, None])[:, 0])
    return tuple(torch.cat(found).tolist())
