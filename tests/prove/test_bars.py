"""The bars, exactly where they lie."""

from typing import Any

import pytest

from tests.prove.bars import lacks_to_go_on, lacks_to_learn, lacks_to_withstand, way


def promoted(rate: float = 0.85, **more: Any) -> dict[str, Any]:
    """A case that just holds."""
    enough = {"mean": 0.01, "upper95": 0.03}
    return {
        "state": "promoted",
        "reason": "v1 passed",
        "cycle_seconds": 600.0,
        "prompts": 2000,
        "wins": {"rate": 0.6},
        "separated": {"prompts": 1000, "rate": rate},
        "losses": {"on_topic": enough, "well_formed": enough},
        **more,
    }


def test_the_way_begins_at_a_toss_up_and_ends_where_ppo_on_the_taste_does() -> None:
    assert way(0.75, 0.9) == pytest.approx(0.625)
    assert way(0.9, 0.9) == 1.0
    assert way(0.5, 0.9) == 0.0
    assert way(0.7, None) is None
    assert way(0.7, 0.5) is None


def test_a_case_that_reaches_every_bar_lacks_nothing() -> None:
    assert lacks_to_learn(promoted(), None) == []
    assert lacks_to_learn(promoted(0.775), 0.8) == []


@pytest.mark.parametrize(
    ("found", "gold", "word"),
    [
        (promoted(0.8499), None, "wins 85.0 %, 85 % are needed"),
        (promoted(0.769), 0.8, "wins 76.9 %, 85 % are needed, 89.7 % of the way"),
        (promoted(separated={"prompts": 999, "rate": 1.0}), None, "only 999 prompts are separated"),
        (promoted(cycle_seconds=601.0), None, "took 601 s"),
        (promoted(prompts=1999), None, "only 1999 replies a side"),
        (promoted(losses={"on_topic": {"mean": 0.0, "upper95": 0.0301}}), None, "replies on topic"),
        (promoted(losses={"well_formed": None}), None, "unknown share lost of replies well formed"),
        (promoted(state="refused", reason="too little signal"), None, "refused: too little signal"),
    ],
)
def test_what_is_lacking_is_said(found: dict[str, Any], gold: float | None, word: str) -> None:
    (lack,) = lacks_to_learn(found, gold)
    assert word in lack


def test_three_cycles_may_not_end_lower_than_one() -> None:
    assert lacks_to_go_on(promoted(0.93, after_one=0.93), None) == []
    assert lacks_to_go_on(promoted(0.79, after_one=0.78), 0.8) == []
    (lower,) = lacks_to_go_on(promoted(0.93, after_one=0.94), None)
    assert "94.0 % after one cycle and 93.0 % after three" in lower
    (low,) = lacks_to_go_on(promoted(0.91, after_one=0.9), None)
    assert "92 % are needed" in low
    assert lacks_to_go_on({"state": "refused", "reason": "no", "after_one": 0.5}, None)


def test_adversaries_may_be_refused_but_not_served() -> None:
    without = {"state": "promoted", "reason": "v1 passed"}
    assert lacks_to_withstand({"state": "refused", "reason": "no", "without": without}) == []
    assert lacks_to_withstand(promoted(without=without)) == []
    (low,) = lacks_to_withstand(promoted(without=without, wins={"rate": 0.59}))
    assert "59.0 % wins, 60 % are needed" in low
    (refused,) = lacks_to_withstand(promoted(without={"state": "refused", "reason": "too few"}))
    assert "without the adversaries it was refused: too few" in refused
    assert lacks_to_withstand({"state": "failed", "reason": "disk", "without": without}) == ["failed: disk"]
