"""Lines of proof: where they lie, which code they are about, and which of them counts."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.running import ROOT

FOLDER = ROOT / "docs" / "proof"
Line = dict[str, Any]


def fingerprint(*rooms: str) -> str:
    """Of the code that serves and learns: a proof stands until that changes. Or of some rooms alone."""
    rooms = rooms or ("server", "learner")
    files = subprocess.run(
        ["git", "ls-files", "-s", *rooms], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return hashlib.sha256(files.encode()).hexdigest()[:12]


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "server", "learner")
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def read(proof: str, folder: Path = FOLDER) -> list[Line]:
    """Every line of a proof in the order of running; none when it was never run."""
    path = folder / f"{proof}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(lines: Iterable[Line], *, code: str | None = None) -> dict[str, Line]:
    """The last line of each case, of this code if one is given, in the order in which cases first came."""
    return {line["case"]: line for line in lines if code in (None, line["code"])}


def proven(lines: Iterable[Line], code: str) -> set[str]:
    """Cases that have come to an end on this code, whatever the outcome."""
    return {line["case"] for line in lines if line["code"] == code and "error" not in line["result"]}
