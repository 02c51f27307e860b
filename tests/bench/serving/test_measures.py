"""Figures of streams whose moments are written by hand."""

import pytest

from tests.bench.serving.clients import Stream
from tests.bench.serving.measures import Cost, complaints, figures, gaps, quantile


def stream(asked: float, *arrivals: float, **more: object) -> Stream:
    return Stream(asked, list(arrivals), ended=arrivals[-1] if arrivals else asked, finish="length", **more)  # type: ignore[arg-type]


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(range(100), 0.95) == 95
    assert quantile([1.0, 2.0], 1.0) == 2.0
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)


def test_gaps_never_span_two_streams() -> None:
    assert gaps([stream(0, 1, 3), stream(0, 10, 11, 15)]) == [2, 1, 4]


def test_figures_by_hand() -> None:
    """Two streams, 3 tokens each, from 10 s to 16 s: 1 token a second, 3 a CPU second."""
    streams = [stream(10, 11, 12, 13), stream(12, 14, 15, 16)]
    found = figures(streams, Cost(cpu_seconds=2.0, peak_mib=100.4))
    assert found["tokens"] == found["pieces"] == 6
    assert found["tokens_per_second"] == 1.0
    assert found["tokens_per_cpu_second"] == 3.0
    assert (found["ttft_p50_ms"], found["ttft_p95_ms"]) == (2000.0, 2000.0)
    assert (found["gap_p50_ms"], found["gap_p99_ms"]) == (1000.0, 1000.0)
    assert (found["peak_mib"], found["counted_by"]) == (100, "pieces of text")


def test_whoever_did_other_work_is_no_measurement() -> None:
    good = stream(0, 1, 2, prompt_tokens=64, counted=2)
    assert complaints([good], prompt_tokens=64, new_tokens=2) == []
    assert complaints([stream(0, 1, 2)], prompt_tokens=64, new_tokens=2) == []
    short = stream(0, 1, prompt_tokens=64, counted=1)
    longer = stream(0, 1, 2, prompt_tokens=65, counted=2)
    broken = Stream(0, error="503 away")
    silent = stream(0, counted=2, prompt_tokens=64)
    found = complaints([good, short, longer, broken, silent], prompt_tokens=64, new_tokens=2)
    assert found[0] == "503 away"
    assert [word in " ".join(found[1:]) for word in ("1 new tokens", "65 tokens", "without any text")] == [
        True
    ] * 3
