"""The reward model as served: small adapters on the one shared base, a head each, one score for a response.

Owns how a response becomes features and features become a score, and the files that hold them. Training it is
`learner.train_reward`'s business. Knows nothing of votes, users or the record.

prompt and response ids -> padded rows -> hidden states under each member's adapter -> pooled features -> heads -> score
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.errors import AdapterRejected
from server.modeling import load_adapter, save_adapter, states_at, use_adapter

HEADS = "heads.safetensors"
CARD = "reward.json"
FORMAT = 2
DEPTHS = (0.0, 0.5, 0.8, 1.0)
"""Which layers features are read from, as shares of the depth."""

Ids = Sequence[int]
Pair = tuple[Ids, Ids]
"""A prompt's ids and a response's."""


class Rows(NamedTuple):
    """Prompt + response, padded on the right; lengths come from here, never from looking for a pad id."""

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
    """Row numbers in groups of at most `size`, of like length so that little is padded; a fixed order."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]) + len(pairs[i][1]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def gather_rows(hidden: Tensor, where: Tensor) -> Tensor:
    """(B, T, H) at (B, R) -> (B, R, H)"""
    return hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))


def mean_over(hidden: Tensor, is_response: Tensor) -> Tensor:
    """Mean of (B, R, H) over the response's tokens, float32: (B, H); zero for an empty response."""
    count = is_response.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(is_response[..., None], hidden.float(), 0.0).sum(dim=1) / count


def features(peft_model: Any, rows: Rows) -> Tensor:
    """Features of responses under whatever adapter is active: at each depth the mean state, and the log length (B, F).

    With a few hundred votes the mean over the response at several depths orders unseen replies better than the last
    layer or the last token: a style is spread over the reply, and early layers still know which words it used.
    """
    states = states_at(peft_model, rows.token_ids, rows.positions, DEPTHS)
    means = [mean_over(gather_rows(state, rows.at), rows.is_response) for state in states]
    length = torch.log1p(rows.is_response.sum(dim=1, keepdim=True).float())
    return torch.cat([*means, length], dim=1)


class Scores(NamedTuple):
    mean: Tensor
    """(B,) over the members; 0 and 1 are mean and standard deviation of the bare base's replies."""
    std: Tensor
    """(B,) over the members: how much they disagree."""


class Head(NamedTuple):
    """score = ((x - mean) · scale) @ weights + bias, all float32."""

    weights: Tensor
    """(F,)"""
    bias: Tensor
    """()"""
    mean: Tensor
    """(F,)"""
    scale: Tensor
    """(F,)"""

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.scale) @ self.weights + self.bias


@dataclass(frozen=True, slots=True)
class RewardModel:
    """An ensemble of (adapter, head) on one shared base.

    `names[k]` is member k's adapter inside `peft_model`, or None for a head on the bare base. The final affine
    map is the same for all members: scores of the bare base's replies have mean 0 and standard deviation 1.
    """

    peft_model: Any
    names: tuple[str | None, ...]
    heads: tuple[Head, ...]
    shift: float = 0.0
    scale: float = 1.0
    micro_batch: int = 32

    @property
    def members(self) -> int:
        return len(self.heads)

    @torch.no_grad()
    def raw(self, pairs: Sequence[Pair]) -> Tensor:
        """Every member's score before normalisation: (K, N). Members without adapters share one forward pass."""
        device = next(self.peft_model.parameters()).device
        chosen = list(micro_batches(pairs, size=self.micro_batch))
        batches = [pad_rows([pairs[i] for i in rows], device=device) for rows in chosen]
        out = torch.zeros(self.members, len(pairs))
        for name in dict.fromkeys(self.names):
            use_adapter(self.peft_model, name, trainable=False)
            for rows, batch in zip(chosen, batches, strict=True):
                found = features(self.peft_model, batch).cpu()
                for k, head in enumerate(self.heads):
                    if self.names[k] == name:
                        out[k, rows] = head(found)
        return out

    def score(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        """What people would think of each response. Leaves another adapter active than it found."""
        if not prompt_ids:
            return Scores(torch.zeros(0), torch.zeros(0))
        scores = (self.raw(list(zip(prompt_ids, response_ids, strict=True))) - self.shift) * self.scale
        return Scores(scores.mean(dim=0), scores.std(dim=0, unbiased=False))

    def normalised(self, base_replies: Sequence[Pair]) -> RewardModel:
        """The same model, moved and scaled so that the ensemble's mean over these has mean 0 and sd 1."""
        scores = self.raw(base_replies).mean(dim=0)
        spread = float(scores.std(unbiased=False))
        return replace(self, shift=float(scores.mean()), scale=1.0 / max(spread, 1e-6))

    def save(self, folder: Path, *, base_id: str) -> None:
        """Write `member0/…` as PEFT folders, the heads and the card. What is loaded scores exactly the same."""
        folder.mkdir(parents=True, exist_ok=True)
        for k, name in enumerate(self.names):
            if name is not None:
                save_adapter(self.peft_model, name, folder / f"member{k}", base_id)
        tensors = {
            f"head{k}.{part}": value.detach().contiguous().clone()
            for k, head in enumerate(self.heads)
            for part, value in head._asdict().items()
        }
        save_file(tensors, folder / HEADS)
        card = {
            "format": FORMAT,
            "members": self.members,
            "adapted": [name is not None for name in self.names],
            "shift": self.shift,
            "scale": self.scale,
        }
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")

    @classmethod
    def load(cls, model: Any, folder: Path, *, prefix: str = "reward") -> RewardModel:
        """Read a folder onto `model` (bare, or a PeftModel). Raises AdapterRejected for one that is broken."""
        try:
            card = json.loads((folder / CARD).read_text())
            tensors = load_file(folder / HEADS)
            if card["format"] != FORMAT:
                raise AdapterRejected(
                    f"{folder.name} has format {card['format']}; this version reads {FORMAT}"
                )
            # Cloned: tensors read in place may lie unaligned, and then add up in another order.
            heads = tuple(
                Head(*(tensors[f"head{k}.{part}"].clone() for part in Head._fields))
                for k in range(card["members"])
            )
            shift, scale, adapted = float(card["shift"]), float(card["scale"]), list(card["adapted"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise AdapterRejected(f"the reward model in {folder.name} cannot be read: {error}") from error
        names: list[str | None] = []
        for k, has_adapter in enumerate(adapted):
            names.append(f"{prefix}{k}" if has_adapter else None)
            if has_adapter:
                model = load_adapter(model, f"{prefix}{k}", folder / f"member{k}")
        return cls(model, tuple(names), heads, shift, scale)
