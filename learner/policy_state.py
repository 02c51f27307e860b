"""Everything that moves while PPO trains, and the files that let a killed run go on to the very same bytes.

The candidate's PEFT folder is written first and the state file that counts it last, each whole or not at all: a kill
in between only repeats some steps. Knows nothing of losses.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from learner.config import PpoConfig
from learner.critic import Critic
from learner.ppo import KlController
from learner.rollout import POLICY
from server.modeling import Base, save_adapter, use_adapter

logger = logging.getLogger(__name__)

STATE, METRICS = "state.pt", "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One checkpoint of the policy: a PEFT folder and how training stood when it was written."""

    step: int
    path: Path
    metrics: dict[str, float]


@dataclass(slots=True)
class PolicyState:
    """What moves during a run; all of it is in the state file."""

    policy: list[torch.nn.Parameter]
    optimiser: torch.optim.AdamW
    critic: Critic
    controller: KlController
    mean: list[torch.Tensor] = field(default_factory=list)
    """Of the policies after each step that moved one, the newer ones weighing more; empty before the first."""
    step: int = 0
    skipped: int = 0
    stopped: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


def learning_rate(config: PpoConfig, parameters: int) -> float:
    """The configured rate, or one that falls with the base's size: 3e-3 at 1M, 1e-4 at 300M, 1e-5 from 14B up."""
    if config.learning_rate is not None:
        return config.learning_rate
    return min(3e-3, max(1e-5, 3e-3 * (parameters / 1e6) ** -0.6))


def fresh_state(base: Base, peft_model: Any, config: PpoConfig) -> PolicyState:
    policy = use_adapter(peft_model, POLICY, trainable=True)
    rate = learning_rate(config, sum(p.numel() for p in base.model.parameters()))
    return PolicyState(
        policy,
        torch.optim.AdamW(policy, lr=rate, eps=1e-5, weight_decay=0.0),
        Critic(config.critic_forget, config.critic_ridge),
        KlController(
            config.kl_coef, config.kl_coef, config.kl_target, float(config.kl_horizon * config.rollouts)
        ),
    )


@torch.no_grad()
def take_into_mean(state: PolicyState, config: PpoConfig) -> None:
    """The policy has moved: a plain mean at first, then one that forgets (Polyak, Juditsky 1992; Ramé et al. 2024)."""
    moved = state.step + 1 - config.warmup_steps
    newest = max(1 - config.average, 1 / moved)
    if not state.mean:
        state.mean = [parameter.detach().clone() for parameter in state.policy]
    for mean, parameter in zip(state.mean, state.policy, strict=True):
        mean.lerp_(parameter, newest)


@contextmanager
def as_candidate(state: PolicyState) -> Iterator[None]:
    """The policy is the mean of those so far, for as long as it takes to write it down."""
    newest = [parameter.detach().clone() for parameter in state.policy]
    _put(state.policy, state.mean or newest)
    try:
        yield
    finally:
        _put(state.policy, newest)


@torch.no_grad()
def _put(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def checkpoint(state: PolicyState, peft_model: Any, workdir: Path, *, base_id: str) -> None:
    """Write the candidate, then the state that says it exists; a kill between the two only repeats some steps."""
    folder = workdir / f"step{state.step:05d}"
    staged = folder.with_suffix(".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    with as_candidate(state):
        save_adapter(peft_model, POLICY, staged, base_id)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
    lines = "".join(json.dumps(row) + "\n" for row in state.history)
    _write_whole(workdir / METRICS, lines.encode())
    buffer = io.BytesIO()
    torch.save(
        {
            "policy": [p.detach().cpu() for p in state.policy],
            "mean": [mean.cpu() for mean in state.mean],
            "optimiser": state.optimiser.state_dict(),
            "critic": (state.critic.moments, state.critic.cross),
            "controller": asdict(state.controller),
            "step": state.step,
            "skipped": state.skipped,
            "stopped": state.stopped,
            "history": state.history,
        },
        buffer,
    )
    _write_whole(workdir / STATE, buffer.getvalue())


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_suffix(path.suffix + ".tmp")
    with part.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def resume(state: PolicyState, workdir: Path) -> None:
    """Put back what the last checkpoint held, if there is one."""
    path = workdir / STATE
    if not path.exists():
        return
    saved = torch.load(path, map_location="cpu", weights_only=True)
    _put(state.policy, saved["policy"])
    state.mean = [mean.to(state.policy[0].device) for mean in saved["mean"]]
    state.optimiser.load_state_dict(saved["optimiser"])
    state.critic.moments, state.critic.cross = saved["critic"]
    state.controller = KlController(**saved["controller"])
    state.step, state.skipped, state.stopped = saved["step"], saved["skipped"], saved["stopped"]
    state.history = saved["history"]
    logger.info("PPO goes on from step %d", state.step)


def candidates(workdir: Path, history: Sequence[dict[str, float]], *, first: int) -> list[Candidate]:
    """Every checkpoint at which the policy had moved."""
    found = []
    for folder in sorted(workdir.glob("step?????")):
        step = int(folder.name.removeprefix("step"))
        if first < step <= len(history):
            found.append(Candidate(step, folder, dict(history[step - 1])))
    return found
