"""The reward model as served: small adapters on the one shared base, a head each, one score for a response.

Owns how features become a score, and the files that hold it. Training it is `learner.train_reward`'s business. Knows
nothing of votes, users or the record.

prompt and response ids -> padded rows -> hidden states under each member's adapter -> features -> heads -> score
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from server.errors import AdapterRejected
from server.modeling import (
    Ids,
    Pair,
    gather_rows,
    load_adapter,
    logprobs_of_states,
    micro_batches,
    pad_rows,
    save_adapter,
    states_at,
    use_adapter,
)
from server.scoring.codebook import CodeBook, from_tensors, sizes, to_tensors
from server.scoring.features import DEPTHS, PLAIN, features, fixed_count, plain_prefixes

HEADS = "heads.safetensors"
CARD = "reward.json"
FORMAT = 5


class FixedPrefixes(NamedTuple):
    """What no adapter changes of B responses, token by token."""

    book: CodeBook
    codes: list[Tensor]
    """By clustering: (B, R)"""
    plain: Tensor
    """(B, 1 + R, PLAIN), of every beginning."""


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

    def of_prefixes(self, states: Tensor, is_response: Tensor, fixed: FixedPrefixes) -> Tensor:
        """The score of every beginning of each response: (B, 1 + R).

        `states`: (B, R, S) of its tokens at all depths, side by side, 0 where `is_response` (B, R) is False.
        """
        weights = self.weights * self.scale
        size = states.shape[2]
        widths = [size, size, *sizes(fixed.book), PLAIN]
        of_mean, of_sum, *of_codes, of_plain = torch.split_with_sizes(weights, widths)
        count = is_response.cumsum(dim=1).clamp(min=1)
        running = (states @ of_mean).cumsum(dim=1) / count + (states @ of_sum).cumsum(dim=1)
        for one, codes, own in zip(fixed.book, fixed.codes, of_codes, strict=True):
            running = running + one.running(codes, is_response, own)
        return functional.pad(running, (1, 0)) + fixed.plain @ of_plain + self.bias - self.mean @ weights


@dataclass(frozen=True, slots=True)
class RewardModel:
    """An ensemble of (adapter, head) on one shared base.

    `names[k]` is member k's adapter inside `peft_model`, or None for a head on the bare base. The final affine
    map is the same for all members: scores of the bare base's replies have mean 0 and standard deviation 1.
    """

    peft_model: Any
    names: tuple[str | None, ...]
    heads: tuple[Head, ...]
    book: CodeBook = ()
    shift: float = 0.0
    scale: float = 1.0
    micro_batch: int = 32

    @property
    def members(self) -> int:
        return len(self.heads)

    @torch.no_grad()
    def raw(self, pairs: Sequence[Pair]) -> Tensor:
        """Every member's score before normalisation: (K, N).

        One pass under the bare base serves the fixed features of all and the members without adapters.
        """
        device = next(self.peft_model.parameters()).device
        chosen = list(micro_batches(pairs, size=self.micro_batch))
        batches = [pad_rows([pairs[i] for i in rows], device=device) for rows in chosen]
        use_adapter(self.peft_model, None, trainable=False)
        bare = [features(self.peft_model, batch, self.book) for batch in batches]
        fixed = fixed_count(self.book)
        out = torch.zeros(self.members, len(pairs))
        for name in dict.fromkeys(self.names):
            use_adapter(self.peft_model, name, trainable=False)
            for rows, batch, base in zip(chosen, batches, bare, strict=True):
                found = base
                if name is not None:
                    found = features(self.peft_model, batch, self.book, fixed=base[:, -fixed:])
                for k, head in enumerate(self.heads):
                    if self.names[k] == name:
                        out[k, rows] = head(found.cpu())
        return out

    def score(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        """What people would think of each response. Leaves another adapter active than it found."""
        if not prompt_ids:
            return Scores(torch.zeros(0), torch.zeros(0))
        scores = (self.raw(list(zip(prompt_ids, response_ids, strict=True))) - self.shift) * self.scale
        return Scores(scores.mean(dim=0), scores.std(dim=0, unbiased=False))

    @torch.no_grad()
    def score_prefixes(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        """What people would think of each response if it ended after its first r tokens: (B, 1 + R) each.

        Column 0 is the empty response; a row stays at the score of its whole response once it has ended. One pass
        costs what `score` does, since features are running means and sums. Leaves another adapter active.
        """
        pairs = list(zip(prompt_ids, response_ids, strict=True))
        width = max(1, *(len(r) for _, r in pairs)) if pairs else 1
        device = next(self.peft_model.parameters()).device
        out = torch.zeros(self.members, len(pairs), 1 + width)
        for rows in micro_batches(pairs, size=self.micro_batch):
            batch = pad_rows([pairs[i] for i in rows], device=device)
            use_adapter(self.peft_model, None, trainable=False)
            states = states_at(self.peft_model, batch.token_ids, batch.positions, DEPTHS)
            fixed = FixedPrefixes(
                self.book,
                [one.codes(gather_rows(states[one.depth], batch.at)).cpu() for one in self.book],
                plain_prefixes(logprobs_of_states(self.peft_model, states[-1], batch), batch).cpu(),
            )
            for name in dict.fromkeys(self.names):
                if name is not None:
                    use_adapter(self.peft_model, name, trainable=False)
                    states = states_at(self.peft_model, batch.token_ids, batch.positions, DEPTHS)
                tokens = torch.cat([gather_rows(state, batch.at) for state in states], dim=2).float()
                tokens = torch.where(batch.is_response[..., None], tokens, 0.0).cpu()
                for k, head in enumerate(self.heads):
                    if self.names[k] == name:
                        found = head.of_prefixes(tokens, batch.is_response.cpu(), fixed)
                        out[k, rows] = found[:, -1:]
                        out[k, rows, : found.shape[1]] = found
        scores = (out - self.shift) * self.scale
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
        save_file(tensors | to_tensors(self.book), folder / HEADS)
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
            book = from_tensors(tensors)
            shift, scale, adapted = float(card["shift"]), float(card["scale"]), list(card["adapted"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise AdapterRejected(f"the reward model in {folder.name} cannot be read: {error}") from error
        names: list[str | None] = []
        for k, has_adapter in enumerate(adapted):
            names.append(f"{prefix}{k}" if has_adapter else None)
            if has_adapter:
                model = load_adapter(model, f"{prefix}{k}", folder / f"member{k}")
        return cls(model, tuple(names), heads, book, shift, scale)
