"""Lines of measurement: one JSON object a run, kept in `docs/bench`, and which of them need not be measured again.

Apart from the proofs' lines: those say whether a claim holds, these say how much, and nothing of them can fail.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.prove import lines
from tests.running import ROOT

FOLDER = ROOT / "docs" / "bench"
METHOD = 2
"""Raised when the way of measuring changes: older lines then no longer count, whatever code they are about."""
Line = dict[str, Any]
Case = Mapping[str, Any]


def fingerprint() -> str:
    """Of the code that serves, and of the way of measuring. What only the learner does costs no new measurements."""
    return f"{lines.fingerprint('server')}.{METHOD}"


def read(bench: str, folder: Path = FOLDER) -> list[Line]:
    """Every line of a benchmark in the order of running; none when it was never run."""
    return lines.read(bench, folder)


def same(line: Line, case: Case) -> bool:
    return all(line.get(name) == value for name, value in case.items())


def is_measured(line: Line) -> bool:
    """Whether it holds figures: what broke off or could not run is tried again."""
    return not {"error", "cannot"} & line["result"].keys()


def is_done(kept: Iterable[Line], case: Case, *, code: str) -> bool:
    return any(line["code"] == code and is_measured(line) and same(line, case) for line in kept)


def keep(
    bench: str, case: Case, result: dict[str, Any], *, code: str, folder: Path = FOLDER, **more: Any
) -> Line:
    """Append a line. A refusal that says what the newest line of the case says is not written twice."""
    line = {
        "bench": bench,
        **case,
        "code": code,
        "commit": lines.commit(),
        "command": command(),
        "threads": 1,
        "machine": machine(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
        "result": result,
    }
    older = [one for one in read(bench, folder) if one["code"] == code and same(one, case)]
    if not ("cannot" in result and older and older[-1]["result"] == result):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{bench}.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
    return line


def command() -> str:
    """What was typed, as it can be typed again."""
    return " ".join(["python -m tests.bench.serving", *sys.argv[1:]]).replace(str(ROOT), ".")


def machine() -> str:
    """Enough to know whether two lines are of like machines."""
    model, flags = "", set()
    for row in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = row.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() == "flags":
            flags = set(value.split())
    extras = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return ", ".join(
        [
            f"{os.cpu_count()} cores",
            model or platform.machine(),
            *extras,
            f"Python {platform.python_version()}",
        ]
    )
