"""The demo model: its card's command makes the same bytes again, and its card's figures are what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from learner.simulation.card import CARD, compare, read_figures
from learner.simulation.measure import measure
from server.settings import DEMO_MODEL
from tests.prove.case import Case
from tests.running import ROOT

AGAIN = ROOT / "build" / "prove" / "demo_model"
"""Kept beyond the run: a training that was cut off goes on from its checkpoint beside it."""


def stated(model: Path) -> dict[str, Any]:
    """What a card says for programs."""
    text = (model / CARD).read_text(encoding="utf-8")
    said: dict[str, Any] = json.loads(text.split("```json\n")[1].split("```")[0])
    return said


def different(one: Path, other: Path) -> list[str]:
    """Files that are not the same in both folders, but for the card, which tells time and memory."""
    names = {path.name for folder in (one, other) for path in folder.iterdir() if path.is_file()} - {CARD}
    return sorted(name for name in names if not same_bytes(one / name, other / name))


def same_bytes(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def make_again(_: Path) -> dict[str, Any]:
    card = stated(DEMO_MODEL)
    options = ["--seed", str(card["seed"]), "--threads", str(card["threads"]), "--out", str(AGAIN)]
    # The card's command says how many threads; this shell's wish for the other proofs does not count.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    subprocess.run(
        [sys.executable, "-m", "learner", "pretrain", *options], cwd=ROOT, env=environment, check=True
    )
    made = stated(AGAIN)
    changed = different(DEMO_MODEL, AGAIN)
    return {
        "holds": not changed and made["figures"] == card["figures"] and made["seconds"] <= 90 * 60,
        "different_files": changed,
        "same_figures": made["figures"] == card["figures"],
        "training_minutes": round(made["seconds"] / 60, 1),
        "peak_megabytes": made["peak_megabytes"],
    }


def measure_again(_: Path) -> dict[str, Any]:
    card, found = read_figures(DEMO_MODEL), measure(DEMO_MODEL, seed=stated(DEMO_MODEL)["seed"])
    shown = ("replies", "on_topic", "well_formed", "cramers_v_max")
    return {
        "holds": compare(card, found)[1],
        "same_as_the_card": found == card,
        **{name: found[name] for name in shown},
        "recalled_right": {turns: one["right"] for turns, one in found["recall"].items()},
    }


def cases() -> list[Case]:
    return [Case("made-again", 0, make_again), Case("measured-again", 0, measure_again)]
