"""Latencies as clients see them, and what is bearable."""

from typing import Any

from tests.prove.together import Latencies, lacks, milliseconds, ratios, text_of


def test_only_text_counts_as_a_token() -> None:
    assert text_of('data: {"choices":[{"delta":{"role":"assistant","content":""}}]}') == ""
    assert text_of('data: {"choices":[{"delta":{"content":"Hi"}}]}') == "Hi"
    assert text_of('data: {"choices":[],"usage":{}}') == ""
    assert text_of("data: [DONE]") == text_of(": waiting") == text_of("") == ""


def test_quantiles_of_what_was_seen() -> None:
    seen = [i / 1000 for i in range(1, 101)]
    assert milliseconds(seen, 0.5) == 51.0
    assert milliseconds(seen, 0.95) == 96.0
    assert milliseconds([0.002], 0.95) == 2.0


def beside(idle: float, busy: float, **more: Any) -> dict[str, Any]:
    found = ratios(Latencies(first=[idle] * 9, gaps=[idle] * 9), Latencies(first=[busy] * 9, gaps=[busy] * 9))
    return {**found, "step_seconds": {"ppo": 3.0}, "reason": "", **more}


def test_twice_as_slow_is_bearable_and_more_is_not() -> None:
    assert lacks(beside(0.01, 0.02)) == []
    assert len(lacks(beside(0.01, 0.025))) == 1
    assert len(lacks(beside(0.01, 0.04))) == 2


def test_a_time_out_or_a_cycle_without_training_is_no_living_together() -> None:
    assert lacks(beside(0.01, 0.01, timeouts=1)) == ["1 time-outs, 0 failed requests"]
    (lack,) = lacks(beside(0.01, 0.01, step_seconds={"ppo": 0.0}, reason="no signal"))
    assert lack == "the cycle did not train: no signal"
