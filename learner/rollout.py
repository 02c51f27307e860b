"""Rollouts: replies of the present policy with all that PPO needs to know of them, from one base and its adapters.

prompts -> generate under the policy -> reference (adapter off) -> score -> value, on the one base

Owns how tokens become padded tensors of log probabilities and values. Knows nothing of optimisers and of votes.
Temperature divides the logits of policy and reference alike, so that their gap is the gap of what was sampled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.config import PpoConfig
from learner.critic import Critic, critic_features
from server.decoding import Decoder, DecodeRequest, FinishReason, Sampling, generate_offline
from server.modeling import (
    Base,
    Ids,
    Pair,
    gather_rows,
    hidden_states,
    logprobs_of_states,
    micro_batches,
    pad_rows,
    sequence_logprobs,
    use_adapter,
)
from server.scoring import RewardModel, Scores

POLICY = "policy"
"""Name of the adapter that is trained beside the base."""
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
    features: Tensor
    """(N, F) what the critic knows before each of the N response tokens, row after row."""
    values: Tensor
    """(B, R) the critic's estimate before each token."""
    scores: Tensor
    """(B,) pessimistic, bounded, less the penalties: what PPO is paid."""
    raw_scores: Tensor
    """(B,) the reward model's mean."""
    disagreement: Tensor
    """(B,) standard deviation over the reward model's members."""


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
    critic: Critic,
    reward: RewardModel,
    prompts: Sequence[Ids],
    *,
    seeds: Sequence[int],
    config: PpoConfig,
) -> Rollout:
    """Answer the prompts and measure the answers. Leaves another adapter active."""
    use_adapter(peft_model, POLICY, trainable=False)
    replies = generate(
        base, prompts, seeds=seeds, max_new_tokens=config.max_new_tokens, temperature=config.temperature
    )
    logprobs, is_response = padded(replies.logprobs)
    if config.temperature != 1.0:  # the sampler reports the raw policy; PPO needs what it drew from
        logprobs, _ = forward_all(peft_model, replies.pairs, POLICY, config)
    ref_logprobs, states = forward_all(peft_model, replies.pairs, None, config)
    scored = reward.score_prefixes(replies.prompts, replies.responses)
    worth = _pay(scored, config)
    features = critic_features(states, worth[:, :-1], ref_logprobs, is_response)
    values = torch.zeros_like(ref_logprobs).masked_scatter(is_response, critic.values(features))
    return Rollout(
        replies,
        is_response,
        logprobs,
        ref_logprobs,
        features,
        values,
        scores=worth[:, -1] - penalties(replies, config),
        raw_scores=scored.mean[:, -1],
        disagreement=scored.std[:, -1],
    )


def _pay(scored: Scores, config: PpoConfig) -> Tensor:
    """The pessimistic score within its smooth bound."""
    pessimistic = scored.mean - config.kappa * scored.std
    return config.score_clip * torch.tanh(pessimistic / config.score_clip)


def penalties(replies: Replies, config: PpoConfig) -> Tensor:
    """(B,) what a reply loses for not ending, and on the way there: a ramp over the last share of the room."""
    lengths = torch.tensor([len(r) for r in replies.responses], dtype=torch.float32)
    soft = config.max_new_tokens * (1 - config.overlong_share)
    ramp = ((lengths - soft) / max(config.max_new_tokens - soft, 1.0)).clamp(0, 1)
    cut = ~torch.tensor(replies.ended)
    return config.missing_eos_penalty * torch.where(cut, torch.ones(()), ramp)


@torch.no_grad()
def forward_all(
    peft_model: Any, pairs: Sequence[Pair], name: str | None, config: PpoConfig
) -> tuple[Tensor, Tensor]:
    """Under adapter `name`: log probabilities of every reply (B, R), and of its N tokens, row after row, the last
    hidden state before each (N, H)."""
    use_adapter(peft_model, name, trainable=False)
    device = next(peft_model.parameters()).device
    out = torch.zeros(len(pairs), max(1, max(len(r) for _, r in pairs)))
    states: list[Tensor] = [torch.empty(0)] * len(pairs)
    for chosen in micro_batches(pairs, size=config.micro_batch):
        rows = pad_rows([pairs[i] for i in chosen], device=device)
        hidden = hidden_states(peft_model, rows.token_ids, rows.positions)
        found = logprobs_of_states(peft_model, hidden, rows, temperature=config.temperature)
        out[chosen, : found.shape[1]] = found.cpu()
        for i, its in zip(chosen, gather_rows(hidden, rows.before).float().cpu(), strict=True):
            states[i] = its[: len(pairs[i][1])].clone()
    return out, torch.cat(states)


def padded(lists: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Lists of numbers as (B, R) and the mask of what is real."""
    width = max(1, max(len(x) for x in lists))
    values = torch.tensor([[*x, *[0.0] * (width - len(x))] for x in lists])
    mask = torch.arange(width)[None] < torch.tensor([len(x) for x in lists])[:, None]
    return values, mask
