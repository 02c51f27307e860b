"""How much of prompts a step may read on this machine, so that those who are being answered hardly notice."""

from __future__ import annotations

import statistics
import time

import torch

from server.decoding.cache import SlotCache
from server.decoding.loop import PREFILL_TOKENS
from server.decoding.trunk import Trunk

READ_SECONDS = 0.2
"""What a step may spend on reading; a gap of this length is noticed, and not minded."""
LEAST = 64
"""Tokens below which reading is no cheaper: weights have to be fetched for any number of them."""
TRIES = 3


@torch.no_grad()
def affordable_prefill(trunk: Trunk) -> int:
    """Prompt ids that one step may read, by the clock; between `LEAST` and `PREFILL_TOKENS`."""
    length = min(LEAST, trunk.base.context)
    device = trunk.base.device
    ids = torch.ones(1, length, dtype=torch.long, device=device)

    def seconds() -> float:
        cache = SlotCache(most=trunk.base.context, rows=1, length=length)
        begun = time.perf_counter()
        states = trunk.states(ids, cache.begin(0, [0], length, device), cache)
        float(states[0, -1, 0])  # waits for the device
        return time.perf_counter() - begun

    seconds()  # the first is slower
    pace = length / statistics.median(seconds() for _ in range(TRIES))
    return max(LEAST, min(PREFILL_TOKENS, int(pace * READ_SECONDS)))
