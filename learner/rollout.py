"""Rollouts: replies of the present policy with all that PPO needs to know of them, from one base and its adapters.

prompts -> generate under the policy -> reference (adapter off) -> value -> score, each a forward of the same base

Owns how tokens become padded tensors of log probabilities and values. Knows nothing of optimisers and of votes.
Temperature divides the logits of policy and reference alike, so that their gap is the gap of what was sampled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from learner.config import PpoConfig
from server.decoding import Decoder, DecodeRequest, FinishReason, Sampling, generate_offline
from server.modeling import (
    Base,
    Ids,
    Pair,
    Rows,
    gather_rows,
    hidden_states,
    micro_batches,
    pad_rows,
    sequence_logprobs,
    token_logprobs,
    use_adapter,
)
from server.scoring import RewardModel

POLICY, VALUE = "policy", "value"
"""Names of the two trained adapters beside the base."""
SLOTS = 64
"""Replies that are generated at once."""


class Replies(NamedTuple):
    """What a policy answered."""

    prompts: list[tuple[int, ...]]
    responses: list[tuple[int, ...]]
    ended: list[bool]
    """True where the policy ended its turn, False where it was cut off."""
    logprobs: list[tuple[float, ...]]
    """Of each response id under the raw policy at temperature 1, as the sampler saw it."""

    @property
    def pairs(self) -> list[Pair]:
        return list(zip(self.prompts, self.responses, strict=True))


class Rollout(NamedTuple):
    """B replies, padded to R response tokens."""

    replies: Replies
    is_response: Tensor
    """(B, R)"""
    logprobs: Tensor
    """(B, R) of the policy that drew them."""
    ref_logprobs: Tensor
    """(B, R) of the bare base."""
    values: Tensor
    """(B, R) the critic's estimate before each token."""
    scores: Tensor
    """(B,) pessimistic, bounded, less the penalties: what PPO is paid."""
    raw_scores: Tensor
    """(B,) the reward model's mean."""
    disagreement: Tensor
    """(B,) standard deviation over the reward model's members."""


class ValueHead(nn.Module):
    """Scalar head of the critic: float32, zero at birth, so that it starts by promising nothing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (...)"""
        out: Tensor = self.linear(hidden.float())[..., 0]
        return out


def generate(
    base: Base,
    prompts: Sequence[Ids],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Replies:
    """Answer each prompt under whatever adapter is active; fixed admission order, so the same every time."""
    requests = [
        DecodeRequest(i, tuple(p), Sampling(temperature=temperature, max_tokens=max_new_tokens, seed=seed))
        for i, (p, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    with torch.no_grad():
        done = generate_offline(Decoder(base, slots=SLOTS), requests)
    return Replies(
        [request.prompt_ids for request in requests],
        [reply.token_ids for reply in done],
        [reply.finish_reason is FinishReason.STOP for reply in done],
        [reply.logprobs for reply in done],
    )


def token_values(peft_model: Any, head: ValueHead, rows: Rows) -> Tensor:
    """The critic's estimate before each response token, under the active (value) adapter: (B, R)."""
    hidden = hidden_states(peft_model, rows.token_ids, rows.positions)
    values: Tensor = head(gather_rows(hidden, rows.before))
    return torch.where(rows.is_response, values, 0.0)


def reply_logprobs(
    peft_model: Any, replies: Sequence[Pair], *, name: str | None, micro_batch: int
) -> list[list[float]]:
    """Log probabilities of given responses under adapter `name` (None: the bare base), one list for each."""
    use_adapter(peft_model, name, trainable=False)
    with torch.no_grad():
        found = sequence_logprobs(peft_model, replies, micro_batch=micro_batch)
    return [row.tolist() for row in found]


def collect_rollout(
    base: Base,
    peft_model: Any,
    value_head: ValueHead,
    reward: RewardModel,
    prompts: Sequence[Ids],
    *,
    seeds: Sequence[int],
    config: PpoConfig,
) -> Rollout:
    """Answer the prompts and measure the answers. Leaves a reward adapter active."""
    use_adapter(peft_model, POLICY, trainable=False)
    replies = generate(
        base, prompts, seeds=seeds, max_new_tokens=config.max_new_tokens, temperature=config.temperature
    )
    logprobs, is_response = padded(replies.logprobs)
    if config.temperature != 1.0:  # the sampler reports the raw policy; PPO needs what it drew from
        logprobs = forward_all(peft_model, replies.pairs, POLICY, config, head=None)
    ref_logprobs = forward_all(peft_model, replies.pairs, None, config, head=None)
    values = forward_all(peft_model, replies.pairs, VALUE, config, head=value_head)
    scored = reward.score(replies.prompts, replies.responses)
    pessimistic = scored.mean - config.kappa * scored.std
    scores = config.score_clip * torch.tanh(pessimistic / config.score_clip) - penalties(replies, config)
    return Rollout(replies, is_response, logprobs, ref_logprobs, values, scores, scored.mean, scored.std)


def penalties(replies: Replies, config: PpoConfig) -> Tensor:
    """(B,) what a reply loses for not ending, and on the way there: a ramp over the last share of the room."""
    lengths = torch.tensor([len(r) for r in replies.responses], dtype=torch.float32)
    soft = config.max_new_tokens * (1 - config.overlong_share)
    ramp = ((lengths - soft) / max(config.max_new_tokens - soft, 1.0)).clamp(0, 1)
    cut = ~torch.tensor(replies.ended)
    return config.missing_eos_penalty * torch.where(cut, torch.ones(()), ramp)


@torch.no_grad()
def forward_all(
    peft_model: Any, pairs: Sequence[Pair], name: str | None, config: PpoConfig, *, head: ValueHead | None
) -> Tensor:
    """Values (with a head) or log probabilities of every reply under adapter `name`: (B, R)."""
    use_adapter(peft_model, name, trainable=False)
    device = next(peft_model.parameters()).device
    width = max(1, max(len(r) for _, r in pairs))
    out = torch.zeros(len(pairs), width)
    for chosen in micro_batches(pairs, size=config.micro_batch):
        rows = pad_rows([pairs[i] for i in chosen], device=device)
        found = (
            token_logprobs(peft_model, rows, temperature=config.temperature)
            if head is None
            else token_values(peft_model, head, rows)
        )
        out[chosen, : found.shape[1]] = found.cpu()
    return out


def padded(lists: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Lists of numbers as (B, R) and the mask of what is real."""
    width = max(1, max(len(x) for x in lists))
    values = torch.tensor([[*x, *[0.0] * (width - len(x))] for x in lists])
    mask = torch.arange(width)[None] < torch.tensor([len(x) for x in lists])[:, None]
    return values, mask
