"""Compares versions by a taste, over REST alone: one reply per prompt and version, kept out of training.

    prompts nobody voted on -> one reply of each version, more of the first if asked for, all at served sampling
    -> what the taste and the world make of them -> figures

Knows nothing of votes or of how versions came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from learner.simulation.figures import Outcome, summary
from learner.simulation.rest import Answered, Hone, OnProgress, ask_unless_too_long, in_parallel
from learner.simulation.scripts import FileSource, Message, Script, Source
from learner.simulation.seeds import stable_seed
from learner.simulation.tastes import Taste, load_taste
from learner.simulation.world import World
from server.errors import HoneError

MOST_CHOICES = 4
"""Replies that one request may ask for (`n`)."""


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
    draws: int = 0,
    drawn: Sequence[Sequence[str]] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """The comparison as the JSON that `hone evaluate --json` prints; the first version is the yardstick.

    `world` reads the replies where the prompts are its own; None leaves `on_topic` and `well_formed` null.
    `draws` more replies of the first version to each prompt tell which prompts the taste separates; `drawn` are such
    replies from an earlier time, in the prompts' order. A prompt that is too long for the context is left out.
    """
    asked = _Asked(
        hone, load_taste(taste), world, versions, segment=segment, seed=seed, on_progress=on_progress
    )

    async def compare(numbered: tuple[int, Script]) -> tuple[list[Outcome], list[float]] | None:
        number, script = numbered
        messages = list(script.messages)
        outcomes = await asked.outcomes(messages, number)
        if outcomes is None:
            return None
        if drawn is not None:
            return outcomes, [asked.liking(messages, text) for text in drawn[number]]
        scores = await asked.draw(messages, number, count=draws)
        return None if scores is None else (outcomes, scores)

    rows = [row for row in await in_parallel(compare, enumerate(prompts), width=hone.connections) if row]
    if not rows:
        raise HoneError("none of the prompts fits the context of the policy")
    more = [scores for _, scores in rows] if draws or drawn is not None else ()
    return summary(taste, versions, [outcomes for outcomes, _ in rows], more)


class _Asked:
    """What was answered to one prompt, and what the taste and the world make of it; None when it is too long."""

    def __init__(
        self,
        hone: Hone,
        liking: Taste,
        world: World | None,
        versions: Sequence[int],
        *,
        segment: str,
        seed: int,
        on_progress: OnProgress | None,
    ) -> None:
        self.liking = liking
        self._hone, self._world, self._versions = hone, world, versions
        self._segment, self._seed, self._on_progress = segment, seed, on_progress

    async def outcomes(self, messages: list[Message], number: int) -> list[Outcome] | None:
        """One of each version."""
        found = []
        for version in self._versions:
            answered = await self._ask(messages, version, seed=stable_seed("evaluate", self._seed, number))
            if answered is None:
                return None
            text = answered.replies[0].text
            seen = self._world.parse(messages, text) if self._world else None
            found.append(
                Outcome(
                    self.liking(messages, text),
                    answered.completion_tokens,
                    seen.on_topic if seen else None,
                    seen.well_formed if seen else None,
                )
            )
        return found

    async def draw(self, messages: list[Message], number: int, *, count: int) -> list[float] | None:
        """The taste's scores of `count` more replies of the first version, in as few requests as may be."""
        scores: list[float] = []
        while len(scores) < count:
            answered = await self._ask(
                messages,
                self._versions[0],
                n=min(MOST_CHOICES, count - len(scores)),
                seed=stable_seed("draw", self._seed, number, len(scores)),
            )
            if answered is None:
                return None
            scores += [self.liking(messages, reply.text) for reply in answered.replies]
        return scores

    async def _ask(self, messages: list[Message], version: int, **fields: Any) -> Answered | None:
        answered = await ask_unless_too_long(
            self._hone,
            messages,
            model=f"{self._segment}@{version}",
            candidates=1,
            user="evaluate",
            metadata={"hone_train": "false"},
            **fields,
        )
        if answered and self._on_progress:
            self._on_progress(1)
        return answered


def requests_per_prompt(versions: int, draws: int) -> int:
    """How many requests one prompt takes."""
    return versions + -(-draws // MOST_CHOICES)
