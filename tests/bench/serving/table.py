"""Lines of throughput as rows of a table: medians over repeats, ratios to Hone, and why a row has no figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tests.bench.serving import record
from tests.bench.serving.record import Line

DASH = "–"
HOME = "hone"
MEASURES = {
    "tokens/CPU-s": ("tokens_per_cpu_second",),
    "tokens/s": ("tokens_per_second",),
    "TTFT p50 / p95 ms": ("ttft_p50_ms", "ttft_p95_ms"),
    "between tokens p50 / p99 ms": ("gap_p50_ms", "gap_p99_ms"),
    "peak MiB": ("peak_mib",),
}


class Group(NamedTuple):
    """One table: what all of its rows have in common."""

    model: str
    dtype: str
    prompt: int
    tokens: int


class Place(NamedTuple):
    """One row: who, with how many adapters, for how many streams."""

    adapters: int
    concurrency: int
    contestant: str


def newest(lines: Iterable[Line]) -> list[Line]:
    """Lines of the code of the newest line. Of lines of the same case the last counts: it was measured again."""
    every = list(lines)
    code = every[-1]["code"] if every else ""
    by_case: dict[tuple[Any, ...], Line] = {}
    for line in every:
        if line["code"] != code:
            continue
        case = (*group_of(line), *place_of(line), line["repeat"])
        if record.is_measured(line) or case not in by_case or not record.is_measured(by_case[case]):
            by_case[case] = line
    return list(by_case.values())


def group_of(line: Line) -> Group:
    return Group(line["model"], line["dtype"], line["prompt"], line["tokens"])


def place_of(line: Line) -> Place:
    return Place(line["adapters"], line["concurrency"], line["contestant"])


def groups(lines: Sequence[Line]) -> list[Group]:
    return sorted({group_of(line) for line in lines}, key=lambda one: (one.model != "M", one))


def median(lines: Iterable[Line], measure: str) -> float | None:
    """Over the repeats that have figures; nothing when none has."""
    found = [line["result"][measure] for line in lines if record.is_measured(line)]
    return statistics.median(found) if found else None


def number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: object, *, longest: int = 200) -> str:
    flat = " ".join(str(text).split()).replace("|", "\\|")
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def table(lines: Sequence[Line], group: Group) -> list[str]:
    """The group's rows in Markdown: for each number of adapters and streams one for every contestant, Hone first."""
    mine = [line for line in lines if group_of(line) == group]
    places = sorted({place_of(line) for line in mine}, key=lambda one: (*one[:2], one[2] != HOME, one[2]))
    head = ["adapters", "streams", "who", *MEASURES, "Hone ÷ it", "runs"]
    return [row(head), row(["---"] * len(head)), *(_row(mine, place) for place in places)]


def at(lines: Sequence[Line], place: Place) -> list[Line]:
    return [line for line in lines if place_of(line) == place]


def _row(lines: Sequence[Line], place: Place) -> str:
    here = at(lines, place)
    measured = [line for line in here if record.is_measured(line)]
    start = [str(place.adapters), str(place.concurrency), place.contestant]
    if not measured:
        return row([*start, cell(why(here[-1])), *[""] * (len(MEASURES) - 1), ratio(lines, place), "0"])
    cells = [" / ".join(number(median(here, one)) for one in names) for names in MEASURES.values()]
    return row([*start, *cells, ratio(lines, place), str(len(measured))])


def why(line: Line) -> str:
    """Why a line has no figures."""
    result = line["result"]
    return f"cannot: {result['cannot']}" if "cannot" in result else f"failed: {result['error']}"


def ratio(lines: Sequence[Line], place: Place) -> str:
    """Hone's tokens per CPU second over this one's; over its bare base, marked so, when it has no adapters."""
    if place.contestant == HOME:
        return ""
    ours = median(at(lines, place._replace(contestant=HOME)), "tokens_per_cpu_second")
    theirs = median(at(lines, place), "tokens_per_cpu_second")
    mark = ""
    if theirs is None and place.adapters:
        theirs, mark = median(at(lines, place._replace(adapters=0)), "tokens_per_cpu_second"), " (its base)"
    return DASH if not (ours and theirs) else f"{ours / theirs:.2f}×{mark}"
