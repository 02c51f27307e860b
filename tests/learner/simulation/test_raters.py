"""Raters: as noisy, biased and hostile as asked for, and no more."""

import math
import random
from collections import Counter

import pytest

from learner.simulation.raters import make_raters, standardise
from server.errors import Invalid


def score_pairs(count: int, seed: int = 0) -> list[tuple[float, float]]:
    rng = random.Random(seed)
    return [(rng.gauss(0, 1), rng.gauss(0, 1)) for _ in range(count)]


def test_two_users_agree_on_about_seventy_percent_of_decided_picks_at_noise_one() -> None:
    """Scores here are normal; real replies tie more often, and tastes over them give 64 to 72 %."""
    agreed = decided = 0
    for seed in range(10):
        raters = make_raters(24, seed=seed)
        rng = random.Random(seed)
        for first, second in score_pairs(1500, seed):
            one, two = (rater.pick(first, second) for rater in rng.sample(raters, 2))
            if {one, two} <= {"first", "second"}:
                decided += 1
                agreed += one == two
    assert agreed / decided == pytest.approx(0.72, abs=0.02)


def test_without_noise_every_rater_is_exact() -> None:
    for rater in make_raters(12, noise=0):
        for first, second in score_pairs(50):
            assert rater.pick(first, second) == ("first" if first > second else "second")
            assert rater.thumb(first) == ("up" if first > 0 else "down")
        assert rater.pick(0.3, 0.3) == "tie"


def test_with_infinite_noise_votes_know_nothing_of_the_scores() -> None:
    raters = make_raters(24, noise=math.inf)
    picks = Counter(rater.pick(3.0, -3.0) for rater in raters for _ in range(300))
    thumbs = Counter(rater.thumb(3.0) for rater in raters for _ in range(300))
    assert picks["first"] / picks.total() == pytest.approx(0.5, abs=0.025)
    assert set(picks) == {"first", "second"}
    assert thumbs["up"] / thumbs.total() == pytest.approx(0.5, abs=0.025)


def test_adversaries_want_the_opposite_and_are_as_many_as_asked() -> None:
    raters = make_raters(20, noise=0, adversaries=0.2)
    against = [rater for rater in raters if rater.pick(1.0, -1.0) == "second"]
    assert len(against) == 4
    assert all(rater.thumb(1.0) == "down" for rater in against)


def test_a_few_raters_click_at_random_at_noise_one_and_none_without_noise() -> None:
    careless = [rater for rater in make_raters(40) if rater.sharpness == 0]
    assert len(careless) == 2
    assert all(rater.sharpness > 0 for rater in make_raters(40, noise=0))


def test_equal_replies_are_often_ties_and_two_bad_ones_are_both_bad() -> None:
    raters = make_raters(24, clickers=0.0)
    equal = Counter(rater.pick(0.5, 0.5) for rater in raters for _ in range(200))
    bad = Counter(rater.pick(-3.0, -3.0) for rater in raters for _ in range(200))
    apart = Counter(rater.pick(2.0, -2.0) for rater in raters for _ in range(200))
    assert equal["tie"] > 3 * apart["tie"]
    assert bad["both_bad"] > 0.08 * bad.total()
    assert bad["tie"] == 0
    assert apart["first"] > 0.9 * apart.total()


def test_users_differ_in_leniency_and_in_the_side_they_favour() -> None:
    raters = make_raters(24, clickers=0.0)
    assert len({rater.leniency for rater in raters}) == len({rater.side_bias for rater in raters}) == 24


def test_the_same_seed_gives_the_same_votes() -> None:
    def votes(seed: int) -> list[str]:
        return [rater.pick(*pair) for rater in make_raters(6, seed=seed) for pair in score_pairs(40)]

    assert votes(1) == votes(1)
    assert votes(1) != votes(2)


def test_a_scale_has_mean_zero_and_deviation_one_between_replies_to_one_prompt() -> None:
    # Mean 15; differences 2 and 4: half the mean square is (4 + 16) / 2 / 2 = 5. What sets prompts apart is no matter.
    scale = standardise([(10.0, 12.0), (17.0, 21.0)])
    assert scale(15.0) == 0.0
    assert scale(18.0) == pytest.approx(3 / math.sqrt(5))


def test_a_flat_taste_is_refused_with_its_reason() -> None:
    with pytest.raises(Invalid, match="same score in all 2 pairs"):
        standardise([(2.0, 2.0), (3.0, 3.0)])


@pytest.mark.parametrize("unit", [1e-200, 1e-12, 1e12, 1e200])
def test_a_taste_may_be_of_any_scale(unit: float) -> None:
    """Squares of large differences were no numbers, and small differences were said to be none."""
    scale = standardise([(10.0 * unit, 12.0 * unit), (17.0 * unit, 21.0 * unit)])
    assert scale(15.0 * unit) == pytest.approx(0.0, abs=1e-12)
    assert scale(18.0 * unit) == pytest.approx(3 / math.sqrt(5))


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 3, "noise": -1.0}, {"count": 3, "adversaries": 1.5}]
)
def test_raters_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Invalid):
        make_raters(**wrong)
