"""The offline gate: may this candidate be promoted? Judged on users whom the reward model never saw.

    G0 integrity     it answers differently from the bare base (an adapter that is not finite cannot even be loaded)
    G1 signal        do the votes say anything? predicted for users that were left out, fold by fold
    G2 preference    would the judge's users prefer its replies to the champion's, on prompts not trained on?
    G3 budgets       distance from the base, length, endings, variety, grip on the users' own texts
    G4 alarm         does the reward model claim far more than the judge sees?

Owns thresholds and their words. Knows nothing of the store, of how policies are trained or of who promotes. All
fits are linear on features of the bare base (`learner.features`): milliseconds, so refits and folds are cheap.

G1 and G2 are both needed. The bound over prompts alone is about *these* judge users and passes pure noise in four
of ten cases; the refits ask how it looks with other users of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.behaviour import Behaviour
from learner.config import GateConfig, RewardConfig
from learner.likelihood import FIRST, SECOND, TIE, LinearFit, Votes, VoteTable, fit_linear

INTERCEPT_SD = RewardConfig().intercept_sd
"""The judge thinks of its people's leniency as the reward model does of its own."""


class Signal(NamedTuple):
    """What votes of left-out users say of a fit to the others."""

    z: float
    """Agreement in standard deviations of what coin flips give, whose mean is 0."""
    picks: int
    """Decided picks that were predicted."""
    accuracy: float
    nll: float
    """Of decided picks, in nats; ln 2 = 0.693 says nothing."""
    ece: float
    """Expected calibration error over 5 bins; reported, since few picks make it large by chance."""
    spread: float = 1.0
    """What coin flips spread by, in plain standard errors; z is already divided by it where it exceeds 1."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One fit to all of the judge's users and several to bootstraps over them."""

    fit: LinearFit
    refits: tuple[LinearFit, ...]


class Preference(NamedTuple):
    """The judge on candidate against champion, reply by reply to the same prompts."""

    win_rate: float
    """Share of prompts won, ties half; of a prompt with several replies, the share that it won of those."""
    lower_bound: float
    """One-sided, over different prompts."""
    refit_share: float
    """Share of refitted judges that see a win rate above one half."""
    gain: float
    """Mean score difference, in standard deviations of the champion's replies."""
    prompts: int
    """Different ones."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the gate looks at."""

    signal: Signal
    preference: Preference
    candidate: Behaviour
    champion: Behaviour
    base: Behaviour
    text_perplexity_ratio: float
    """Perplexity of the candidate over the base's, on the users' own texts."""
    differs: bool
    """The candidate's log probabilities are not the base's."""
    proxy_gain: float
    """The reward model's own opinion of candidate over champion, in the same unit as `preference.gain`."""
    best_of_4_gain: float | None = None
    """What the judge sees in the best of four champion replies by the reward model: the cheap way to be beaten."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Passed or not, why in words, and the numbers behind the words."""

    passed: bool
    reasons: list[str]
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def signal(
    features: Tensor, table: VoteTable, config: GateConfig, *, seed: int, scale: Tensor | None = None
) -> Signal:
    """Fit to all folds of users but one, predict the votes of that one; all users, both roles.

    `features` (N, F) and `scale` (F,) as `likelihood.fit_linear` takes them. z is counted in what the same votes give
    with their outcomes tossed: folds share most of their votes, so that it is wider than one standard error, and how
    much wider depends on the votes and on the prior.
    """
    votes, users = table.votes, len(table.users)
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty(users, dtype=torch.long)
    folds = max(2, min(config.folds, users))
    fold_of[torch.randperm(users, generator=generator)] = torch.arange(users) % folds

    def found(votes: Votes) -> Signal:
        gap, liking = torch.zeros(len(votes.first)), torch.zeros(len(votes.example))
        for fold in range(folds if users > 1 else 0):
            fit = fit_linear(
                features,
                votes.weighted((fold_of != fold).float()),
                users=users,
                l2=config.judge_l2,
                intercept_sd=INTERCEPT_SD,
                scale=scale,
            )
            scores = fit.score(features)
            here = fold_of[votes.pair_user] == fold
            gap[here] = (scores[votes.first] - scores[votes.second])[here]
            here = fold_of[votes.thumb_user] == fold
            liking[here] = scores[votes.example][here]
        return _signal_of(gap, liking, votes)

    real = found(votes)
    if not real.z:
        return real
    tossed = [found(_tossed(votes, generator)).z for _ in range(config.signal_tosses)]
    spread = math.sqrt(sum(z * z for z in tossed) / max(1, len(tossed)))
    return real._replace(z=real.z / max(1.0, spread), spread=spread)


def _tossed(votes: Votes, generator: torch.Generator) -> Votes:
    """The same votes if nobody had meant them: a coin for each decided pick, each user's own thumbs dealt out anew."""
    coin = torch.rand(len(votes.outcome), generator=generator) < 0.5
    turned = torch.where(votes.outcome == FIRST, SECOND, FIRST)
    up = votes.up.clone()
    for user in votes.thumb_user.unique():
        mine = (votes.thumb_user == user).nonzero()[:, 0]
        up[mine] = votes.up[mine[torch.randperm(len(mine), generator=generator)]]
    return votes._replace(outcome=torch.where((votes.outcome != TIE) & coin, turned, votes.outcome), up=up)


def _signal_of(gap: Tensor, liking: Tensor, votes: Votes) -> Signal:
    """z = Σ y·t / sqrt(Σ (y·t)²), t = tanh(x / sd x): a sure prediction counts more, none without bound.

    `gap`: (K,) predicted for picks, y their sign. `liking`: (M,) predicted for thumbs; there both x and y are what
    stands out from the user's own mean, since people differ in how easily they are pleased.
    """
    decided = (votes.outcome != TIE) & (votes.pair_weight > 0)
    gap, sign = gap[decided], torch.where(votes.outcome[decided] == FIRST, 1.0, -1.0)
    rated = votes.thumb_weight > 0
    user = votes.thumb_user[rated]
    terms = torch.cat(
        [
            sign * _bounded(gap),
            2 * _beside_own_mean(votes.up[rated], user) * _bounded(_beside_own_mean(liking[rated], user)),
        ]
    )
    z = float(terms.sum() / torch.sqrt((terms**2).sum()).clamp(min=1e-9))
    if len(gap) < 2:
        return Signal(z, len(gap), 0.5, math.log(2), 0.0)
    return Signal(
        z,
        len(gap),
        float((sign * gap > 0).float().mean()),
        float(-torch.nn.functional.logsigmoid(sign * gap).mean()),
        expected_calibration_error(torch.sigmoid(gap), sign > 0),
    )


def _bounded(x: Tensor) -> Tensor:
    """tanh of `x` in its own deviations; all 0 where it hardly varies."""
    spread = float(x.std(unbiased=False)) if len(x) else 0.0
    return torch.tanh(x / spread) if spread > 1e-9 else torch.zeros_like(x)


def _beside_own_mean(x: Tensor, user: Tensor) -> Tensor:
    """(M,) less the mean of the same user's."""
    if not len(x):
        return x
    total, count = torch.bincount(user, weights=x.double()), torch.bincount(user).clamp(min=1)
    return x - (total / count)[user].float()


def expected_calibration_error(predicted: Tensor, happened: Tensor, *, bins: int = 5) -> float:
    """Mean over bins of equal size of |predicted - observed|, of the likelier side."""
    confident = torch.maximum(predicted, 1 - predicted)
    right = torch.where(predicted >= 0.5, happened, ~happened).float()
    order = confident.argsort()
    parts = [p for p in order.chunk(bins) if len(p)]
    total = sum(abs(float(confident[p].mean() - right[p].mean())) * len(p) for p in parts)
    return total / max(1, len(order))


def fit_judge(
    features: Tensor, table: VoteTable, config: GateConfig, *, seed: int, scale: Tensor | None = None
) -> Judge:
    """Fit the judge to its users' votes, and again to bootstraps over those users."""
    users = len(table.users)
    generator = torch.Generator().manual_seed(seed)

    def fit(votes: Votes) -> LinearFit:
        return fit_linear(
            features,
            votes,
            users=users,
            l2=config.judge_l2,
            intercept_sd=INTERCEPT_SD,
            scale=scale,
        )

    refits = []
    for _ in range(config.refits):
        drawn = torch.randint(users, (users,), generator=generator)
        refits.append(fit(table.votes.weighted(torch.bincount(drawn, minlength=users).float())))
    return Judge(fit(table.votes), tuple(refits))


def prefer(
    judge: Judge, candidate: Tensor, champion: Tensor, config: GateConfig, *, prompts: Sequence[Hashable]
) -> Preference:
    """Compare replies to the same `prompts`: (N, F) features of each side, row for row.

    Several replies to one prompt are about that prompt: they are averaged first, and the bound is over different
    prompts. It takes the widest spread that their win rate allows, since few prompts can lie close together by chance.
    """
    count = len(set(prompts))

    def win_rate(fit: LinearFit) -> float:
        gap = fit.score(candidate) - fit.score(champion)
        return float(_by_prompt(torch.where(gap == 0, 0.5, (gap > 0).float()), prompts).mean())

    rate = win_rate(judge.fit)
    error = math.sqrt(max(rate * (1 - rate), 0.25 / count) / count)
    refits = [win_rate(fit) for fit in judge.refits]
    ours, theirs = judge.fit.score(candidate), judge.fit.score(champion)
    spread = float(theirs.std(unbiased=False))
    return Preference(
        win_rate=rate,
        lower_bound=rate - NormalDist().inv_cdf(config.confidence) * error,
        refit_share=sum(r > 0.5 for r in refits) / max(1, len(refits)),
        gain=float(_by_prompt(ours - theirs, prompts).mean()) / max(spread, 1e-6),
        prompts=count,
    )


def gains(judge: Judge, candidate: Tensor, champion: Tensor, *, prompts: Sequence[Hashable]) -> Tensor:
    """What a candidate gains in the eyes of the judge and of each of its refits, by prompt: (1 + refits, P).

    Arguments as of `prefer`; in standard deviations of the champion's replies.
    """
    rows = []
    for fit in (judge.fit, *judge.refits):
        theirs = fit.score(champion)
        gap = (fit.score(candidate) - theirs) / theirs.std(unbiased=False).clamp(min=1e-6)
        rows.append(_by_prompt(gap, prompts))
    return torch.stack(rows)


def _by_prompt(found: Tensor, prompts: Sequence[Hashable]) -> Tensor:
    """(P,) what was found of each different prompt: the mean over its replies."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([place[prompt] for prompt in prompts])
    return torch.bincount(index, weights=found.double()) / torch.bincount(index)


def best_checkpoint(gained: Sequence[Tensor], fits: Sequence[bool]) -> int:
    """The latest checkpoint within the budgets that is not clearly past the peak.

    `gained`: of each checkpoint what `gains` says. Past the peak the reward model's opinion goes on rising while
    people's falls, and there the judge's falls by more than two standard errors, over its users and over prompts.
    Before that its ups and downs are mostly noise: a few people judge, and what PPO has learnt since was learnt from
    more. A linear judge may miss the peak, following the reward model out of the base's range; the budgets do not.
    With no checkpoint within them, the earliest.
    """
    allowed = [i for i, fit in enumerate(fits) if fit] or [0]
    peak = max(allowed, key=lambda i: float(gained[i][0].mean()))

    def is_past(i: int) -> bool:
        lost = gained[peak] - gained[i]
        errors = lost.mean(dim=1)[1:].std(), lost[0].std() / math.sqrt(lost.shape[1])
        return float(lost[0].mean()) > 2 * math.hypot(*(float(error.nan_to_num()) for error in errors))

    return max(i for i in allowed if not is_past(i))


def gate(evidence: Evidence, config: GateConfig) -> Verdict:
    """Every test, each with its words; all must hold. Reasons of a refusal come first and say what would help."""
    refusals: list[str] = []
    notes: list[str] = []
    _check_integrity(evidence, refusals)
    check_signal(evidence.signal, config, refusals, notes)
    _check_preference(evidence.preference, config, refusals, notes)
    refusals.extend(
        budget_faults(
            evidence.candidate, evidence.champion, evidence.base, evidence.text_perplexity_ratio, config
        )
    )
    _alarm(evidence, config, notes)
    numbers = {
        "signal": evidence.signal._asdict(),
        "preference": evidence.preference._asdict(),
        "candidate": evidence.candidate.to_dict(),
        "champion": evidence.champion.to_dict(),
        "base": evidence.base.to_dict(),
        "text_perplexity_ratio": evidence.text_perplexity_ratio,
        "proxy_gain": evidence.proxy_gain,
        "best_of_4_gain": evidence.best_of_4_gain,
    }
    return Verdict(not refusals, [*refusals, *notes], numbers)


def _check_integrity(evidence: Evidence, refusals: list[str]) -> None:
    if not evidence.differs:
        refusals.append("The adapter answers exactly as the bare base does: nothing was trained.")


def check_signal(found: Signal, config: GateConfig, refusals: list[str], notes: list[str]) -> None:
    agreed = (
        f"{found.accuracy:.0%} of {found.picks} picks by people left out of the fit were predicted"
        if found.picks
        else "there are no decided picks, only thumbs"
    )
    if found.z >= config.signal_z:
        notes.append(f"People agree with each other: {agreed} (z {found.z:.1f}).")
    else:
        refusals.append(
            f"The votes do not agree with each other enough to learn from: {agreed}, z {_short(found.z, 1):.1f} "
            f"where {config.signal_z:.1f} is needed (coin tosses give about 0). More votes may help."
        )


def _short(value: float, digits: int) -> float:
    """Rounded down: what falls short must not read as if it had reached its bar."""
    return math.floor(round(value * 10**digits, 6)) / 10**digits if math.isfinite(value) else value


def _check_preference(found: Preference, config: GateConfig, refusals: list[str], notes: list[str]) -> None:
    won = f"it wins {found.win_rate:.0%} of {found.prompts} prompts against the champion"
    if found.lower_bound <= 0.5:
        refusals.append(
            f"People kept for judging would not clearly prefer it: {won}, "
            f"lower bound {_short(found.lower_bound, 2):.0%}."
        )
    if found.refit_share < config.refit_share:
        refusals.append(
            "Whether it is better depends on which people are asked: only "
            f"{_short(found.refit_share, 2):.0%} of refitted judges prefer it, {config.refit_share:.0%} are needed."
        )
    if found.lower_bound > 0.5 and found.refit_share >= config.refit_share:
        notes.append(f"People kept for judging prefer it: {won}, lower bound {found.lower_bound:.0%}.")


def budget_faults(
    new: Behaviour, old: Behaviour, base: Behaviour, text_perplexity_ratio: float, config: GateConfig
) -> list[str]:
    """Every budget that `new` breaks, in words: against the champion for form, against the base for variety."""
    low, high = config.length_ratio
    ratio = new.length / max(old.length, 1e-6)
    checks = [
        (new.kl <= config.max_kl, f"It moved too far from the base: {new.kl:.1f} nats per reply, {config.max_kl:g} "
         "are allowed."),
        (low <= ratio <= high, f"Its replies are {ratio:.2f} times as long as the champion's; {low:g} to {high:g} "
         "is allowed."),
        (new.eos_rate >= old.eos_rate - config.eos_drop, f"Too many replies do not end by themselves: "
         f"{1 - new.eos_rate:.0%}, the champion's {1 - old.eos_rate:.0%}."),
        (new.distinct2 >= config.diversity_share * base.distinct2, f"Its wording has become monotonous: distinct pairs "
         f"{new.distinct2:.3f}, the base's {base.distinct2:.3f}."),
        (new.entropy >= config.diversity_share * base.entropy, f"It hardly varies any more: {new.entropy:.2f} nats per "
         f"token, the base's {base.entropy:.2f}."),
        (new.repetition <= base.repetition + config.repetition_rise, f"It repeats itself: {new.repetition:.0%} of "
         f"4-grams, the base's {base.repetition:.0%}."),
        (text_perplexity_ratio <= config.max_text_perplexity, "It understands the users' own texts worse: "
         f"perplexity {text_perplexity_ratio:.2f} times the base's."),
    ]  # fmt: skip
    return [words for holds, words in checks if not holds]


def _alarm(evidence: Evidence, config: GateConfig, notes: list[str]) -> None:
    claimed, seen = evidence.proxy_gain, evidence.preference.gain
    if claimed > 0.5 and claimed >= config.proxy_alarm * max(seen, 0.0):
        notes.append(
            f"Watch this one: the reward model claims a gain of {claimed:.1f} sd, the judge sees {seen:.1f}."
        )
