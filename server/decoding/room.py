"""Room that costs no memory before it is used, and how much of it a machine has for keys and values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

SHARE = 0.5
"""Of what is free when the server starts, keys and values may come to need at most so much."""


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
    is_cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available
    return int(free * SHARE) // bytes_per_token(config, dtype)
