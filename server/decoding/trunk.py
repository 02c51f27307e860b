"""The model as the step loop runs it: ids at positions in, hidden states out, keys and values in a cache.

    stock     the architecture's own forward, whatever it is; adapters join by hooks on its linear layers
    fused     our forward for one family of architectures (`server.decoding.fused`)

Both give the same states; which one runs is decided by capability and reported. Refuses to know requests and sampling.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from server.decoding.cache import SlotCache, hidden_from
from server.modeling import Base, hidden_states, logits_of

SLIDING = "sliding_attention"


class Trunk(Protocol):
    """Runs the layers of one base."""

    name: str
    """`stock` or `fused`, and `packed` when the weights are; for reports."""
    base: Base

    def states(self, ids: Tensor, positions: Tensor, cache: SlotCache) -> Tensor:
        """Hidden states (B, L, H) of `ids` (B, L) at `positions` (B, L), for which `cache.begin` was called."""

    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits (N, V) of hidden states (N, H)."""


class StockTrunk:
    """The forward that transformers has for this architecture."""

    def __init__(self, base: Base, *, packed: bool = False) -> None:
        self.name = "stock, packed" if packed else "stock"
        self.base = base
        text = base.model.config.get_text_config()
        uses_window = getattr(text, "use_sliding_window", True)
        self._window: int | None = getattr(text, "sliding_window", None) if uses_window else None
        self._kinds = set(getattr(text, "layer_types", None) or ())

    def states(self, ids: Tensor, positions: Tensor, cache: SlotCache) -> Tensor:
        """Hidden states (B, L, H)."""
        return hidden_states(
            self.base.model,
            ids,
            # What pads a row may stand beyond the last position that the model knows; nobody reads what it gives.
            positions.clamp(max=self.base.context - 1),
            attention_mask=self._mask(positions, cache.span),
            past_key_values=cache,
            use_cache=True,
        )

    def logits(self, states: Tensor) -> Tensor:
        """Float32 logits (N, V)."""
        return logits_of(self.base.model, states)

    def _mask(self, positions: Tensor, span: int) -> Any:
        """What each query may see; by kind of layer where an architecture has several."""
        if not self._kinds:
            return hidden_from(positions, span, dtype=self.base.dtype, window=self._window)
        return {
            kind: hidden_from(
                positions, span, dtype=self.base.dtype, window=self._window if kind == SLIDING else None
            )
            for kind in self._kinds
        }
