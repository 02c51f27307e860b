"""The prompts on which versions are compared, the same for every proof, and what a comparison says of one version.

Two thousand conversations that no simulated user ever opens with, more while the taste separates fewer than a
thousand of them, four thousand at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from learner.simulation import figures
from learner.simulation.evaluation import choose_prompts, evaluate
from learner.simulation.figures import FAIR_DRAWS, separates
from learner.simulation.rest import Hone
from learner.simulation.scripts import Script, WorldSource
from learner.simulation.tastes import load_taste
from learner.simulation.world import World
from tests.prove.draws import Drawn, Draws
from tests.running import RunningHone

PROMPTS = 2000
DRAWS = 6
"""Replies of the base to each prompt that say whether the taste separates it: 15 pairs."""
FAIR_PROMPTS = 500
"""Prompts on which a taste's fairness is read, each with its best of 16 and one more."""
SEED = 0


def pool(count: int) -> list[Script]:
    return choose_prompts(WorldSource(World(), seed=SEED, held_out=True), count)


def unseen(taste: str, draws: Draws, *, prompts: int = PROMPTS) -> tuple[list[Script], list[list[Drawn]]]:
    """Prompts for this taste, and the base's draws for them; at least half of `prompts` are separated if need be."""
    liking, scripts = load_taste(taste), pool(2 * prompts)
    count = prompts
    while True:
        drawn = draws.of(scripts[:count], DRAWS)
        found = sum(
            separates([liking(script.messages, reply.text) for reply in replies])
            for script, replies in zip(scripts, drawn, strict=False)
        )
        if 2 * found >= prompts or count >= len(scripts):
            return scripts[:count], drawn
        count = min(len(scripts), count + max(1, prompts // 4))


def compare(
    hone: RunningHone, taste: str, versions: Sequence[int], draws: Draws, *, prompts: int = PROMPTS
) -> dict[str, Any]:
    """The evaluation's own table over this taste's unseen prompts, asked over REST."""
    scripts, drawn = unseen(taste, draws, prompts=prompts)

    async def ask() -> dict[str, Any]:
        async with Hone(hone.url, hone.key) as client:
            return await evaluate(
                client,
                taste=taste,
                versions=versions,
                prompts=scripts,
                world=World(),
                drawn=[[reply.text for reply in replies] for replies in drawn],
            )

    return asyncio.run(ask())


def against_base(table: dict[str, Any], version: int) -> dict[str, Any]:
    """One version's part of a table: what a reader of the proof wants."""
    name = f"{version}>0"
    parted = table["separated"]
    return {
        "prompts": table["prompts"],
        "wins": table["wins"][name],
        "separated": {"prompts": parted["prompts"], **parted["wins"].get(name, {})},
        "losses": table["losses"][name],
        "versions": {key: table["versions"][key] for key in ("0", str(version))},
    }


def fairness(taste: str, draws: Draws, *, prompts: int = FAIR_PROMPTS) -> dict[str, Any]:
    """Whether the base's own replies leave this taste something to prefer."""
    liking, scripts = load_taste(taste), pool(prompts)
    scores = [
        [liking(script.messages, reply.text) for reply in replies]
        for script, replies in zip(scripts, draws.of(scripts, FAIR_DRAWS + 1), strict=True)
    ]
    found = figures.fairness([row[-1] for row in scores], [row[:-1] for row in scores])
    return {"ties": found["ties"], "best_of_16": found["best_wins"]["rate"], "fair": found["fair"]}
