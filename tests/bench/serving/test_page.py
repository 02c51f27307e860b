"""The page is made from the lines, and says so when there are none."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base import EngineStatus
from server.engine.echo import EchoEngine
from tests.bench.serving import overhead, page, record, soak, swap
from tests.bench.serving.clients import Stream
from tests.bench.serving.contestants import OverHttp
from tests.bench.serving.processes import Watch
from tests.server.live import LiveServer
from tests.server.test_app import echo

ORIGIN = {"code": "a", "commit": "b", "machine": "2 cores", "at": "2026-01-02T00:00:00+00:00"}


def test_the_page_in_the_docs_is_made_from_the_lines() -> None:
    assert (record.FOLDER.parent / "benchmarks.md").read_text(encoding="utf-8") == page.text()


def test_without_lines_it_says_that_nothing_was_measured(tmp_path: Path) -> None:
    assert page.text(tmp_path).count(page.NOTHING) == 4


def test_an_overhead_row_is_a_median_and_a_proxy_has_no_votes() -> None:
    def line(who: str, repeat: int, p50: float, **more: Any) -> dict[str, Any]:
        names = ("added_p99_ms", "failed", "cpu_ms_per_request", "closed_per_second", "peak_mib")
        result = dict.fromkeys(names, 1) | {"added_p50_ms": p50} | more
        return {**ORIGIN, "contestant": who, "rate": 200.0, "repeat": repeat, "result": result}

    lines = [line("hone", i, p50, votes_per_second=900.0) for i, p50 in enumerate((3.0, 1.0, 2.0))]
    lines += [line("litellm", 0, 9.0)]
    lines += [{**lines[0], "contestant": "absent", "result": {"cannot": "not prepared"}}]
    rows = page.overhead(lines)[4:]
    assert "cannot: not prepared" in rows[0]
    assert rows[1].startswith("| hone | 200 | 2.00 | 1.00 |")
    assert "| 900 |" in rows[1]
    assert "| – |" in rows[2]


def test_swap_figures_of_moments_written_by_hand() -> None:
    seen = swap.Seen(steady_from=0.0, steady_until=10.0)
    seen.streams = [
        Stream(0.0, [1.0, 2.0, 3.0], 3.0, finish="length", weights="x"),
        Stream(20.0, [21.0, 24.0], 24.0, finish="length", weights="y"),
        Stream(40.0, error="503 away"),
    ]
    seen.moves = [
        swap.Move("promote", 1, called=22.0, answered=22.5, spoke=23.5),
        swap.Move("rollback", 0, called=30.0, answered=30.1, spoke=30.2),
    ]
    found = swap.figures(seen)
    assert (found["streams_completed"], found["failed_streams"], found["versions_seen"]) == (2, 1, 2)
    assert (found["steady_gap_p99_ms"], found["moving_gap_p99_ms"]) == (1000.0, 3000.0)
    assert (found["disk_to_first_token_p50_ms"], found["memory_to_first_token_p50_ms"]) == (1500.0, 200.0)
    line = {**ORIGIN, "model": "S", "dtype": "float32", "streams": 2, "moves": 2}
    sizes = {"rss_steady_mib": 5, "rss_after_mib": 6}
    assert (
        "| S | float32 | 2 | 2 | 2 | 1 | 1000 | 3000 |" in page.swap([{**line, "result": found | sizes}])[4]
    )


def test_memory_grows_from_when_every_version_had_come() -> None:
    seen = swap.Seen(rss_steady=100.0, rss_early=200.0)
    found = swap.memory(seen, before=90.0, after=210.0)
    assert (found["rss_steady_mib"], found["rss_after_mib"], found["rss_growth"]) == (100, 210, 0.05)


def test_a_soak_says_what_is_not_right() -> None:
    good = {
        "errors": 0,
        "tracebacks": 0,
        "still_open": {},
        "still_leased": [],
        "files": [20, 20],
        "threads": [9, 8],
        "rss_growth": 0.01,
    }
    assert soak.lacks(good) == []
    for change, word in [
        ({"errors": 1}, "errors"),
        ({"tracebacks": 1}, "tracebacks"),
        ({"still_open": {"running": 1}}, "put away"),
        ({"still_leased": ["default@2"]}, "default@2"),
        ({"files": [20, 21]}, "open files"),
        ({"threads": [8, 9]}, "threads: 8 before, 9 after"),
        ({"rss_growth": 0.06}, "memory grew"),
    ]:
        (lacking,) = soak.lacks(good | change)
        assert word in lacking


def test_a_slot_that_the_decoder_keeps_is_not_put_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places were given back, and one row was decoded for nobody: `/readyz` knew nothing of it."""
    monkeypatch.setattr(soak, "SETTLING", 0.0)

    class Leaking(EchoEngine):
        async def status(self) -> EngineStatus:
            return replace(await super().status(), rows=1, held_bytes=2**20)

    with LiveServer(tmp_path, served=echo()._replace(engine=Leaking())) as server:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        asked = OverHttp(server.url, Watch(os.getpid()), "", "", ending=None)  # type: ignore[arg-type]
        holding, left = soak.at_rest(asked)
        monkeypatch.undo()
    assert left == {"rows": 1}
    assert holding.held_mib == 1.0
    assert holding.threads > 1


def test_refusals_of_a_flood_are_no_errors() -> None:
    tally = soak.Tally()
    tally.add("flood", Stream(0.0, status=429, error="429 busy"))
    tally.add("leaver", Stream(0.0, status=200, left=True))
    tally.add("stream", Stream(0.0, status=500, error="500 oh"))
    assert (tally.refused, tally.done["left"], tally.error_count) == (1, 1, 1)


def test_answers_that_failed_do_not_flatter_the_others() -> None:
    answers = [overhead.Answer(0.001 * i, 200) for i in range(1, 10)] + [overhead.Answer(0.0, 0)]
    found = overhead.at_fixed_rate(answers, cpu_seconds=0.1)
    assert (found["requests"], found["failed"], found["cpu_ms_per_request"]) == (10, 1, 10.0)
    assert found["added_p50_ms"] == 5.0
