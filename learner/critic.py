"""The critic: what a reply under way will earn, by least squares over the tokens of the last few rollouts.

Its features need no training: what the reward model would pay if the reply ended here, how likely the base found it
so far, how long it is, and the base's state of the conversation. So the fit is exact after one rollout, where an
adapter trained by gradient steps is still learning when a short run ends; `docs/decisions` has the figures.

Knows tensors only: no model, no tokens. N tokens of F features; values are in the rewards' unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(slots=True)
class Critic:
    """Weighted moments of (features, 1) and return, from which the fit follows; promises 0 before it has seen any."""

    forget: float
    """What a rollout weighs after each later one: the policy that it came from is no more."""
    ridge: float
    """Precision of the zero-mean prior on the weights of standardised features, in tokens."""
    moments: Tensor | None = None
    """(F + 1, F + 1), float64"""
    cross: Tensor | None = None
    """(F + 1,), float64"""

    def learn(self, features: Tensor, returns: Tensor) -> None:
        """Take in one rollout: (N, F) and (N,)."""
        x = _with_one(features)
        moments, cross = x.T @ x, x.T @ returns.double()
        if self.moments is not None and self.cross is not None:
            moments, cross = moments + self.forget * self.moments, cross + self.forget * self.cross
        self.moments, self.cross = moments, cross

    def values(self, features: Tensor) -> Tensor:
        """(N, F) -> (N,), from earlier rollouts alone: a baseline that has seen these actions would bias them."""
        if self.moments is None or self.cross is None or not (count := self.moments[-1, -1]):
            return torch.zeros(len(features))
        mean = self.moments[:-1, -1] / count
        covariance = self.moments[:-1, :-1] / count - torch.outer(mean, mean)
        sd = covariance.diagonal().clamp(min=0).sqrt()
        sd = torch.where(sd > 1e-6, sd, torch.inf)  # a constant feature says nothing
        offset = self.cross[-1] / count
        towards = (self.cross[:-1] / count - mean * offset) / sd
        correlation = covariance / torch.outer(sd, sd)
        correlation.diagonal().add_(self.ridge / count)
        weights = torch.linalg.solve(correlation, towards) / sd
        return ((features.double() - mean) @ weights + offset).float()


def critic_features(states: Tensor, worth: Tensor, ref_logprobs: Tensor, is_response: Tensor) -> Tensor:
    """What is known before each response token, row after row: (N, H + 6).

    `states`: (N, H) of the base, the position before each token. `worth`: (B, R) what ending here would pay.
    `ref_logprobs`: (B, R) of the tokens, of which those before each are summed up.
    """
    count = torch.arange(is_response.shape[1]).expand(is_response.shape)
    earlier = functional.pad(ref_logprobs, (1, 0))[:, :-1]
    total, least = earlier.cumsum(dim=1), earlier.cummin(dim=1).values
    columns = (worth, count, count.float().log1p(), total, total / count.clamp(min=1), least)
    return torch.cat([states, *(column[is_response][:, None].float() for column in columns)], dim=1)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
