"""Makes `docs/benchmarks.md` from the lines in `docs/bench`: the same lines, the same bytes.

    python -m tests.bench.serving page

What counts is the code of the newest line of each benchmark: the page says of its own lines what they show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.serving import bars, record, table
from tests.bench.serving.record import Line
from tests.bench.serving.table import DASH, cell, median, number, row

INTRODUCTION = """# Benchmarks of serving

Made from the lines in [`bench`](bench/README.md) by `python -m tests.bench.serving page`; never edited by hand. There
it also says what each figure means and how it is taken."""
NOTHING = "Not measured on any code yet."
COMMANDS = {
    name: f"python -m tests.bench.serving {name}" for name in ("throughput", "swap", "overhead", "soak")
}


def text(folder: Path = record.FOLDER) -> str:
    """The whole page."""
    sections = {
        "Throughput": ("throughput", throughput),
        "Swap under load": ("swap", swap),
        "What the API adds": ("overhead", overhead),
        "Soak": ("soak", soak),
    }
    parts = [INTRODUCTION, "\n".join(["## What was asked for", "", *asked_for(folder)])]
    for title, (bench, write) in sections.items():
        lines = record.read(bench, folder)
        rows = write(lines) if lines else [NOTHING]
        parts.append("\n".join([f"## {title}", "", f"`{COMMANDS[bench]}`", "", *rows]))
    return "\n\n".join(parts) + "\n"


def write(folder: Path = record.FOLDER) -> None:
    """Beside the folder of the project's own lines, or into any other."""
    target = folder.parent if folder == record.FOLDER else folder
    target.mkdir(parents=True, exist_ok=True)
    (target / "benchmarks.md").write_text(text(folder), encoding="utf-8")


def origin(lines: Sequence[Line]) -> str:
    """Which code, machine and versions the figures are of."""
    versions = ", ".join(sorted({line["version"] for line in lines if line.get("version")} - {"hone"}))
    days = sorted(line["at"][:10] for line in lines)
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    machines = "; ".join(sorted({line["machine"] for line in lines}))
    beside = f", beside {versions}" if versions else ""
    return (
        f"Code `{lines[-1]['code']}` (commit `{lines[-1]['commit']}`){beside}; {when}; {machines}; 1 thread."
    )


def of_newest_code(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["code"] == lines[-1]["code"]]


def asked_for(folder: Path) -> list[str]:
    """Every bar with what was measured of it."""
    head = ["what", "asked", "measured", "holds"]
    rows = [row(head), row(["---"] * len(head))]
    for bench, judge in bars.JUDGES.items():
        lines = record.read(bench, folder)
        mine = table.newest(lines) if bench == "throughput" else of_newest_code(lines)
        rows += [row([bar.what, bar.asked, bar.measured, bar.verdict]) for bar in judge(mine)]
    return rows


def throughput(lines: Sequence[Line]) -> list[str]:
    found = table.newest(lines)
    rows = [origin(found)]
    for group in table.groups(found):
        title = f"### {group.model}, {group.dtype}, prompts of {group.prompt} tokens"
        each = f"{group.tokens} new tokens for each reply; medians over the runs."
        rows += ["", title, "", each, "", *table.table(found, group)]
    return rows


def last_of_each(lines: Iterable[Line], names: Sequence[str]) -> list[Line]:
    """The newest line of each case."""
    return [*{tuple(line[name] for name in names): line for line in lines}.values()]


def figures(lines: Sequence[Line], columns: dict[str, str], results: dict[str, str]) -> list[str]:
    """A row for each line: some of its own fields, then some of its result's."""
    head = [*columns, *results]
    rows = [row(head), row(["---"] * len(head))]
    for line in lines:
        own = [str(line[name]) for name in columns.values()]
        if not record.is_measured(line):
            rows.append(row([*own, cell(table.why(line)), *[""] * (len(results) - 1)]))
            continue
        rows.append(row([*own, *(shown(line["result"].get(name)) for name in results.values())]))
    return rows


def shown(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return " → ".join(map(str, value)) if isinstance(value, list) else str(value)


def swap(lines: Sequence[Line]) -> list[str]:
    mine = last_of_each(of_newest_code(lines), ["model", "dtype", "streams", "moves"])
    columns = {"model": "model", "dtype": "dtype", "streams": "streams", "moves": "moves"}
    results = {
        "replies": "streams_completed",
        "failed": "failed_streams",
        "between tokens p99 ms, steady": "steady_gap_p99_ms",
        "p99 ms, around moves": "moving_gap_p99_ms",
        "longest ms, around moves": "longest_gap_ms",
        "first token ms, steady": "first_token_steady_p50_ms",
        "from disk to first token ms": "disk_to_first_token_p50_ms",
        "from memory to first token ms": "memory_to_first_token_p50_ms",
        "replies scored again": "rescored_replies",
        "nats off, mean": "rescore_mean",
        "at most": "rescore_max",
        "another version, mean": "other_version_mean",
        "MiB before moves": "rss_steady_mib",
        "once all versions came": "rss_early_mib",
        "MiB after": "rss_after_mib",
    }
    return [origin(mine), "", *figures(mine, columns, results)]


def overhead(lines: Sequence[Line]) -> list[str]:
    """Medians over repeats, who has no votes a dash."""
    mine = of_newest_code(lines)
    results = {
        "added p50 ms": "added_p50_ms",
        "added p99 ms": "added_p99_ms",
        "failed": "failed",
        "CPU ms / request": "cpu_ms_per_request",
        "requests/s, closed loop": "closed_per_second",
        "votes/s": "votes_per_second",
        "sync ms": "sync_ms",
        "peak MiB": "peak_mib",
    }
    head = ["who", "requests/s, fixed", *results, "runs"]
    rows = [origin(mine), "", row(head), row(["---"] * len(head))]
    for name, rate in sorted({(line["contestant"], line["rate"]) for line in mine}):
        here = [line for line in mine if (line["contestant"], line["rate"]) == (name, rate)]
        done = last_of_each([line for line in here if record.is_measured(line)], ["repeat"])
        if not done:
            rows.append(row([name, f"{rate:g}", cell(table.why(here[-1])), *[""] * (len(results) - 1), "0"]))
            continue
        cells = [
            number(median(done, one)) if all(one in line["result"] for line in done) else DASH
            for one in results.values()
        ]
        rows.append(row([name, f"{rate:g}", *cells, str(len(done))]))
    return rows


def soak(lines: Sequence[Line]) -> list[str]:
    mine = last_of_each(of_newest_code(lines), ["model", "dtype", "minutes", "seed"])
    columns = {"model": "model", "dtype": "dtype", "minutes": "minutes"}
    results = {
        "replies": "replies",
        "429": "refused_429",
        "errors": "errors",
        "open files": "files",
        "threads": "threads",
        "MiB": "rss_mib",
        "of keys and values": "held_mib",
        "what is not right": "lacks",
    }
    return [origin(mine), "", *figures(mine, columns, results)]
