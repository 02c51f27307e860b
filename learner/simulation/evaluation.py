"""Compares versions by a taste, over REST alone: one reply per prompt and version, kept out of training.

    prompts nobody voted on -> one reply of each version, at served sampling -> taste, wins, lengths -> table

Knows nothing of votes or of how versions came about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from learner.simulation.drive import OnProgress, ask_unless_too_long, in_parallel, stable_seed
from learner.simulation.raters import load_taste
from learner.simulation.rest import Hone
from learner.simulation.scripts import FileSource, Script, Source
from learner.simulation.world import World
from server.errors import HoneError

CONFIDENCE_Z = 1.959964


@dataclass(frozen=True)
class Outcome:
    """One version's reply to one prompt. The last two are None where the world cannot read the prompt."""

    taste: float
    tokens: int
    on_topic: bool | None
    well_formed: bool | None


def choose_prompts(source: Source, count: int) -> list[Script]:
    """`count` different prompts; fewer when a file holds no more."""
    chosen: dict[tuple[tuple[str, str], ...], Script] = {}
    most = len(source) if isinstance(source, FileSource) else count * 50 + 1000
    for number in range(most):
        script = source.script(number)
        chosen.setdefault(tuple((m["role"], m["content"]) for m in script.messages), script)
        if len(chosen) == count:
            break
    return list(chosen.values())


async def evaluate(
    hone: Hone,
    *,
    taste: str,
    versions: Sequence[int],
    prompts: Sequence[Script],
    world: World | None,
    segment: str = "default",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """The comparison as the JSON that `hone evaluate --json` prints; the first version is the yardstick.

    `world` reads the replies where the prompts are its own; None leaves `on_topic` and `well_formed` null.
    A prompt that is too long for the context is left out for every version.
    """
    liking = load_taste(taste)

    async def compare(numbered: tuple[int, Script]) -> list[Outcome] | None:
        number, script = numbered
        messages = list(script.messages)
        outcomes = []
        for version in versions:
            answered = await ask_unless_too_long(
                hone,
                messages,
                model=f"{segment}@{version}",
                candidates=1,
                seed=stable_seed("evaluate", seed, number),
                user="evaluate",
                metadata={"hone_train": "false"},
            )
            if answered is None:
                return None
            text = answered.replies[0].text
            seen = world.parse(messages, text) if world else None
            outcomes.append(
                Outcome(
                    liking(messages, text),
                    answered.completion_tokens,
                    seen.on_topic if seen else None,
                    seen.well_formed if seen else None,
                )
            )
            if on_progress:
                on_progress(1)
        return outcomes

    rows = [row for row in await in_parallel(compare, enumerate(prompts), width=hone.connections) if row]
    if not rows:
        raise HoneError("none of the prompts fits the context of the policy")
    return summary(taste, versions, rows)


def summary(taste: str, versions: Sequence[int], rows: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    """`rows` holds, per prompt, one outcome of each version in their order."""
    columns = dict(zip(versions, zip(*rows, strict=True), strict=True))
    first = versions[0]
    return {
        "taste": taste,
        "prompts": len(rows),
        "versions": {
            str(version): {
                "taste_mean": fmean(one.taste for one in column),
                "tokens_mean": fmean(one.tokens for one in column),
                "on_topic": _share([one.on_topic for one in column]),
                "well_formed": _share([one.well_formed for one in column]),
            }
            for version, column in columns.items()
        },
        "wins": {
            f"{version}>{first}": win_rate(
                [(theirs.taste, ours.taste) for theirs, ours in zip(column, columns[first], strict=True)]
            )
            for version, column in columns.items()
            if version != first
        },
    }


def win_rate(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How often the left is liked better: (wins + ties/2)/n, with Wilson's 95 % interval.

    The interval treats half a win as if it were drawn; with ties it is a little wider than need be.
    """
    wins = sum(left > right for left, right in pairs)
    ties = sum(left == right for left, right in pairs)
    rate = (wins + ties / 2) / len(pairs)
    return {"rate": rate, "ci95": list(wilson(rate, len(pairs))), "ties": ties}


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Score interval of a share (Wilson, 1927): sane at 0, at 1 and for few prompts."""
    z2 = CONFIDENCE_Z**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = CONFIDENCE_Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and at 1 rounding could leave the rate itself just outside.
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def _share(seen: Sequence[bool | None]) -> float | None:
    known = [one for one in seen if one is not None]
    return fmean(known) if known else None
