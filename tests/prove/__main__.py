"""Runs the proofs that have no line for today's code yet."""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from tests.prove import (
    demo_model,
    fresh,
    gold,
    kills,
    learns,
    lines,
    page,
    real_input,
    refuses,
    swap,
    together,
    votes,
)
from tests.prove.case import Case

PROOFS = {
    "fresh": fresh,
    "gold": gold,
    "learns": learns,
    "refuses": refuses,
    "together": together,
    "demo_model": demo_model,
    "swap": swap,
    "votes": votes,
    "kills": kills,
    "real_input": real_input,
}


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
        "commit": lines.commit(),
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
    code = lines.fingerprint()
    held = True
    for name in options.names or PROOFS:
        path = lines.FOLDER / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        done = set() if options.again else lines.proven(lines.read(name), code)
        for case in PROOFS[name].cases():
            if case.name in done or (options.case and case.name != options.case):
                continue
            print(f"{name}: {case.name} …", flush=True)
            line = run(name, case, code)
            print(f"{name}: {case.name} {json.dumps(line['result'])} ({line['seconds']} s)", flush=True)
            with path.open("a") as out:
                out.write(json.dumps(line) + "\n")
            page.write()
            held &= bool(line["result"]["holds"])  # type: ignore[index]
    page.write()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
