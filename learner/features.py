"""Features of many responses at once: what linear fits read.

Under the bare base they cost one forward pass and never change, so that folds by user and refits on bootstraps are
fits of milliseconds. What the features are is `server.scoring`'s business. Knows nothing of votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from server.modeling import Pair, micro_batches, pad_rows, use_adapter
from server.scoring import CodeBook, features


@torch.no_grad()
def active_features(
    peft_model: Any,
    pairs: Sequence[Pair],
    book: CodeBook,
    *,
    fixed: Tensor | None = None,
    micro_batch: int = 32,
) -> Tensor:
    """Under whatever adapter is active: (N, F). `fixed`: what no adapter changes, unless that is the bare base."""
    device = next(peft_model.parameters()).device
    out: Tensor | None = None
    for chosen in micro_batches(pairs, size=micro_batch):
        rows = pad_rows([pairs[i] for i in chosen], device=device)
        given = None if fixed is None else fixed[chosen].to(device)
        part = features(peft_model, rows, book, fixed=given).cpu()
        if out is None:
            out = torch.zeros(len(pairs), part.shape[1])
        out[chosen] = part
    return torch.zeros(0, 1) if out is None else out


def base_features(peft_model: Any, pairs: Sequence[Pair], book: CodeBook, *, micro_batch: int = 32) -> Tensor:
    """Under the bare base: (N, F). Leaves the adapters switched off."""
    use_adapter(peft_model, None, trainable=False)
    return active_features(peft_model, pairs, book, micro_batch=micro_batch)
