"""Brings the candidates before the judge: has them answer prompts kept from training, picks one, asks the gate.

votes -> features -> signal and judge · candidates answer -> the judge's favourite -> it and the champion answer
other prompts -> evidence -> verdict. The prompts that choose among checkpoints and those that decide about the
chosen one are different: a choice made on a set of prompts looks better there than it is.

Knows nothing of thresholds (`judge` holds them) or of how a policy was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from learner.behaviour import Behaviour, behaviour_of
from learner.config import LearnerConfig
from learner.dataset import Dataset, Role
from learner.features import base_features
from learner.judge import (
    Evidence,
    Judge,
    Signal,
    Verdict,
    best_checkpoint,
    budget_faults,
    fit_judge,
    gains,
    gate,
    prefer,
    signal,
)
from learner.likelihood import tabulate
from learner.policy_state import Candidate
from learner.rollout import Replies, generate, reply_logprobs
from server.modeling import Base, Ids, Pair, load_adapter, use_adapter
from server.scoring import RewardModel, feature_scale

CANDIDATE, CHAMPION = "candidate", "champion"
SELECTION_PROMPTS = 64
BEST_OF = 4
DIFFERS_BY = 1e-4
"""Nats per token that tell an adapter from none at all."""

Progress = Callable[[float, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class Assessment:
    """The chosen candidate, the verdict on it, and how every candidate looked to the judge."""

    chosen: Candidate
    verdict: Verdict
    table: list[dict[str, float]]


class _Answers(NamedTuple):
    """A policy's replies to some prompts, and what was measured of them."""

    replies: Replies
    features: torch.Tensor
    behaviour: Behaviour
    logprob_gap: float
    """Mean |policy - base| in nats per token."""


def assess(
    base: Base,
    reward: RewardModel,
    dataset: Dataset,
    candidates: Sequence[Candidate],
    champion: Path | None,
    config: LearnerConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Assessment:
    """Choose among the candidates (in training order, at least one) and judge the choice against the champion."""
    assert candidates, "there is nothing to judge"
    court = _Court(base, reward, config, seed=seed)
    found, judge = court.convene(dataset)
    selection, decisive = held_out_prompts(dataset, config)
    old = court.answers(selection, champion, CHAMPION)
    bare = old.behaviour if champion is None else court.answers(selection, None, CHAMPION).behaviour
    texts = [prompt for prompt in dict.fromkeys(selection + decisive) if len(prompt) > 1]
    table: list[dict[str, float]] = []
    fits: list[bool] = []
    gained: list[torch.Tensor] = []
    for i, candidate in enumerate(candidates):
        if check:
            check()
        new = court.answers(selection, candidate.path, CANDIDATE)
        opinion = prefer(judge, new.features, old.features, config.gate, prompts=selection)
        gained.append(gains(judge, new.features, old.features, prompts=selection))
        perplexity = court.perplexity_ratio(candidate.path, texts[:SELECTION_PROMPTS])
        fits.append(not budget_faults(new.behaviour, old.behaviour, bare, perplexity, config.gate))
        table.append(
            {
                "step": float(candidate.step),
                "judge_gain": opinion.gain,
                "judge_wins": opinion.win_rate,
                "proxy_gain": court.proxy(new.replies) - court.proxy(old.replies),
                "kl": new.behaviour.kl,
                "length": new.behaviour.length,
                "text_perplexity_ratio": perplexity,
                "fits": float(fits[-1]),
            }
        )
        if progress:
            progress((i + 1) / (len(candidates) + 2), table[-1])
    best = best_checkpoint(gained, fits)
    evidence = court.evidence(
        found, judge, candidates[best].path, champion, decisive, selection, texts=texts
    )  # fmt: skip
    verdict = gate(evidence, config.gate)
    if progress:
        progress(1.0, {"judge_wins": evidence.preference.win_rate})
    return Assessment(candidates[best], verdict, table)


def held_out_prompts(dataset: Dataset, config: LearnerConfig) -> tuple[list[Ids], list[Ids]]:
    """Prompts of the judge's users, which PPO never trained on: those to choose on, and others to decide on.

    The different ones are shared out first; then each part repeats its own until it is long enough, since one prompt
    has many replies. With no prompt of theirs at all (a handful of users), everybody's are taken; a single one has
    to serve for both.
    """
    longest = config.ppo.max_prompt_tokens
    usable = [p for p in dataset.prompts if 0 < len(p.token_ids) <= longest]
    pool = [p.token_ids for p in usable if p.role is Role.JUDGE] or [p.token_ids for p in usable]
    distinct: list[Ids] = list(dict.fromkeys(pool))
    assert distinct, "there are no prompts"
    edge = min(SELECTION_PROMPTS, len(distinct) // 2)
    parts = (distinct[:edge] or distinct, distinct[edge:])
    selection, decisive = (
        list(islice(cycle(part), wanted))
        for part, wanted in zip(parts, (SELECTION_PROMPTS, config.gate.prompts), strict=True)
    )
    return selection, decisive


class _Court:
    """Answers prompts under any adapter folder and measures the answers, on the one shared base."""

    def __init__(self, base: Base, reward: RewardModel, config: LearnerConfig, *, seed: int) -> None:
        self.base, self.reward, self.config, self.seed = base, reward, config, seed
        self.model: Any = reward.peft_model

    def convene(self, dataset: Dataset) -> tuple[Signal, Judge]:
        """The signal in everybody's votes, and a judge fitted to those of its own users."""
        weights = {
            "thumb_weight": self.config.reward.thumb_weight,
            "both_bad_weight": self.config.reward.both_bad_weight,
        }
        everybody = tabulate(dataset, **weights)
        features = self._features(everybody.examples)
        scale = feature_scale(features.shape[1], self.reward.book)
        row_of = {example: i for i, example in enumerate(everybody.examples)}
        own = tabulate(dataset.of(Role.JUDGE), **weights)
        rows = torch.tensor([row_of[example] for example in own.examples], dtype=torch.long)
        return (
            signal(features, everybody, self.config.gate, seed=self.seed, scale=scale),
            fit_judge(features[rows], own, self.config.gate, seed=self.seed, scale=scale),
        )

    def answers(self, prompts: Sequence[Ids], folder: Path | None, name: str, *, salt: int = 0) -> _Answers:
        """Reply to each prompt under the adapter in `folder` (None: the bare base), same seeds for everyone."""
        held = self._hold(folder, name)
        micro = self.config.ppo.micro_batch
        use_adapter(self.model, held, trainable=False)
        replies = generate(
            self.base,
            prompts,
            seeds=[self.seed * 1_000_003 + salt * 10_007 + i for i in range(len(prompts))],
            max_new_tokens=self.config.ppo.max_new_tokens,
        )
        ref = reply_logprobs(self.model, replies.pairs, name=None, micro_batch=micro)
        gaps = [
            abs(a - b)
            for row, its in zip(replies.logprobs, ref, strict=True)
            for a, b in zip(row, its, strict=True)
        ]
        return _Answers(
            replies,
            self._features(replies.pairs),
            behaviour_of(replies.responses, ended=replies.ended, logprobs=replies.logprobs, ref_logprobs=ref),
            sum(gaps) / max(1, len(gaps)),
        )

    def _features(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """What the judge reads: the reward model's features, whose code book has seen no vote either."""
        return base_features(self.model, pairs, self.reward.book, micro_batch=self.config.ppo.micro_batch)

    def proxy(self, replies: Replies) -> float:
        """The reward model's own mean score."""
        return float(self.reward.score(replies.prompts, replies.responses).mean.mean())

    def evidence(
        self,
        found: Signal,
        judge: Judge,
        candidate: Path,
        champion: Path | None,
        prompts: Sequence[Ids],
        few: Sequence[Ids],
        *,
        texts: Sequence[Ids],
    ) -> Evidence:
        """Everything the gate asks of one candidate."""
        new = self.answers(prompts, candidate, CANDIDATE, salt=1)
        old = self.answers(prompts, champion, CHAMPION, salt=2)  # other seeds: two draws, not one twice
        bare = old.behaviour if champion is None else self.answers(prompts, None, CHAMPION, salt=3).behaviour
        return Evidence(
            signal=found,
            preference=prefer(judge, new.features, old.features, self.config.gate, prompts=prompts),
            candidate=new.behaviour,
            champion=old.behaviour,
            base=bare,
            text_perplexity_ratio=self.perplexity_ratio(candidate, texts),
            differs=new.logprob_gap >= DIFFERS_BY,
            proxy_gain=self.proxy(new.replies) - self.proxy(old.replies),
            best_of_4_gain=self._best_of_4(judge, few, champion),
        )

    def _best_of_4(self, judge: Judge, prompts: Sequence[Ids], champion: Path | None) -> float:
        """What the judge sees in the reward model's favourite of four champion replies, against one of them."""
        tries = [self.answers(prompts, champion, CHAMPION, salt=10 + k) for k in range(BEST_OF)]
        scores = torch.stack([self.reward.score(t.replies.prompts, t.replies.responses).mean for t in tries])
        best = scores.argmax(dim=0)
        features = torch.stack([t.features for t in tries])[best, torch.arange(len(prompts))]
        other = self.answers(prompts, champion, CHAMPION, salt=20)
        return prefer(judge, features, other.features, self.config.gate, prompts=prompts).gain

    def perplexity_ratio(self, candidate: Path, texts: Sequence[Ids]) -> float:
        """exp of the mean rise in nats per token over the prompts themselves."""
        pairs: list[Pair] = [(ids[:1], ids[1:]) for ids in texts]
        held = self._hold(candidate, CANDIDATE)
        micro = self.config.ppo.micro_batch
        ours = reply_logprobs(self.model, pairs, name=held, micro_batch=micro)
        theirs = reply_logprobs(self.model, pairs, name=None, micro_batch=micro)
        tokens = max(1, sum(map(len, ours)))
        return math.exp((sum(map(sum, theirs)) - sum(map(sum, ours))) / tokens)

    def _hold(self, folder: Path | None, name: str) -> str | None:
        """Read `folder` into the model under `name`, in place of what was there."""
        if folder is None:
            return None
        held = getattr(self.model, "peft_config", {})
        if name in held:
            # Deleting the active adapter would silently make another one active.
            use_adapter(self.model, next(other for other in held if other != name), trainable=False)
            self.model.delete_adapter(name)
        self.model = load_adapter(self.model, name, folder)
        return name
