"""It learns: 24 users with one taste, 300 picks and 300 thumbs, one cycle, promoted by the gate, and better."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.prove.case import Case
from tests.running import RunningHone

TASTES = ("friendly-brief", "bullets-thorough", "remembers")
CROWD = ("--users", "24", "--picks", "300", "--thumbs", "300")


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


def learn(folder: Path, *, taste: str, seed: int, prompts: int = 1000) -> dict[str, Any]:
    with RunningHone(folder) as hone:
        hone.simulate(*CROWD, "--taste", taste, "--seed", str(seed))
        hone.cli("learn", "--once")
        cycle = hone.newest_cycle()
        found = outcome(cycle)
        if cycle["state"] != "promoted":
            return {"holds": False, **found}
        table = hone.evaluate(
            "--taste", taste, "--versions", f"0,{cycle['version']}", "--prompts", str(prompts)
        )
        wins = next(iter(table["wins"].values()))
        return {"holds": wins["rate"] >= 0.75, **found, "wins": wins, "versions": table["versions"]}


def cases() -> list[Case]:
    return [
        Case(f"{taste}-{seed}", seed, partial(learn, taste=taste, seed=seed))
        for seed in (0, 1, 2)
        for taste in TASTES
    ]
