"""It refuses: people who vote by coin teach nothing, and a few who vote against all others do no harm.

With the very settings that pass `learns`: at full size, and in many short cycles before the same gate. One short
cycle on a real taste shows that the short ones could have promoted something.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from learner.simulation.raters import make_raters
from tests.prove import bars
from tests.prove.case import Case
from tests.prove.draws import Draws
from tests.prove.learns import CROWD, champion, outcome
from tests.prove.unseen import PROMPTS, against_base, compare
from tests.running import RunningHone

TASTE = "friendly-brief"
SEEDS, FAST_SEEDS = range(5), range(20)
SHARE = 0.2
USERS = 24
FAST = {"HONE_PROFILE": "fast"}


def coins(
    folder: Path, *, seed: int, taste: str = TASTE, crowd: Sequence[str] = CROWD, **environment: str
) -> dict[str, Any]:
    with RunningHone(folder, **environment) as hone:
        hone.simulate(*crowd, "--taste", taste, "--noise", "inf", "--seed", str(seed))
        hone.cli("learn", "--once")
        found = outcome(hone.newest_cycle())
        served = champion(hone)
    return {"holds": found["state"] == "refused" and served == 0 and bool(found["reasons"]), **found}


def control(
    folder: Path, *, seed: int, taste: str = TASTE, crowd: Sequence[str] = CROWD, **environment: str
) -> dict[str, Any]:
    """The same short cycle with people instead of coins."""
    with RunningHone(folder, **environment) as hone:
        hone.simulate(*crowd, "--taste", taste, "--seed", str(seed))
        hone.cli("learn", "--once")
        found = outcome(hone.newest_cycle())
    return {"holds": found["state"] == "promoted", **found}


def adversaries(
    folder: Path,
    *,
    seed: int,
    taste: str = TASTE,
    crowd: Sequence[str] = CROWD,
    users: int = USERS,
    prompts: int = PROMPTS,
    **environment: str,
) -> dict[str, Any]:
    """A cycle on everybody's votes, and one on a copy of the same record in which the adversaries took theirs back."""
    given, without = folder / "given", folder / "without"
    with RunningHone(given, **environment) as hone:
        share = ("--adversaries", str(SHARE))
        hone.simulate(*crowd, "--taste", taste, *share, "--seed", str(seed))
    shutil.copytree(given, without)
    with RunningHone(given, **environment) as hone:
        hone.cli("learn", "--once")
        found = outcome(hone.newest_cycle())
        if version := champion(hone):
            found |= against_base(compare(hone, taste, [0, version], Draws(), prompts=prompts), version)
    with RunningHone(without, **environment) as hone:
        retracted = take_back(hone, those_against(users, seed))
        hone.cli("learn", "--once")
        found["without"] = {"retracted": retracted, **outcome(hone.newest_cycle())}
    return {"holds": not bars.lacks_to_withstand(found), **found}


def those_against(users: int, seed: int) -> list[str]:
    """Names under which `hone simulate` lets its adversaries vote."""
    raters = make_raters(users, adversaries=SHARE, seed=seed)
    return [f"{rater.user}-{seed}" for rater in raters if rater.sign < 0]


def take_back(hone: RunningHone, users: Sequence[str]) -> int:
    """Retract every vote of these users, as they could themselves; how many there were."""
    count = 0
    with hone.client() as client:
        for user in users:
            page = client.get("/v1/feedback", params={"user": user, "limit": 500}).raise_for_status().json()
            assert page["next_cursor"] is None
            for row in page["data"]:
                client.delete(f"/v1/feedback/{row['id']}").raise_for_status()
                count += 1
    assert count, f"{users} never voted"
    return count


def cases() -> list[Case]:
    return [
        *(Case(f"coin-{seed}", seed, partial(coins, seed=seed)) for seed in SEEDS),
        *(Case(f"fast-coin-{seed}", seed, partial(coins, seed=seed, **FAST)) for seed in FAST_SEEDS),
        Case("fast-people-0", 0, partial(control, seed=0, **FAST)),
        *(Case(f"adversaries-{seed}", seed, partial(adversaries, seed=seed)) for seed in SEEDS),
    ]
