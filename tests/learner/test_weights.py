from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.weights import ceiling, decay, fair_weights, inverse_frequency, scaled_to

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def shares(voices: list[str], weights: list[float]) -> dict[str, float]:
    total = sum(weights)
    return {
        voice: sum(w for v, w in zip(voices, weights, strict=True) if v == voice) / total
        for voice in dict.fromkeys(voices)
    }


def test_a_vote_one_half_life_older_than_the_newest_counts_half() -> None:
    assert decay([NOON - timedelta(days=30), NOON], until=NOON, half_life_days=30) == [0.5, 1.0]


def test_age_is_counted_from_the_newest_vote_and_not_from_today() -> None:
    """The same votes read a year later must train the same adapter."""
    times = [NOON - timedelta(days=d) for d in (0, 10, 20)]
    shifted = [at + timedelta(days=365) for at in times]
    later = NOON + timedelta(days=366)
    assert decay(times, until=later, half_life_days=30) == decay(shifted, until=later, half_life_days=30)


def test_a_vote_from_the_future_makes_no_other_vote_old() -> None:
    """One client's clock ran ahead by ten years: every other vote weighed 2^-120, and nothing could be learned."""
    times = [NOON - timedelta(days=30), NOON, NOON + timedelta(days=3650)]
    assert decay(times, until=NOON, half_life_days=30) == [0.5, 1.0, 1.0]


def test_water_is_poured_to_the_hand_worked_level() -> None:
    # masses 8, 1, 1 at share 1/2: L = (L + 2) / 2, so L = 2.
    assert ceiling([8.0, 1.0, 1.0], share=0.5) == pytest.approx(2.0)
    # nobody above the share: nobody is cut.
    assert ceiling([1.0, 1.0, 1.0], share=0.5) == pytest.approx(1.0)


@given(
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60),
    st.floats(0.05, 1.0),
)
def test_no_mass_holds_more_than_its_share_of_what_is_left(masses: list[float], least: float) -> None:
    share = max(least, 1.5 / len(masses))
    level = ceiling(masses, share=share)
    levelled = [min(mass, level) for mass in masses]
    assert max(levelled) <= share * sum(levelled) * (1 + 1e-9)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60))
def test_masses_below_the_share_are_left_as_they_are(masses: list[float]) -> None:
    share = max(0.05, 1.5 / len(masses))
    if max(masses) <= share * sum(masses):
        assert ceiling(masses, share=share) == pytest.approx(max(masses))


def test_a_flood_from_one_user_is_held_to_its_cap() -> None:
    voices = ["flood"] * 5000 + [f"user{n % 40}" for n in range(400)]
    weights = fair_weights(voices, [1.0] * len(voices))
    assert shares(voices, weights)["flood"] <= 0.05 + 1e-9
    assert max(weights[5000:]) == pytest.approx(1.0)


def test_even_voters_all_count_fully() -> None:
    voices = [f"user{n % 24}" for n in range(600)]
    assert fair_weights(voices, [1.0] * 600) == pytest.approx([1.0] * 600)


def test_one_user_alone_is_still_heard() -> None:
    weights = fair_weights(["only"] * 3, [1.0, 1.0, 0.5])
    assert weights == [1.0, 1.0, 0.5]


def test_no_votes_weigh_nothing() -> None:
    assert fair_weights([], []) == []
    assert decay([], until=NOON, half_life_days=30) == []


def test_each_voice_has_one_unit_of_prompts() -> None:
    voices = ["a", "a", "a", "b"]
    assert shares(voices, inverse_frequency(voices)) == pytest.approx({"a": 0.5, "b": 0.5})


def test_scaling_keeps_proportions_and_leaves_nothing_alone() -> None:
    assert scaled_to([1.0, 3.0], total=0.8) == pytest.approx([0.2, 0.6])
    assert scaled_to([], total=0.8) == []
