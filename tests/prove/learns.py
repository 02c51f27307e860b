"""It learns: 24 users with one taste, 300 picks and 300 thumbs, one cycle, promoted by the gate, and better.

For each built-in taste and five seeds; for ten tastes that nobody looked at while anything was chosen; and for three
cycles in a row, each on new votes over what the champion then serving says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from learner.simulation.tastes import BUILT_IN
from tests.prove import bars, lines
from tests.prove.case import Case
from tests.prove.draws import Draws
from tests.prove.unseen import PROMPTS, against_base, compare, fairness
from tests.running import RunningHone

TASTES = tuple(BUILT_IN)
SEEDS = range(5)
NEVER_SEEN = tuple(f"random:{seed}" for seed in range(100, 110))
"""Kept for this proof alone: a taste that was looked at while something was tuned shows nothing here."""
CROWD = ("--users", "24", "--picks", "300", "--thumbs", "300")
LATER = 3


def outcome(cycle: dict[str, Any]) -> dict[str, Any]:
    """The part of a cycle's row that a reader of the proof wants."""
    seconds = {step["name"]: round(step["seconds"], 1) for step in cycle.get("steps", [])}
    return {
        "state": cycle["state"],
        "reason": cycle.get("reason"),
        "reasons": (cycle.get("verdict") or {}).get("reasons"),
        "step_seconds": seconds,
        "cycle_seconds": round(sum(seconds.values()), 1),
    }


def gold_of(taste: str, code: str | None = None) -> float | None:
    """What PPO on this taste itself reached on this code, where that was run."""
    line = lines.newest(lines.read("gold"), code=code or lines.fingerprint()).get(taste)
    return None if line is None else line["result"].get("separated", {}).get("rate")


def champion(hone: RunningHone) -> int:
    """By the log, once it is also what answers."""
    deadline = time.monotonic() + 60
    while True:
        named = next(row for row in hone.get("/v1/segments")["data"] if row["name"] == "default")["champion"]
        serving = next(row for row in hone.get("/v1/models")["data"] if row["id"] == "default")["hone"]
        if serving["version"] == named or time.monotonic() > deadline:
            assert serving["version"] == named, f"version {named} is promoted and does not serve"
            return int(named)
        time.sleep(0.2)


def one_cycle(hone: RunningHone, taste: str, seed: int, crowd: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Votes of a new crowd on what serves now, and a cycle on them; its outcome and the champion afterwards."""
    hone.simulate(*crowd, "--taste", taste, "--seed", str(seed))
    hone.cli("learn", "--once")
    return outcome(hone.newest_cycle()), champion(hone)


def learn(
    folder: Path,
    *,
    taste: str,
    seed: int,
    crowd: Sequence[str] = CROWD,
    prompts: int = PROMPTS,
    **environment: str,
) -> dict[str, Any]:
    draws = Draws()
    with RunningHone(folder, **environment) as hone:
        found, version = one_cycle(hone, taste, seed, crowd)
        if version:
            found |= against_base(compare(hone, taste, [0, version], draws, prompts=prompts), version)
    gold = gold_of(taste)
    return {
        "holds": not bars.lacks_to_learn(found, gold),
        **found,
        **on_the_way(found, gold),
        "fairness": fairness(taste, draws),
    }


def learn_on(
    folder: Path,
    *,
    taste: str,
    seed: int,
    cycles: int = LATER,
    crowd: Sequence[str] = CROWD,
    prompts: int = PROMPTS,
    **environment: str,
) -> dict[str, Any]:
    """Several cycles in a row, each after votes of another crowd."""
    ends, champions = [], []
    with RunningHone(folder, **environment) as hone:
        for number in range(cycles):
            end, version = one_cycle(hone, taste, seed + 1000 * number, crowd)
            ends.append(end)
            champions.append(version)
        found: dict[str, Any] = {**ends[-1], "cycles": ends, "champions": champions, "after_one": 0.5}
        if last := champions[-1]:
            versions = list(dict.fromkeys([0, champions[0], last]))
            table = compare(hone, taste, versions, Draws(), prompts=prompts)
            if champions[0]:
                found["after_one"] = against_base(table, champions[0])["separated"].get("rate", 0.5)
            found |= against_base(table, last)
    gold = gold_of(taste)
    return {"holds": not bars.lacks_to_go_on(found, gold), **found, **on_the_way(found, gold)}


def on_the_way(found: dict[str, Any], gold: float | None) -> dict[str, Any]:
    rate = found.get("separated", {}).get("rate")
    return {"gold": gold, "way": None if rate is None else bars.way(rate, gold)}


def case_of(taste: str, seed: int) -> str:
    return f"{taste}-{seed}"


def later_case_of(taste: str) -> str:
    return f"{taste}-three-cycles"


def cases() -> list[Case]:
    return [
        *(
            Case(case_of(taste, seed), seed, partial(learn, taste=taste, seed=seed))
            for seed in SEEDS
            for taste in TASTES
        ),
        *(Case(taste, 0, partial(learn, taste=taste, seed=0)) for taste in NEVER_SEEN),
        *(Case(later_case_of(taste), 0, partial(learn_on, taste=taste, seed=0)) for taste in TASTES),
    ]
