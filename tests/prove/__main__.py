"""Runs the proofs that have no line for today's code yet."""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from tests.prove import fresh, kills, learns, real_input, refuses, swap, votes
from tests.prove.case import Case
from tests.running import ROOT

PROOFS = {
    "fresh": fresh,
    "learns": learns,
    "refuses": refuses,
    "swap": swap,
    "votes": votes,
    "kills": kills,
    "real_input": real_input,
}


def fingerprint() -> str:
    """Of the code that serves and learns: a proof stands until that changes."""
    files = subprocess.run(
        ["git", "ls-files", "-s", "server", "learner"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return hashlib.sha256(files.encode()).hexdigest()[:12]


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "server", "learner")
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def proven(path: Path, code: str) -> set[str]:
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["case"] for line in lines if line["code"] == code and "error" not in line["result"]}


def run(name: str, case: Case, code: str) -> dict[str, object]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hone-prove-") as folder:
        try:
            result = case.run(Path(folder))
        except Exception as error:  # one broken case must not hide the others; the line says what broke
            traceback.print_exc()
            result = {"holds": False, "error": f"{type(error).__name__}: {error}"[:2000]}
    return {
        "proof": name,
        "case": case.name,
        "seed": case.seed,
        "commit": commit(),
        "code": code,
        "command": f"python -m tests.prove {name} --case {case.name}",
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "result": result,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*PROOFS, []], help="which proofs; all when none is named"
    )
    parser.add_argument("--case", help="only the case of this name")
    parser.add_argument("--again", action="store_true", help="also those that have a line already")
    options = parser.parse_args()
    code = fingerprint()
    held = True
    for name in options.names or PROOFS:
        path = ROOT / "docs" / "proof" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = set() if options.again else proven(path, code)
        for case in PROOFS[name].cases():
            if case.name in done or (options.case and case.name != options.case):
                continue
            print(f"{name}: {case.name} …", flush=True)
            line = run(name, case, code)
            print(f"{name}: {case.name} {json.dumps(line['result'])} ({line['seconds']} s)", flush=True)
            with path.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            held &= bool(line["result"]["holds"])  # type: ignore[index]
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
