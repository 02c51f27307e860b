"""When two replies are shown."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Invalid
from server.pairing import PairingPolicy, Purpose, Wishes, plan

POLICY = PairingPolicy()


def test_one_reply_is_the_default() -> None:
    made = plan(Wishes(version=3, temperature=0.8), POLICY, Random(0))
    assert [(d.position, d.version, d.purpose) for d in made.draws] == [(0, 3, Purpose.SINGLE)]
    assert not made.is_pair


def test_auto_pairs_as_often_as_the_segment_says() -> None:
    dice = Random(0)
    wishes = Wishes(version=1, temperature=0.8, candidates="auto")
    pairs = sum(plan(wishes, POLICY, dice).is_pair for _ in range(5000))
    assert 900 < pairs < 1100  # share 0.2: five standard deviations are 141


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_or_everything_is_exact(share: float) -> None:
    wishes = Wishes(version=1, temperature=0.8, candidates="auto")
    dice = Random(0)
    assert {plan(wishes, PairingPolicy(share=share), dice).is_pair for _ in range(200)} == {bool(share)}


def test_auto_never_pairs_greedy_replies() -> None:
    wishes = Wishes(version=1, temperature=0.0, candidates="auto")
    made = plan(wishes, PairingPolicy(share=1.0), Random(0))
    assert not made.is_pair
    assert made.temperature == 0.0


def test_an_explicit_pair_at_temperature_zero_is_warmed_to_the_floor() -> None:
    made = plan(Wishes(version=1, temperature=0.0, candidates=2), POLICY, Random(0))
    assert made.is_pair
    assert made.temperature == POLICY.min_temperature
    assert made.propensity == 1.0


def test_every_seed_is_drawn_small_enough_for_every_reader() -> None:
    """A seed at the edge of 64 bits left no room for its neighbour, and JSON readers that know doubles misread it."""
    for seed in (2**63 - 1, -(2**63), 2**53):
        made = plan(Wishes(version=1, temperature=1, candidates=2, seed=seed), POLICY, Random(0))
        assert {draw.seed for draw in made.draws} == {seed % 2**53, seed % 2**53 + 1}


def test_a_pair_warmer_than_the_floor_keeps_its_temperature() -> None:
    assert plan(Wishes(version=1, temperature=1.2, candidates=2), POLICY, Random(0)).temperature == 1.2


def test_propensity_is_recorded_as_the_share() -> None:
    wishes = Wishes(version=1, temperature=1, candidates="auto")
    made = next(
        p for seed in range(100) if (p := plan(wishes, PairingPolicy(share=0.3), Random(seed))).is_pair
    )
    assert made.propensity == 0.3


def test_sides_are_thrown_fairly() -> None:
    dice = Random(1)
    wishes = Wishes(version=1, temperature=1, candidates=2)
    lower_first = 0
    for _ in range(2000):
        first, second = plan(wishes, POLICY, dice).draws
        lower_first += first.seed < second.seed
    assert 880 < lower_first < 1120


def test_a_named_seed_gives_the_same_plan_every_time() -> None:
    wishes = Wishes(version=1, temperature=1, candidates=2, seed=7)
    assert plan(wishes, POLICY, Random(1)) == plan(wishes, POLICY, Random(2))


def test_plain_choices_have_neighbouring_seeds() -> None:
    made = plan(Wishes(version=1, temperature=1, n=3, seed=7), POLICY, Random(0))
    assert [d.seed for d in made.draws] == [7, 8, 9]
    assert {d.purpose for d in made.draws} == {Purpose.CHOICE}


def test_several_choices_are_never_a_pair() -> None:
    for candidates in (2, "auto"):
        with pytest.raises(Invalid):
            plan(Wishes(version=1, temperature=1, n=2, candidates=candidates), POLICY, Random(0))  # type: ignore[arg-type]


def test_a_pinned_version_is_never_compared() -> None:
    with pytest.raises(Invalid):
        plan(Wishes(version=1, temperature=1, candidates=2, pinned=True), POLICY, Random(0))
    made = plan(
        Wishes(version=1, temperature=1, candidates="auto", pinned=True), PairingPolicy(share=1), Random(0)
    )
    assert [d.purpose for d in made.draws] == [Purpose.PINNED]


@given(
    temperature=st.floats(0, 2),
    share=st.floats(0, 1),
    floor=st.floats(0.1, 2),
    candidates=st.sampled_from([1, 2, "auto"]),
    dice=st.integers(0, 2**32),
)
def test_both_sides_of_any_pair_differ_only_in_seed_and_place(
    temperature: float, share: float, floor: float, candidates: object, dice: int
) -> None:
    wishes = Wishes(version=5, temperature=temperature, candidates=candidates)  # type: ignore[arg-type]
    made = plan(wishes, PairingPolicy(share, floor), Random(dice))
    assert [d.position for d in made.draws] == list(range(len(made.draws)))
    assert {d.version for d in made.draws} == {5}
    if made.is_pair:
        first, second = made.draws
        assert abs(first.seed - second.seed) == 1
        assert made.temperature >= floor
