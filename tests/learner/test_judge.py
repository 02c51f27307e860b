"""The gate: noise is refused, agreement passes, and every refusal says why in words."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learner.behaviour import Behaviour, behaviour_of, distinct2, repeated
from learner.config import GateConfig
from learner.dataset import Comparison, Dataset, Example, Outcome, Thumb
from learner.judge import (
    Evidence,
    Judge,
    Preference,
    Signal,
    best_checkpoint,
    check_signal,
    expected_calibration_error,
    fit_judge,
    gains,
    gate,
    prefer,
    signal,
)
from learner.likelihood import LinearFit, Manners, VoteTable, tabulate

CONFIG = GateConfig()
FEATURES = 48


def world(
    *, picks: int, thumbs: int, seed: int, sharpness: float, users: int = 24
) -> tuple[VoteTable, Tensor, Tensor]:
    """A linear taste over random features of replies that share a prompt; sharpness 0 is coin tosses."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def chance(logit: float) -> bool:
        return float(torch.rand((), generator=generator)) < float(torch.sigmoid(torch.tensor(logit)))

    taste = normal(FEATURES) / FEATURES**0.5
    examples: dict[Example, Tensor] = {}

    def reply(i: int, side: int, about: Tensor) -> Example:
        example = Example((i,), (i, side))
        examples[example] = about + normal(FEATURES)
        return example

    comparisons, rated = [], []
    for i in range(picks):
        about = normal(FEATURES)
        first, second = reply(i, 0, about), reply(i, 1, about)
        gap = float((examples[first] - examples[second]) @ taste)
        outcome = Outcome.FIRST if chance(sharpness * gap) else Outcome.SECOND
        comparisons.append(Comparison(first, second, outcome, f"u{i % users:02d}"))
    for i in range(thumbs):
        example = reply(picks + i, 0, normal(FEATURES))
        rated.append(
            Thumb(example, chance(sharpness * float(examples[example] @ taste)), f"u{i % users:02d}")
        )
    table = tabulate(Dataset(tuple(comparisons), tuple(rated), ()), thumb_weight=0.5, both_bad_weight=0.5)
    return table, torch.stack([examples[e] for e in table.examples]), taste


QUICK = replace(CONFIG, signal_tosses=8)
"""Tosses are fits; eight give the same answers, less finely."""


def signal_of(seed: int, *, sharpness: float, picks: int = 300, thumbs: int = 300) -> Signal:
    table, features, _ = world(picks=picks, thumbs=thumbs, seed=seed, sharpness=sharpness)
    return signal(features, table, QUICK, seed=seed)


def test_coin_votes_have_no_signal() -> None:
    found = [signal_of(seed, sharpness=0.0).z for seed in range(12)]
    assert max(found) < CONFIG.signal_z
    assert abs(sum(found) / len(found)) < 1.0


def test_z_is_counted_in_what_tossed_votes_give() -> None:
    """Folds share votes, so that plain standard errors are too small; divided by the spread they fit."""
    found = [signal_of(seed, sharpness=0.0) for seed in range(12)]
    assert all(s.spread > 1.0 for s in found)
    assert sum(s.z**2 for s in found) / len(found) < 2.5


def test_three_hundred_picks_of_people_who_agree_have_signal() -> None:
    found = [signal_of(seed, sharpness=1.4) for seed in range(12)]
    assert min(s.z for s in found) >= CONFIG.signal_z
    assert sum(s.nll for s in found) / len(found) < 0.693


def test_thumbs_alone_have_signal_and_help_the_picks() -> None:
    assert signal_of(0, sharpness=1.4, picks=0).z >= CONFIG.signal_z
    with_thumbs, without = (
        [signal_of(seed, sharpness=1.4, picks=150, thumbs=n).z for seed in range(4)] for n in (300, 0)
    )
    assert sum(with_thumbs) > sum(without)


def test_a_refusal_of_thumbs_alone_does_not_speak_of_picks_that_were_predicted() -> None:
    refusals: list[str] = []
    check_signal(Signal(z=0.3, picks=0, accuracy=0.5, nll=0.69, ece=0.0), CONFIG, refusals, [])
    assert "only thumbs, z 0.3" in refusals[0]
    assert "predicted" not in refusals[0]


def test_what_falls_just_short_does_not_read_as_if_it_had_reached_its_bar() -> None:
    said: list[str] = []
    almost = Signal(z=CONFIG.signal_z - 0.01, picks=270, accuracy=0.6, nll=0.66, ece=0.05)
    check_signal(almost, CONFIG, said, [])
    assert f"z {CONFIG.signal_z:.1f} where" not in said[0]


def test_a_user_s_leniency_is_no_signal() -> None:
    """Half of the people like everything, the others nothing: no reply is better than another."""
    thumbs = [Thumb(Example((i,), (i, 0)), up=i % 24 < 12, user=f"u{i % 24:02d}") for i in range(240)]
    table = tabulate(Dataset((), tuple(thumbs), ()), thumb_weight=0.5, both_bad_weight=0.5)
    features = torch.randn(240, FEATURES, generator=torch.Generator().manual_seed(0))
    assert abs(signal(features, table, QUICK, seed=0).z) < 1e-3


def test_no_votes_have_no_signal() -> None:
    table = tabulate(Dataset((), (), ()), thumb_weight=0.5, both_bad_weight=0.5)
    assert signal(torch.zeros(0, FEATURES), table, CONFIG, seed=0).z == 0.0


def verdict_on(shift: float, *, sharpness: float, seed: int) -> Preference:
    """The judge on replies moved `shift` along the true taste, the judge's people being a third of 24."""
    table, features, taste = world(picks=100, thumbs=100, seed=seed, sharpness=sharpness, users=8)
    judge = fit_judge(features, table, CONFIG, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    old, new = torch.randn(2, 200, FEATURES, generator=generator)
    return prefer(judge, new + shift * taste / taste.norm(), old, CONFIG, prompts=range(200))


def test_the_judge_sees_a_real_improvement() -> None:
    found = verdict_on(1.5, sharpness=1.4, seed=0)
    assert found.win_rate > 0.55
    assert found.lower_bound > 0.5
    assert found.refit_share >= 0.8
    assert found.gain > 0.2


def test_the_judge_sees_a_real_worsening() -> None:
    found = verdict_on(-1.5, sharpness=1.4, seed=0)
    assert found.win_rate < 0.45
    assert found.gain < 0


def test_equal_replies_are_neither() -> None:
    table, features, _ = world(picks=50, thumbs=0, seed=0, sharpness=1.4)
    judge = fit_judge(features, table, CONFIG, seed=0)
    found = prefer(judge, features, features, CONFIG, prompts=range(len(features)))
    assert found.win_rate == 0.5
    assert found.lower_bound < 0.5


def test_a_prompt_counts_once_however_often_it_is_answered() -> None:
    """Two hundred replies to five prompts passed for two hundred prompts, and the bound for one over those."""
    table, features, taste = world(picks=100, thumbs=100, seed=0, sharpness=1.4, users=8)
    judge = fit_judge(features, table, CONFIG, seed=0)
    old, new = torch.randn(2, 200, FEATURES, generator=torch.Generator().manual_seed(3))
    new = new + 0.8 * taste / taste.norm()
    many = prefer(judge, new, old, CONFIG, prompts=range(200))
    five = prefer(judge, new, old, CONFIG, prompts=[i % 5 for i in range(200)])
    assert (many.prompts, five.prompts) == (200, 5)
    assert five.win_rate == pytest.approx(many.win_rate)
    assert five.lower_bound < 0.5 < many.lower_bound


def test_prompts_weigh_the_same_whether_answered_once_or_often() -> None:
    fit = LinearFit(torch.ones(1), torch.zeros(1), torch.ones(1), Manners(1, intercept_sd=1.5))
    won, lost = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    found = prefer(
        Judge(fit, (fit,)),
        torch.cat([won, lost, lost, lost]),
        torch.cat([lost, won, won, won]),
        CONFIG,
        prompts=["a", "b", "b", "b"],
    )
    assert (found.win_rate, found.gain, found.refit_share) == (0.5, 0.0, 0.0)


# --- the verdict ----------------------------------------------------------------------------------------------

SANE = Behaviour(replies=200, length=30.0, eos_rate=0.99, distinct2=0.4, repetition=0.02, entropy=1.2, kl=0.0)
GOOD = Evidence(
    signal=Signal(z=6.0, picks=270, accuracy=0.66, nll=0.62, ece=0.05),
    preference=Preference(win_rate=0.8, lower_bound=0.76, refit_share=1.0, gain=1.1, prompts=200),
    candidate=replace(SANE, kl=5.0),
    champion=SANE,
    base=SANE,
    text_perplexity_ratio=1.02,
    differs=True,
    proxy_gain=1.5,
)


def test_good_evidence_passes_and_says_what_for() -> None:
    verdict = gate(GOOD, CONFIG)
    assert verdict.passed
    assert len(verdict.reasons) == 2
    assert "wins 80% of 200 prompts" in verdict.reasons[1]
    assert verdict.to_dict()["numbers"]["signal"]["z"] == 6.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"differs": False}, "exactly as the bare base"),
        ({"signal": GOOD.signal._replace(z=1.1, accuracy=0.51)}, "do not agree with each other"),
        ({"preference": GOOD.preference._replace(lower_bound=0.49)}, "would not clearly prefer"),
        ({"preference": GOOD.preference._replace(refit_share=0.5)}, "depends on which people"),
        ({"candidate": replace(SANE, kl=20.0)}, "too far from the base"),
        ({"candidate": replace(SANE, length=2.0)}, "times as long"),
        ({"candidate": replace(SANE, length=120.0)}, "times as long"),
        ({"candidate": replace(SANE, eos_rate=0.7)}, "do not end by themselves"),
        ({"candidate": replace(SANE, distinct2=0.1)}, "monotonous"),
        ({"candidate": replace(SANE, entropy=0.2)}, "hardly varies"),
        ({"candidate": replace(SANE, repetition=0.4)}, "repeats itself"),
        ({"text_perplexity_ratio": 1.6}, "understands the users' own texts worse"),
    ],
)
def test_each_fault_alone_is_refused_in_words(change: dict[str, object], words: str) -> None:
    verdict = gate(replace(GOOD, **change), CONFIG)  # type: ignore[arg-type]
    assert not verdict.passed
    assert words in verdict.reasons[0]


def test_a_proxy_that_claims_far_more_than_the_judge_sees_raises_the_alarm() -> None:
    verdict = gate(replace(GOOD, proxy_gain=4.0), CONFIG)
    assert verdict.passed
    assert "claims a gain of 4.0 sd" in verdict.reasons[-1]


def gained(*means: float, between_users: float = 0.0, between_prompts: float = 0.0) -> list[Tensor]:
    """Of each checkpoint what a judge and 20 refits say on 64 prompts: these means, this far apart."""
    generator = torch.Generator().manual_seed(0)

    def one(mean: float) -> Tensor:
        users = between_users * torch.randn(21, 1, generator=generator)
        prompts = between_prompts * torch.randn(21, 64, generator=generator)
        return mean + users - users[0] + prompts - prompts.mean(dim=1, keepdim=True)

    return [one(mean) for mean in means]


def test_the_checkpoint_is_the_last_before_a_clear_fall_within_the_budgets() -> None:
    assert best_checkpoint(gained(0.1, 0.9, 0.4), [True] * 3) == 1
    assert best_checkpoint(gained(0.1, 0.4, 0.9), [True, True, False]) == 1
    assert best_checkpoint(gained(0.5, 0.5), [True, True]) == 1
    assert best_checkpoint(gained(0.5, 0.9), [False, False]) == 0


@pytest.mark.parametrize("noise", [{"between_users": 0.2}, {"between_prompts": 2.0}])
def test_a_fall_that_may_be_noise_is_no_peak(noise: dict[str, float]) -> None:
    assert best_checkpoint(gained(0.1, 1.0, 0.6, **noise), [True] * 3) == 2
    assert best_checkpoint(gained(0.1, 2.7, 0.6, **noise), [True] * 3) == 1


def test_gains_are_counted_by_prompt_in_the_champions_spread() -> None:
    def fit(weight: float) -> LinearFit:
        one = torch.ones(1)
        return LinearFit(weight * one, 0 * one, one, Manners(1, intercept_sd=1.0))

    judge = Judge(fit(3.0), (fit(-1.0), fit(3.0)))
    champion, candidate = (
        torch.tensor([[0.0], [2.0], [0.0], [2.0]]),
        torch.tensor([[1.0], [3.0], [2.0], [2.0]]),
    )
    found = gains(judge, candidate, champion, prompts=["a", "b", "a", "b"])
    assert found.tolist() == [[1.5, 0.5], [-1.5, -0.5], [1.5, 0.5]]


def test_calibration_error_by_hand() -> None:
    sure_and_right = expected_calibration_error(torch.ones(10), torch.ones(10, dtype=torch.bool))
    sure_and_wrong = expected_calibration_error(torch.ones(10), torch.zeros(10, dtype=torch.bool))
    assert (sure_and_right, sure_and_wrong) == (0.0, 1.0)


# --- behaviour ------------------------------------------------------------------------------------------------


def test_behaviour_by_hand() -> None:
    found = behaviour_of(
        [(1, 2, 3), (4,)],
        ended=[True, False],
        logprobs=[(-1.0, -1.0, -1.0), (-3.0,)],
        ref_logprobs=[(-1.0, -1.0, -1.0), (-3.0,)],
    )
    assert (found.length, found.eos_rate, found.entropy, found.kl) == (2.0, 0.5, 1.5, 0.0)


def test_a_phrase_said_again_and_again_is_repetition() -> None:
    assert repeated((1, 2, 3, 4) * 10) > 0.8
    assert repeated(tuple(range(40))) == 0.0
    assert repeated((1, 2)) == 0.0
    assert distinct2([(1, 2, 3), (1, 2, 3)]) == 0.5


def test_distance_from_the_base_is_nats_per_reply() -> None:
    found = behaviour_of(
        [(1, 2), (3,)],
        ended=[True] * 2,
        logprobs=[(-1.0, -1.0), (-1.0,)],
        ref_logprobs=[(-2.0, -2.0), (-5.0,)],
    )
    assert found.kl == 3.0
