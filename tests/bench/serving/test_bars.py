"""Lines written by hand against what was asked for: just enough, just too little, and nothing."""

from pathlib import Path
from typing import Any

import pytest

from tests.bench.serving import bars, page, record
from tests.bench.serving.bars import Bar

ORIGIN = {"code": "a", "commit": "b", "machine": "2 cores", "at": "2026-01-02T00:00:00+00:00", "bench": "x"}
MEASURES = ("tokens_per_cpu_second", "ttft_p95_ms", "peak_mib")


def line(who: str, rate: float, streams: int, **more: Any) -> dict[str, Any]:
    """One run of throughput in which all figures are the same number."""
    case = {"model": "M", "dtype": "bfloat16", "contestant": who, "concurrency": streams, "repeat": 0}
    rest = {"adapters": 0, "prompt": 64, "tokens": 64, "rounds": 2}
    return ORIGIN | case | rest | {"result": dict.fromkeys(MEASURES, rate)} | more


def found(judged: list[Bar], *words: str) -> Bar:
    (bar,) = [bar for bar in judged if all(word in bar.what for word in words)]
    return bar


@pytest.mark.parametrize(
    ("values", "holds", "measured"),
    [
        ([2.0, 3.0], True, "2.00× / 3.00×"),
        ([2.0, 1.99], False, "2.00× / 1.99×"),
        ([2.0, None], None, "2.00× / –"),
        ([1.0, None], False, "1.00× / –"),
        ([None, None], None, "not measured"),
        ([], None, "not measured"),
    ],
)
def test_a_bar_holds_only_with_all_of_its_figures(
    values: list[float | None], holds: bool | None, measured: str
) -> None:
    bar = Bar("x", 2.0, values)
    assert (bar.asked, bar.holds, bar.measured) == ("≥ 2×", holds, measured)
    turned = Bar("x", 2.0, [None if value is None else 4 - value for value in values], at_most=True)
    assert (turned.asked, turned.holds) == ("≤ 2×", holds)


def test_throughput_is_set_beside_each_peer_of_the_same_kind() -> None:
    lines = [line("hone", rate, 4, repeat=i) for i, rate in enumerate((88.0, 90.0, 10.0))]
    lines += [line("transformers", 40.0, 4), line("vllm", 80.0, 4), line("hone", 50.0, 4, adapters=4)]
    lines += [line("hone", 44.0, 4, adapters=1), line("vllm", 22.0, 4, adapters=1)]
    lines += [line("hone", 1.0, 4, dtype="float32"), line("vllm", 1000.0, 4, prompt=256)]
    judged = bars.throughput(lines)
    assert found(judged, "transformers', 4 / 16").values == [2.2, None]
    assert found(judged, "transformers'", "mixed").values == [1.25, None]
    assert found(judged, "transformers'", "mixed").holds is False
    assert found(judged, "TTFT", "4 streams").holds is False
    assert found(judged, "M bfloat16", "vLLM's", "base").values == [None, 1.1, None, None]
    assert found(judged, "M bfloat16", "vLLM's", "adapter").values == [None, 2.0, None, None]
    assert found(judged, "M float32", "vLLM's", "base").values == [None] * 4


def test_long_prompts_have_a_bar_of_their_own() -> None:
    lines = [line(who, rate, 32, prompt=256) for who, rate in (("hone", 36.0), ("transformers", 10.0))]
    assert found(bars.throughput(lines), "256").values == [3.6]
    assert found(bars.throughput(lines), "256").holds


def test_adapters_cost_what_is_missing_to_the_bare_base() -> None:
    lines = [line("hone", 100.0, 16), line("hone", 86.0, 16, adapters=1), line("hone", 69.0, 16, adapters=4)]
    judged = bars.throughput(lines)
    assert found(judged, "cost of one adapter, 16").values == pytest.approx([14.0])
    assert found(judged, "cost of one adapter, 16").holds
    assert found(judged, "cost of four").measured == "31.0 %"
    assert found(judged, "cost of four").holds is False
    assert found(judged, "cost of one adapter, 1 stream").holds is None


SWAPPED = {
    "disk_to_first_token_p50_ms": 99.0,
    "steady_gap_p99_ms": 10.0,
    "moving_gap_p99_ms": 11.0,
    "failed_streams": 0,
    "rescore_max": 9e-4,
    "rescore_mean": 1e-5,
    "rss_growth": 0.04,
}


def swapped(**more: Any) -> dict[str, Any]:
    result = SWAPPED | {name: more.pop(name) for name in list(more) if name in SWAPPED}
    case = {"model": "S", "dtype": "float32", "streams": 32, "moves": 100}
    return ORIGIN | case | {"result": result} | more


def test_a_swap_is_judged_in_both_types_by_the_newest_whole_run() -> None:
    both = [swapped(), swapped(dtype="bfloat16", rescore_mean=0.019, rescore_max=0.4)]
    judged = bars.swap(both)
    assert [bar.holds for bar in judged] == [True] * 5 + [None] * 5
    for change, word in (
        ({"disk_to_first_token_p50_ms": 101.0}, "first token"),
        ({"moving_gap_p99_ms": 12.0}, "between tokens"),
        ({"failed_streams": 1}, "failed"),
        ({"rescore_max": 2e-3}, "re-scored"),
        ({"rss_growth": 0.06}, "memory"),
    ):
        judged = bars.swap([*both, swapped(**change)])
        assert [bar.what for bar in judged if bar.holds is False] == [found(judged, "S float32", word).what]
    assert (
        found(bars.swap([*both, swapped(dtype="bfloat16", rescore_mean=0.03)]), "S", "re-sc").holds is False
    )


def test_a_shorter_swap_does_not_count() -> None:
    for small in (swapped(moves=20), swapped(streams=4)):
        assert {bar.holds for bar in bars.swap([small])} == {None}


def test_overhead_is_of_the_rate_that_was_asked_for() -> None:
    def run(who: str, rate: float, **result: Any) -> dict[str, Any]:
        return ORIGIN | {"contestant": who, "rate": rate, "result": result}

    ours = {"added_p50_ms": 1.5, "added_p99_ms": 11.0, "closed_per_second": 700.0, "votes_per_second": 999.0}
    lines = [run("hone", 200.0, **ours), run("litellm", 200.0, closed_per_second=170.0)]
    lines += [run("hone", 50.0, **dict.fromkeys(ours, 0.1))]
    judged = bars.overhead(lines)
    assert [bar.holds for bar in judged] == [True, False, None, None, True, False]
    assert found(judged, "LiteLLM").measured == "4.12×"
    assert {bar.holds for bar in bars.overhead(lines[1:2])} == {None}


def test_a_soak_counts_from_half_an_hour() -> None:
    good = {"errors": 0, "lacks": [], "rss_growth": 0.01}
    assert {bar.holds for bar in bars.soak([ORIGIN | {"minutes": 30.0, "result": good}])} == {True}
    assert {bar.holds for bar in bars.soak([ORIGIN | {"minutes": 5.0, "result": good}])} == {None}
    bad = good | {"lacks": ["not put away: {'rows': 1}"]}
    judged = bars.soak([ORIGIN | {"minutes": 30.0, "result": bad}])
    assert found(judged, "must be").measured == "1"
    assert found(judged, "must be").holds is False


def test_a_run_that_broke_off_is_no_figure() -> None:
    lines = [line("hone", 90.0, 1), line("transformers", 0.0, 1, result={"error": "503"})]
    assert found(bars.throughput(lines), "transformers'", "1 stream").holds is None


def test_the_page_shows_every_bar(tmp_path: Path) -> None:
    for who, rate in (("hone", 23.0), ("transformers", 10.0), ("llamacpp", 40.0)):
        one = line(who, rate, 1)
        case = {name: value for name, value in one.items() if name not in {"result", *ORIGIN}}
        record.keep("throughput", case, one["result"] | full(rate), code="a", folder=tmp_path)
    text = page.text(tmp_path)
    assert "| M bfloat16, tokens/CPU-s ÷ transformers', 1 stream | ≥ 1.5× | 2.30× | yes |" in text
    assert "| M bfloat16, tokens/CPU-s ÷ llama.cpp's, 1 stream | ≥ 0.7× | 0.57× | **no** |" in text
    assert "| M bfloat16, tokens/CPU-s ÷ llama.cpp's, 16 streams | ≥ 1.3× | not measured | – |" in text


def full(rate: float) -> dict[str, float]:
    """What a row of the table of throughput reads beside the bars' figures."""
    from tests.bench.serving import table

    return {name: rate for names in table.MEASURES.values() for name in names}
