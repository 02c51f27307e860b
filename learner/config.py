"""Every number the learner may be told, as frozen dataclasses: `LearnerConfig` > Collect, Reward, Ppo, Gate.

Knows nothing of the environment or of settings files: whoever starts a cycle builds one of these, and the cycle
writes it into its manifest. Rates are per optimiser step, KL in nats, lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

ProfileName = Literal["default", "fast", "tiny"]


class _Group:
    """Reads itself back from a manifest: unknown keys are refused, absent ones keep their default."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # each subclass is a dataclass
        if strange := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__} has no {', '.join(strange)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True, slots=True)
class CollectConfig(_Group):
    """Which votes count, and how much."""

    min_labels: int = 200
    """Live picks and thumbs below which a cycle does not start training."""
    half_life_days: float = 30.0
    """Age, measured back from the newest vote that is not from the future, at which a vote weighs half."""
    user_cap_votes: float = 5.0
    """Full-weight votes that every user has; more are shared out as `min(1, cap / n)`."""
    user_cap_median: float = 1.5
    """The cap grows to this many times the median user's votes."""
    user_cap_share: float = 0.05
    """No user holds more of the total weight than this, or 1.5 / users where that is more."""
    judge_share: float = 1 / 3
    """Share of users kept from the reward model for the judge."""
    max_votes: int = 50_000
    """Votes read at most, newest first: bounds the memory of a cycle."""
    max_prompts: int = 4096
    """Prompts kept for PPO, newest first."""
    replay_share: float = 0.25
    """Share of the prompts taken from older turns."""


@dataclass(frozen=True, slots=True)
class RewardConfig(_Group):
    """How picks, ties and thumbs become a reward model."""

    members: int = 3
    """Reward adapters in the ensemble; each sees its own bootstrap over users."""
    heads: int = 8
    """Bootstraps while the members are linear heads: they share one forward pass."""
    rank: int = 4
    """Rank of each reward adapter."""
    alpha: int = 8
    """LoRA scale numerator of each reward adapter."""
    learning_rate: float = 1e-3
    """AdamW rate of the reward adapters; about 3e-4 from 100M parameters up."""
    head_learning_rate: float = 3e-3
    """AdamW rate of the fp32 heads, the side bias, the tie width and the users' intercepts."""
    weight_decay: float = 0.01
    """Decoupled decay of adapters and heads."""
    probe_l2: float = 5.0
    """Precision of the prior on the heads' first fit, made on features of the bare base."""
    fluency: float = 0.2
    """What a score gains, before any vote, by a standard deviation of a response's mean and of its least log
    probability under the bare base: few votes fall on slips, and what the base hardly writes often is one."""
    adapt_from: int = 2000
    """Picks and thumbs of the training users from which members get adapters; with fewer they are linear heads."""
    max_epochs: int = 2
    """Passes of an adapter over the votes at most; early stopping usually ends sooner, and may keep pass 0."""
    batch: int = 32
    """Votes per optimiser step."""
    holdout_share: float = 0.15
    """Share of the training users whose votes only decide when an adapter's training stops."""
    thumb_weight: float = 0.75
    """Weight of a thumb beside a pick."""
    both_bad_weight: float = 0.5
    """Weight of each of the two downs that `both_bad` stands for, beside a thumb."""
    center: float = 0.01
    """Weight of mean(score²): keeps scores near zero where votes do not say."""
    intercept_sd: float = 1.5
    """Prior standard deviation of a user's own leniency with thumbs."""
    normalise_replies: int = 256
    """Replies of the bare base to replayed prompts that define mean 0, standard deviation 1."""


@dataclass(frozen=True, slots=True)
class PpoConfig(_Group):
    """How the policy is moved."""

    rank: int = 16
    """Rank of the policy adapter."""
    alpha: int = 32
    """LoRA scale numerator of the policy adapter."""
    steps: int = 40
    """Rollout batches per cycle."""
    rollouts: int = 128
    """Episodes per step."""
    minibatches: int = 4
    """Optimiser steps per pass over the rollouts."""
    epochs: int = 1
    """Passes over each batch of rollouts: on these machines new replies cost less than what a second pass adds."""
    micro_batch: int = 32
    """Sequences per forward pass; changes memory and speed, not the loss."""
    learning_rate: float | None = None
    """AdamW rate of the policy adapter; None takes it from the size of the base."""
    critic_forget: float = 0.8
    """What a rollout weighs in the critic's fit after each later one."""
    critic_ridge: float = 300.0
    """Precision of the critic's prior, in tokens: each weight is held at zero as by so many."""
    warmup_steps: int = 1
    """First steps on which only the critic learns: it starts afresh in every cycle."""
    kl_coef: float = 0.07
    """Price of one nat from the bare base to begin with, in standard deviations of base scores."""
    kl_leap: float = 3.0
    """What the square of a token's log ratio to the bare base adds to its price, where the policy likes it better. A
    manner grows by small steps where the base half expects it; a leap is how replies leave their subject."""
    kl_target: float | None = 6.0
    """KL per response that the controller steers to; None keeps `kl_coef` fixed. Candidates lie nearer: a mean of
    policies is less far out than each of them."""
    kl_horizon: int = 3
    """Controller's horizon in rollout batches: tastes differ in how cheaply they are met, and a cycle is short."""
    kl_stop: float = 2.0
    """Training ends when KL per response exceeds this many targets, and the champion's own by more than one."""
    inner_stop: float = 0.02
    """Passes over a batch end when mean 0.5·(Δ log prob)² per token exceeds this."""
    clip: float = 0.2
    """PPO's ratio clip."""
    dual_clip: float = 3.0
    """Bound on the loss where the advantage is negative and the ratio large."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """GAE's lambda; for responses over 128 tokens on average 1 - 1 / (0.05 · length) is used instead."""
    kappa: float = 1.0
    """Pessimism: the score is mean - kappa · std over the ensemble."""
    score_clip: float = 2.5
    """Smooth bound on the normalised score, as clip · tanh(score / clip): a score far outside of what the base's
    replies show is extrapolation, and a few hundred votes do not vouch for it."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response cut off by its length."""
    overlong_share: float = 0.25
    """Last share of `max_new_tokens` over which a soft penalty grows to `missing_eos_penalty`."""
    temperature: float = 1.0
    """Temperature of rollouts; sampler, policy and reference all divide by it. 1 is the served raw policy."""
    max_new_tokens: int = 128
    """Longest response."""
    max_prompt_tokens: int = 256
    """Longer prompts are left out of rollouts."""
    grad_norm: float = 1.0
    """Gradient clip of each adapter."""
    average: float = 0.88
    """What the mean of the policies so far weighs beside the newest: candidates are this mean, of some eight steps.
    Steps on few rewards wander, and what they wander cancels out in it while what they learn does not; 0 takes the
    newest."""
    checkpoint_every: int = 5
    """Steps between checkpoints; each is a candidate for the gate."""
    threads: int = 0
    """Threads of torch; 0 leaves them as they are. One thread makes a cycle reproducible byte for byte."""


@dataclass(frozen=True, slots=True)
class GateConfig(_Group):
    """What a candidate must show."""

    folds: int = 6
    """Folds by user for the signal test."""
    signal_z: float = 2.6
    """Least out-of-fold z of the votes, in standard deviations of what coin tosses give: once in 200 tosses."""
    signal_tosses: int = 20
    """Times the votes are tossed to learn that deviation."""
    judge_l2: float = 8.0
    """Precision of the zero-mean prior on the judge's weights over standardised features."""
    refits: int = 20
    """Judges refitted on bootstraps over their users."""
    refit_share: float = 0.8
    """Share of refits that must prefer the candidate."""
    prompts: int = 200
    """Replies to held-out prompts on which candidate and champion are compared; each prompt counts once."""
    confidence: float = 0.9
    """Level of the one-sided lower bound over prompts."""
    max_kl: float = 12.0
    """Most KL per response from the bare base."""
    length_ratio: tuple[float, float] = (0.2, 3.0)
    """Allowed mean length over the champion's."""
    eos_drop: float = 0.02
    """Allowed drop of the share of replies that end by themselves."""
    diversity_share: float = 0.5
    """Least distinct-2 and entropy over the base's."""
    repetition_rise: float = 0.05
    """Allowed rise of the share of repeated 4-grams."""
    max_text_perplexity: float = 1.25
    """Most perplexity over the base's, on the users' own texts."""
    proxy_alarm: float = 2.0
    """Alarm when the reward model's gain exceeds this many times the judge's (both in base sd)."""


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """One cycle's numbers."""

    collect: CollectConfig = field(default_factory=CollectConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    @classmethod
    def profile(cls, name: ProfileName) -> LearnerConfig:
        """`default` for use; `fast` trains less before the same gate; `tiny` for tests: a toy model's cycle in seconds.

        Many fast cycles show what a gate lets through in a fraction of the time.
        """
        if name == "default":
            return cls()
        if name == "fast":
            return cls(
                reward=RewardConfig(members=2, normalise_replies=128),
                ppo=PpoConfig(steps=12, rollouts=64, minibatches=2, checkpoint_every=4),
            )
        if name != "tiny":
            raise ValueError(f"no profile called {name!r}; there are 'default', 'fast' and 'tiny'")
        return cls(
            collect=CollectConfig(min_labels=20),
            reward=RewardConfig(members=2, adapt_from=0, max_epochs=1, normalise_replies=32),
            ppo=replace(
                PpoConfig(),
                rank=4,
                alpha=8,
                steps=4,
                rollouts=16,
                minibatches=2,
                epochs=2,
                micro_batch=16,
                max_new_tokens=16,
                checkpoint_every=2,
                threads=1,
            ),
            gate=GateConfig(prompts=32, refits=15),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearnerConfig:
        """Read a manifest's values back. Raises ValueError for a key that this version does not know."""
        groups: dict[str, type[_Group]] = {
            "collect": CollectConfig,
            "reward": RewardConfig,
            "ppo": PpoConfig,
            "gate": GateConfig,
        }
        if strange := sorted(set(values) - set(groups)):
            raise ValueError(f"LearnerConfig has no {', '.join(strange)}")
        parts: dict[str, Any] = {name: groups[name].from_dict(part) for name, part in values.items()}
        return cls(**parts)
