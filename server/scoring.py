"""The reward model as served: small adapters on the one shared base, a head each, one score for a response.

Owns how a response becomes features and features become a score, and the files that hold them. Training it is
`learner.train_reward`'s business. Knows nothing of votes, users or the record.

prompt and response ids -> padded rows -> hidden states under each member's adapter -> pooled features -> heads -> score
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
    Rows,
    gather_rows,
    load_adapter,
    logprobs_of_states,
    mean_over,
    micro_batches,
    pad_rows,
    save_adapter,
    states_at,
    use_adapter,
)

HEADS = "heads.safetensors"
CARD = "reward.json"
FORMAT = 4
DEPTHS = (0.0, 0.5, 0.8, 1.0)
"""Which layers features are read from, as shares of the depth; the last is what the head reads."""
PLAIN, PLAIN_SHARE = 3, 0.5
"""How many plain features there are, and what they may move a score beside the states."""


def features(peft_model: Any, rows: Rows, *, plain: Tensor | None = None) -> Tensor:
    """Features of responses: mean and sum of the states at each depth under the active adapter, then `plain`: (B, F).

    With a few hundred votes the response's tokens pooled at several depths order unseen replies better than the last
    layer or the last token: a style is spread over the reply, and early layers still know which words it used. The
    mean says how much of the reply is so, the sum how much of it there is ("an emoji", "three items").
    `plain` are the same rows' plain features from an earlier pass under the bare base; without them the bare base
    must be active, and they are read in this pass.
    """
    states = states_at(peft_model, rows.token_ids, rows.positions, DEPTHS)
    means = [mean_over(gather_rows(state, rows.at), rows.is_response) for state in states]
    count = rows.is_response.sum(dim=1, keepdim=True)
    if plain is None:
        plain = _plain_prefixes(logprobs_of_states(peft_model, states[-1], rows), rows)[:, -1]
    return torch.cat([*means, *(mean * count for mean in means), plain], dim=1)


def _plain_prefixes(logprobs: Tensor, rows: Rows) -> Tensor:
    """Log length, and mean and least log probability under the bare base, of every beginning: (B, 1 + R, PLAIN).

    What the bare base itself would hardly have written, people often find wrong: off the subject, broken, a slip.
    These two numbers say so directly, and no linear map of mean states does.
    """
    count = rows.is_response.cumsum(dim=1).float()
    running = [torch.log1p(count), logprobs.cumsum(dim=1) / count.clamp(min=1), logprobs.cummin(dim=1).values]
    return functional.pad(torch.stack(running, dim=2), (0, 0, 1, 0))


def feature_scale(count: int) -> Tensor:
    """How much each of `count` features may move a score, a priori: (F,), for a prior on weights of unit precision.

    States hold the same in all whatever their number, and so do the plain features, `PLAIN_SHARE` of it: a single
    number beside hundreds of states would never be heard.
    """
    states = count - PLAIN
    return torch.tensor([states**-0.5] * states + [PLAIN_SHARE * PLAIN**-0.5] * PLAIN)


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

    def of_prefixes(self, states: Tensor, is_response: Tensor, plain: Tensor) -> Tensor:
        """The score of every beginning of each response: (B, 1 + R).

        `states`: (B, R, S) of its tokens at all depths, side by side, 0 where `is_response` (B, R) is False. `plain`:
        (B, 1 + R, PLAIN), of every beginning.
        """
        weights = self.weights * self.scale
        of_mean, of_sum, of_plain = weights.split([states.shape[2], states.shape[2], PLAIN])
        count = is_response.cumsum(dim=1).clamp(min=1)
        running = (states @ of_mean).cumsum(dim=1) / count + (states @ of_sum).cumsum(dim=1)
        return functional.pad(running, (1, 0)) + plain @ of_plain + self.bias - self.mean @ weights


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
        """Every member's score before normalisation: (K, N).

        One pass under the bare base serves the plain features of all and the members without adapters.
        """
        device = next(self.peft_model.parameters()).device
        chosen = list(micro_batches(pairs, size=self.micro_batch))
        batches = [pad_rows([pairs[i] for i in rows], device=device) for rows in chosen]
        use_adapter(self.peft_model, None, trainable=False)
        bare = [features(self.peft_model, batch) for batch in batches]
        out = torch.zeros(self.members, len(pairs))
        for name in dict.fromkeys(self.names):
            use_adapter(self.peft_model, name, trainable=False)
            for rows, batch, base in zip(chosen, batches, bare, strict=True):
                found = base if name is None else features(self.peft_model, batch, plain=base[:, -PLAIN:])
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
            plain = _plain_prefixes(logprobs_of_states(self.peft_model, states[-1], batch), batch)
            for name in dict.fromkeys(self.names):
                if name is not None:
                    use_adapter(self.peft_model, name, trainable=False)
                    states = states_at(self.peft_model, batch.token_ids, batch.positions, DEPTHS)
                tokens = torch.cat([gather_rows(state, batch.at) for state in states], dim=2).float()
                tokens = torch.where(batch.is_response[..., None], tokens, 0.0).cpu()
                for k, head in enumerate(self.heads):
                    if self.names[k] == name:
                        found = head.of_prefixes(tokens, batch.is_response.cpu(), plain.cpu())
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
