"""PPO as a story: roll out, pay, compare with what was expected, move a little, check that it was little.

Trains one adapter beside the frozen base, `policy`, and leaves a PEFT folder every few steps, each a candidate for
the judge. Everything random comes from (seed, step), so a run that was killed goes on from its last
state file and ends with the same bytes as an unbroken one (on one thread). Knows nothing of votes, of the record
or of the gate.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner import ppo
from learner.config import PpoConfig
from learner.dataset import PromptRow
from learner.policy_state import (
    Candidate,
    PolicyState,
    candidates,
    checkpoint,
    fresh_state,
    resume,
    take_into_mean,
)
from learner.policy_update import TrainingFailed, mix, update_policy
from learner.rollout import POLICY, Rollout, collect_rollout
from server.modeling import Base, load_adapter, new_adapter
from server.scoring import RewardModel

logger = logging.getLogger(__name__)

TINIEST = sys.float_info.min
Progress = Callable[[float, dict[str, float]], None]


def train_policy(
    base: Base,
    reward: RewardModel,
    prompts: Sequence[PromptRow],
    champion: Path | None,
    config: PpoConfig,
    *,
    workdir: Path,
    seed: int,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
    fence: Callable[[], None] | None = None,
) -> list[Candidate]:
    """Move the champion's adapter (a fresh one for None) towards the reward; returns the candidates in order.

    `reward.peft_model` holds the reward adapters on this very base. `workdir` keeps state and candidates; called
    again with the same arguments it goes on where it stopped. `check` is called at every step and `fence` before
    every write; either may raise.
    Raises TrainingFailed when sampler and trainer disagree, or a number is no longer finite.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    usable = [p for p in prompts if 0 < len(p.token_ids) <= config.max_prompt_tokens]
    if not usable:
        raise TrainingFailed("there is no prompt short enough to train on")
    workdir.mkdir(parents=True, exist_ok=True)
    peft_model = _with_policy(reward, champion, config, seed=seed)
    frozen = _fingerprint(peft_model)
    state = fresh_state(base, peft_model, config)
    resume(state, workdir)
    while state.step < config.steps and not state.stopped:
        if check:
            check()
        # 1. Roll out: replies, reference, scores, values.
        chosen = _draw_prompts(usable, config.rollouts, seed=seed, step=state.step)
        seeds = [mix(seed, state.step, i) for i in range(len(chosen))]
        rollout = collect_rollout(
            base, peft_model, state.critic, reward, [p.token_ids for p in chosen], seeds=seeds, config=config
        )
        # 2. Pay, and compare with what the critic expected.
        advantages, returns = _advantages(rollout, state.controller.coef, config)
        # 3. Move: the critic always, the policy once the critic has seen something.
        state.critic.learn(rollout.features, returns[rollout.is_response])
        numbers: dict[str, float] = {}
        if state.step >= config.warmup_steps:
            numbers |= update_policy(base, peft_model, state, rollout, advantages, config, seed=seed)
            take_into_mean(state, config)
        # 4. Look at what happened, steer the KL price, stop if it ran away.
        numbers |= _statistics(rollout, returns, state, config)
        state.history.append({"step": float(state.step + 1), **numbers})
        _steer(state, config)
        state.step += 1
        # 5. Leave a candidate behind.
        if state.step % config.checkpoint_every == 0 or state.step == config.steps or state.stopped:
            if fence:
                fence()
            checkpoint(state, peft_model, workdir, base_id=base.base_id)
        if progress:
            progress(state.step / config.steps, {k: numbers[k] for k in ("score", "kl", "length")})
    if _fingerprint(peft_model) != frozen:
        raise TrainingFailed("an adapter that must stay frozen has changed")
    return candidates(workdir, state.history, first=config.warmup_steps)


# --- setting up -----------------------------------------------------------------------------------------------


def _with_policy(reward: RewardModel, champion: Path | None, config: PpoConfig, *, seed: int) -> Any:
    """Add `policy`: the champion's adapter, or one that changes nothing yet."""
    if champion is None:
        return new_adapter(reward.peft_model, POLICY, rank=config.rank, alpha=config.alpha, seed=seed)
    return load_adapter(reward.peft_model, POLICY, champion)


def _fingerprint(peft_model: Any) -> str:
    """sha256 over every adapter but the one that is trained."""
    digest = hashlib.sha256()
    for name, parameter in sorted(peft_model.named_parameters(), key=lambda item: item[0]):
        if ".lora_" in name and f".{POLICY}." not in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _draw_prompts(prompts: Sequence[PromptRow], count: int, *, seed: int, step: int) -> list[PromptRow]:
    """By weight, without repeats as long as there are enough of them (Efraimidis and Spirakis 2006)."""
    rng = random.Random(mix(seed, step))
    drawn: list[PromptRow] = []
    while len(drawn) < count:
        # Logarithms of their u^(1/w), which keeps its order where the power itself would be 0 for every small w.
        keys = [
            (math.log(rng.random() or TINIEST) / max(p.weight, TINIEST), i) for i, p in enumerate(prompts)
        ]
        keys.sort(reverse=True)
        drawn.extend(prompts[i] for _, i in keys[: count - len(drawn)])
    return drawn


# --- one step -------------------------------------------------------------------------------------------------


def _advantages(rollout: Rollout, kl_coef: float, config: PpoConfig) -> tuple[Tensor, Tensor]:
    """Whitened advantages and plain returns: (B, R) each."""
    mask = rollout.is_response
    rewards = ppo.kl_rewards(
        rollout.logprobs,
        rollout.ref_logprobs,
        rollout.scores,
        mask,
        kl_coef=kl_coef,
        kl_leap=config.kl_leap,
    )
    lam = ppo.lambda_for(float(mask.sum() / len(mask)), lam=config.lam)
    advantages = ppo.gae(rewards, rollout.values, mask, gamma=config.gamma, lam=lam)
    return ppo.normalize(advantages, mask, center=True), ppo.returns(rewards, mask, gamma=config.gamma)


def _statistics(rollout: Rollout, returns: Tensor, state: PolicyState, config: PpoConfig) -> dict[str, float]:
    """What is watched, of the rollout as it was drawn."""
    mask = rollout.is_response
    lengths = mask.sum(dim=1).float()
    clipped = (rollout.raw_scores.abs() >= config.score_clip).float().mean()
    return {
        "kl": float(ppo.sequence_k1(rollout.logprobs, rollout.ref_logprobs, mask).mean()),
        "kl_k3": float(ppo.sequence_kl(rollout.logprobs, rollout.ref_logprobs, mask).mean()),
        "score": float(rollout.raw_scores.mean()),
        "score_sd": float(rollout.raw_scores.std(unbiased=False)),
        "paid": float(rollout.scores.mean()),
        "disagreement": float(rollout.disagreement.mean()),
        "score_clipped": float(clipped),
        "entropy": float(-ppo.masked_mean(rollout.logprobs, mask)),
        "length": float(lengths.mean()),
        "eos_rate": sum(rollout.replies.ended) / len(rollout.replies.ended),
        "explained_variance": ppo.explained_variance(rollout.values, returns, mask),
        "kl_coef": state.controller.coef,
        "skipped": float(state.skipped),
    }


def _steer(state: PolicyState, config: PpoConfig) -> None:
    """Set the price of the next nat, and stop where the policy ran away.

    It begins wherever the champion stands, which the gate lets be farther out than a run from the base may go: what
    counts as running away is measured from there too, and nothing can run before the policy has moved.
    """
    kl = state.history[-1]["kl"]
    state.controller = state.controller.updated(kl, config.rollouts)
    if config.kl_target is None or state.step < config.warmup_steps:
        return
    begun_at = state.history[0]["kl"]
    if kl > max(config.kl_stop * config.kl_target, begun_at + config.kl_target):
        state.stopped = f"{kl:.1f} nats from the base, begun at {begun_at:.1f}"
        logger.warning("PPO stops at step %d: %s", state.step + 1, state.stopped)
