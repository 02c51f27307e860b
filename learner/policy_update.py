"""One rollout's worth of learning: minibatches through the policy adapter, and what to count of it.

Takes a rollout with its advantages, moves the parameters in `PolicyState`. Losses come from `ppo`; what
to pay and when to stop is `train_policy`'s business.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner import ppo
from learner.config import PpoConfig
from learner.policy_state import PolicyState
from learner.rollout import POLICY, Rollout
from server.errors import HoneError
from server.modeling import Base, micro_batches, pad_rows, token_logprobs, use_adapter

DRIFT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Root mean square of log(π / π_old) allowed before the first update: sampler and trainer are the same policy."""


class TrainingFailed(HoneError):
    """PPO cannot go on, and going on would only hide why."""

    code = "training_failed"


def mix(*numbers: int) -> int:
    """One 62-bit seed from several numbers."""
    text = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


def _minibatches(rollout: Rollout, config: PpoConfig, *, seed: int, step: int) -> list[list[int]]:
    """Rows of each minibatch, drawn anew for each pass; empty responses teach nothing and are left out."""
    rng = random.Random(mix(seed, step, 2))
    rows = [i for i, r in enumerate(rollout.replies.responses) if r]
    found = []
    for _ in range(config.epochs):
        rng.shuffle(rows)
        found += [sorted(rows[i :: config.minibatches]) for i in range(config.minibatches)]
    return [part for part in found if part]


def _micro(rollout: Rollout, rows: Sequence[int], size: int) -> list[list[int]]:
    """A minibatch in forwards of like length."""
    pairs = rollout.replies.pairs
    return [[rows[i] for i in group] for group in micro_batches([pairs[i] for i in rows], size=size)]


class _Tally(NamedTuple):
    """Sums over the tokens of one or more minibatches."""

    tokens: float = 0.0
    updates: float = 0.0
    loss: float = 0.0
    """Sum over updates of the mean loss."""
    approx_kl: float = 0.0
    half_square: float = 0.0
    clipped: float = 0.0
    ratio: float = 0.0
    ratio_square: float = 0.0

    def plus(self, other: _Tally) -> _Tally:
        return _Tally(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def drift(self) -> float:
        """Mean 0.5 · (Δ log prob)² per token."""
        return self.half_square / max(self.tokens, 1.0)

    def means(self) -> dict[str, float]:
        tokens = max(self.tokens, 1.0)
        ratio = self.ratio / tokens
        return {
            "policy_loss": self.loss / max(self.updates, 1.0),
            "approx_kl": self.approx_kl / tokens,
            "clip_frac": self.clipped / tokens,
            "ratio_var": max(self.ratio_square / tokens - ratio**2, 0.0),
            "updates": self.updates,
        }


def update_policy(
    base: Base,
    peft_model: Any,
    state: PolicyState,
    rollout: Rollout,
    advantages: Tensor,
    config: PpoConfig,
    *,
    seed: int,
) -> dict[str, float]:
    """Move the policy until the passes are done or it has moved enough; returns what was counted.

    Raises TrainingFailed when sampler and trainer disagree before the first update, or too many losses are not finite.
    """
    use_adapter(peft_model, POLICY, trainable=True)
    tally = _Tally()
    parts = _minibatches(rollout, config, seed=seed, step=state.step)
    for number, rows in enumerate(parts):
        found = _policy_gradient(peft_model, state, rollout, advantages, rows, config)
        if number == 0:
            _check_same_policy(found.drift, DRIFT_TOLERANCE[base.dtype])
        if not all(map(math.isfinite, found)):
            _skip(state, len(parts))
            continue
        torch.nn.utils.clip_grad_norm_(state.policy, config.grad_norm)
        state.optimiser.step()
        tally = tally.plus(found)
        if found.drift > config.inner_stop:
            break
    return tally.means() | {"inner_stop": float(tally.updates < len(parts))}


def _policy_gradient(
    peft_model: Any,
    state: PolicyState,
    rollout: Rollout,
    advantages: Tensor,
    rows: Sequence[int],
    config: PpoConfig,
) -> _Tally:
    """The gradient of one minibatch, added up over forwards of like length."""
    device = next(peft_model.parameters()).device
    tokens = float(rollout.is_response[rows].sum())
    state.optimiser.zero_grad()
    tally = _Tally(tokens=tokens, updates=1.0)
    for some in _micro(rollout, rows, config.micro_batch):
        batch = pad_rows([rollout.replies.pairs[i] for i in some], device=device)
        width = batch.is_response.shape[1]
        out = ppo.policy_loss(
            token_logprobs(peft_model, batch, temperature=config.temperature),
            rollout.logprobs[some, :width].to(device),
            advantages[some, :width].to(device),
            batch.is_response,
            clip=config.clip,
            dual_clip=config.dual_clip,
            denominator=tokens,
        )
        out.loss.backward()
        tally = tally.plus(_Tally(0.0, 0.0, *(float(x.detach()) for x in out)))
    return tally


def _check_same_policy(drift: float, tolerance: float) -> None:
    """Before the first update the trainer's policy is the sampler's: anything else poisons every step after."""
    distance = math.sqrt(2 * drift)
    if not distance <= tolerance:
        raise TrainingFailed(
            f"sampler and trainer disagree by {distance:.2g} nats per token before the first update; "
            f"{tolerance:g} is allowed",
            code="policy_mismatch",
        )


def _skip(state: PolicyState, updates_per_step: int) -> None:
    """Count an update that was left out; a few happen, many mean that something is broken."""
    state.skipped += 1
    if state.skipped > max(2, 0.05 * (state.step + 1) * updates_per_step):
        raise TrainingFailed("the policy's loss is not finite in more than 5 % of its updates")
