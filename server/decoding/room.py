"""Room that costs no memory before it is used, and how much of it a machine has for keys and values."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARE = 0.5
"""Of what is free when the server starts, keys and values may come to need at most so much."""

LEAST_KEPT = 64 * 2**20
CONTEXTS_KEPT = 8
"""Whole conversations whose keys are worth keeping; on a small model far more fit."""


def zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of which, on a CPU, only those pages take memory that something was written to.

    torch fills what it allocates; the system hands out pages that are zero anyway, and numpy asks it for them.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """What keys and values of one token take in all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * dtype.itemsize)


def affordable_tokens(config: Any, dtype: torch.dtype, device: torch.device) -> int:
    """How many tokens' keys and values fit into this machine's free memory, leaving the other half of it."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return int(free * SHARE) // bytes_per_token(config, dtype)


def affordable_prefixes(config: Any, dtype: torch.dtype, *, context: int, tokens: int) -> int:
    """Bytes for keys and values of finished replies beside `tokens` of running ones."""
    each = bytes_per_token(config, dtype)
    return min(max(LEAST_KEPT, CONTEXTS_KEPT * context * each), tokens * each // 8)


def available_bytes(limits: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be had: by the machine's own count, and by a container's limit where there is one."""
    try:
        most, used = (int((limits / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such files, or no limit: "max"
        return _free()
    return max(min(_free(), most - used), 0)


def _free() -> int:
    """Linux counts in what its file cache would give back."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024
