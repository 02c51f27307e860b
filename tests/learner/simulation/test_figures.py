"""Every figure of a comparison, worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.simulation.figures import Outcome, fairness, loss, separates, summary, wilson, win_rate


def row(old: float, new: float) -> list[Outcome]:
    return [Outcome(old, 10, True, True), Outcome(new, 20, False, None)]


def test_wins_ties_and_losses_by_hand() -> None:
    table = summary("t", [0, 3], [row(0, 1), row(0, 1), row(1, 1), row(2, 1)])
    assert table["wins"] == {"3>0": {"rate": 2.5 / 4, "ci95": list(wilson(2.5 / 4, 4)), "ties": 1}}
    assert table["versions"]["0"] == {
        "taste_mean": 0.75,
        "tokens_mean": 10,
        "on_topic": 1.0,
        "well_formed": 1.0,
    }
    assert table["versions"]["3"] == {
        "taste_mean": 1.0,
        "tokens_mean": 20,
        "on_topic": 0.0,
        "well_formed": None,
    }
    assert table["losses"] == {"3>0": {"on_topic": {"mean": 1.0, "upper95": 1.0}, "well_formed": None}}
    assert not {"draws", "separated"} & set(table)


def test_wins_are_also_counted_where_the_taste_separates() -> None:
    rows = [row(0, 1), row(0, 1), row(1, 1), row(2, 1)]
    drawn = [[0, 1, 2], [5, 5, 5], [0, 1, 2], [0, 0, 1]]
    table = summary("t", [0, 3], rows, drawn)
    assert table["separated"] == {
        "prompts": 2,
        "wins": {"3>0": {"rate": 0.75, "ci95": list(wilson(0.75, 2)), "ties": 1}},
    }
    assert summary("t", [0, 3], rows, [[1, 1]] * 4)["separated"] == {"prompts": 0, "wins": {}}


def test_a_prompt_is_separated_from_four_fifths_of_its_pairs_on() -> None:
    assert not separates([])
    assert not separates([1])
    assert separates([1, 2])
    assert not separates([1, 1, 2])  # 2 of 3
    assert separates([1, 1, 1, 2, 3, 4])  # 12 of 15, exactly
    assert not separates([1, 1, 1, 2, 2, 4])  # 11 of 15


def test_a_loss_is_paired_and_bounded_from_above() -> None:
    """40 lost, 20 won and 40 alike: mean 0.2; squares sum to 60, so the variance is (60 - 100 · 0.04) / 99."""
    pairs = [(True, False)] * 40 + [(False, True)] * 20 + [(True, True)] * 40
    found = loss(pairs)
    assert found is not None
    assert found["mean"] == pytest.approx(0.2)
    assert found["upper95"] == pytest.approx(0.2 + 1.959964 * math.sqrt(56 / 99) / 10)


def test_pairs_that_cannot_be_read_are_no_loss() -> None:
    assert loss([(None, True), (True, None)]) is None
    assert loss([(None, True), (True, True)]) == {"mean": 0.0, "upper95": 1.0}


def test_a_taste_is_fair_when_few_tie_and_the_best_of_sixteen_wins() -> None:
    found = fairness([0.5, 20.0], [list(range(16)), list(range(16))])
    assert (found["ties"], found["best_of"], found["best_wins"]["rate"]) == (0.0, 16, 0.5)
    assert found["fair"] is False
    assert fairness([0.5, 1.5], [list(range(16)), list(range(16))])["fair"] is True
    assert fairness([0.5, 1.5], [[1] * 8 + [2] * 8] * 2)["fair"] is False  # 56 of 120 tie


def test_only_sixteen_draws_may_be_chosen_from() -> None:
    found = fairness([0.5], [[0] * 16 + [1]])
    assert (found["per_prompt"], found["best_of"], found["best_wins"]["rate"]) == (17, 16, 0.0)


def test_with_fewer_draws_fairness_is_open_unless_it_shows_already() -> None:
    assert fairness([9.0], [[1.0, 2.0]])["fair"] is None
    assert fairness([0.0], [[1.0, 2.0]])["fair"] is True
    assert fairness([9.0], [[1.0, 1.0]])["fair"] is False


def test_wilsons_interval_agrees_with_a_published_value() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe, 1998, table I, method 3)."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=60))
def test_swapping_sides_mirrors_the_rate(pairs: list[tuple[int, int]]) -> None:
    ours = win_rate(pairs)
    theirs = win_rate([(right, left) for left, right in pairs])
    assert ours["rate"] + theirs["rate"] == pytest.approx(1)
    assert ours["ties"] == theirs["ties"]
    assert ours["ci95"] == pytest.approx([1 - theirs["ci95"][1], 1 - theirs["ci95"][0]])
    assert 0 <= ours["ci95"][0] <= ours["rate"] <= ours["ci95"][1] <= 1
