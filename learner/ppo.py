"""PPO as pure maths over padded tensors: rewards, advantages, losses, statistics, the KL controller.

Knows tensors and nothing else: no model, no tokenizer, no optimiser. Every tensor is (B, R), a batch of responses
padded on the right to R tokens, unless said otherwise; `is_response` is True on real response tokens, and nothing
under a False position ever moves a result. Logarithms are natural.

Sources: Ziegler et al. 2019 (KL in the reward, adaptive coefficient), Schulman et al. 2016 (GAE) and 2017 (clip),
Ye et al. 2020 (dual clip), http://joschu.net/blog/kl-approx.html (k1, k3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""exp(20) is still finite in float32; beyond it a ratio says nothing."""


class PolicyLoss(NamedTuple):
    """The loss to descend, and what to watch beside it."""

    loss: Tensor
    """Scalar: sum over response tokens / `denominator`."""
    approx_kl: Tensor
    """Scalar, sum over tokens of k3 from the rollout's policy to the present one."""
    half_square: Tensor
    """Scalar, sum over tokens of 0.5 · (Δ log prob)²: what the inner stop reads."""
    clipped: Tensor
    """Scalar, tokens whose ratio was clipped."""
    ratio_sum: Tensor
    """Scalar, sum of ratios."""
    ratio_square_sum: Tensor
    """Scalar, sum of squared ratios."""


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions; 0 where there are none."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def kl_rewards(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    scores: Tensor,
    is_response: Tensor,
    *,
    kl_coef: float,
    kl_leap: float,
) -> Tensor:
    """Per-token rewards: -kl_coef · (k1 + kl_leap · max(k1, 0)²) everywhere, plus the score on the last response token.

    `scores`: (B,). k1 = logprob - ref_logprob is the one estimator whose gradient in the reward is unbiased. The square
    makes one leap dearer than many small steps that go as far: a token that gains a makes its log ratio grow by
    a / kl_coef without it, and with it only until k1 + kl_leap · k1² has grown by that.
    """
    k1 = logprobs - ref_logprobs
    rewards = torch.where(is_response, -kl_coef * (k1 + kl_leap * k1.clamp(min=0) ** 2), 0.0)
    last = is_response.sum(dim=1, keepdim=True) - 1
    has_any = last >= 0
    return rewards.scatter_add(1, last.clamp(min=0), torch.where(has_any, scores[:, None], 0.0))


def gae(rewards: Tensor, values: Tensor, is_response: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Advantages, 0 outside the response. A response ends its episode: nothing is bootstrapped."""
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    carried = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        here = is_response[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = torch.where(here, delta + gamma * lam * carried, carried)
        next_value = torch.where(here, values[:, t], next_value)
        advantages[:, t] = torch.where(here, carried, 0.0)
    return advantages


def returns(rewards: Tensor, is_response: Tensor, *, gamma: float) -> Tensor:
    """What was still to come from each token on: what the critic is to foresee."""
    return gae(rewards, torch.zeros_like(rewards), is_response, gamma=gamma, lam=1.0)


def lambda_for(length: float, *, lam: float) -> float:
    """`lam` for short responses; past 128 tokens on average one that still reaches the first token (VC-PPO)."""
    return lam if length <= 128 else max(lam, 1 - 1 / (0.05 * length))


def normalize(x: Tensor, mask: Tensor, *, center: bool) -> Tensor:
    """Scale to variance 1 over the True positions, moved to mean 0 if `center`; 0 elsewhere."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    scaled = (x - mean) / torch.sqrt(variance + 1e-8)
    if not center:
        scaled = scaled + mean
    return torch.where(mask, scaled, 0.0)


def log_ratios(logprobs: Tensor, old_logprobs: Tensor, is_response: Tensor) -> Tensor:
    """log(π / π_old), bounded, 0 outside the response."""
    return torch.where(is_response, logprobs - old_logprobs, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    is_response: Tensor,
    *,
    clip: float,
    dual_clip: float,
    denominator: float,
) -> PolicyLoss:
    """Clipped surrogate, token sum over `denominator` (the tokens of the whole minibatch, not of a micro-batch).

    Where the advantage is negative, the loss is bounded by `dual_clip` · |advantage|: a token that the policy has
    since made far likelier would otherwise dominate the batch.
    """
    log_ratio = log_ratios(logprobs, old_logprobs, is_response)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    per_token = torch.maximum(plain, bounded)
    per_token = torch.where(advantages < 0, torch.minimum(per_token, -dual_clip * advantages), per_token)
    with torch.no_grad():
        k3 = log_ratio.exp() - 1 - log_ratio
        kept = torch.where(is_response, ratio, 0.0)
        statistics = (
            k3.sum(),
            0.5 * (log_ratio**2).sum(),
            (is_response & (bounded > plain)).sum().float(),
            kept.sum(),
            (kept**2).sum(),
        )
    return PolicyLoss(torch.where(is_response, per_token, 0.0).sum() / denominator, *statistics)


def sequence_kl(logprobs: Tensor, ref_logprobs: Tensor, is_response: Tensor) -> Tensor:
    """k3 summed over each response: (B,), never negative."""
    gap = log_ratios(ref_logprobs, logprobs, is_response)
    return (gap.exp() - 1 - gap).sum(dim=1)


def sequence_k1(logprobs: Tensor, ref_logprobs: Tensor, is_response: Tensor) -> Tensor:
    """k1 summed over each response: (B,). Unbiased, and without k3's tail: one token that the reference finds e^8
    times likelier is worth 3 000 in k3, so what steers and stops reads this one and k3 is only reported."""
    return torch.where(is_response, logprobs - ref_logprobs, 0.0).sum(dim=1)


def explained_variance(values: Tensor, returns: Tensor, is_response: Tensor) -> float:
    """1 - Var(return - value) / Var(return): 1 is a perfect critic, below 0 worse than a constant."""
    mean = masked_mean(returns, is_response)
    variance = masked_mean((returns - mean) ** 2, is_response)
    error = returns - values
    error_variance = masked_mean((error - masked_mean(error, is_response)) ** 2, is_response)
    return float(1 - error_variance / variance) if variance > 0 else 0.0


@dataclass(frozen=True, slots=True)
class KlController:
    """The KL coefficient, moved so that KL per response nears `target`; stays within a factor 4 of its start."""

    coef: float
    initial: float
    target: float | None
    horizon: float
    """Episodes over which a full error of one target would change the coefficient by its own size."""

    def updated(self, kl: float, episodes: int) -> KlController:
        """The controller after `episodes` at `kl` nats per response."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        coef = self.coef * (1 + error * episodes / self.horizon)
        return replace(self, coef=min(max(coef, self.initial / 4), self.initial * 4))
