"""It refuses: the same crowd voting by coin teaches nothing, and the verdict says why."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.prove.case import Case
from tests.prove.learns import CROWD, outcome
from tests.running import RunningHone


def refuse(folder: Path, *, seed: int) -> dict[str, Any]:
    with RunningHone(folder) as hone:
        hone.simulate(*CROWD, "--taste", "friendly-brief", "--noise", "inf", "--seed", str(seed))
        hone.cli("learn", "--once")
        found = outcome(hone.newest_cycle())
        champion = next(s for s in hone.get("/v1/segments")["data"] if s["name"] == "default")["champion"]
        return {"holds": found["state"] == "refused" and champion == 0 and bool(found["reasons"]), **found}


def cases() -> list[Case]:
    return [Case(f"coin-{seed}", seed, partial(refuse, seed=seed)) for seed in range(5)]
