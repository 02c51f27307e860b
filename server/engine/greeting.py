"""Whether a vLLM server can stand beside the others: when it is new, and with each version that it is brought.

    greet: is its release recent enough, are the log probabilities that it reports the raw policy's, is its context
           long enough
    check: one short text, scored by every server that holds the version; whoever differs does not answer for it

Asks what no flag tells. The bare base is a version like the others, with a few fixed words for its text. Knows one
server at a time, and the context that all of them share.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.engine.refusals import Lost
from server.engine.replica import OLDEST, Listing, Piece, Replica
from server.errors import AdapterRejected, Unavailable
from server.probe import Probe
from server.prompts import Renderer

PATIENCE_SECONDS = 60.0
WORDS = "Hello! What shall we cook?"
"""What is scored of a version that brings no text of its own."""
AGREED_NATS = 0.05
"""Mean distance per token within which two servers are taken to hold the same weights: other batches and other cards
round differently, each of them by as much as a probe may be off in bfloat16 (0.02)."""
TOKENS = 16
TEMPERATURE = 2.0
"""As hot as vLLM draws: of so many ids some are so unlikely that what they were drawn from and the raw policy differ by
several nats."""
TOLERANCE_NATS = 1.0
"""By which the id that lies furthest off may do so: far more than two ways of rounding differ by."""


@dataclass(frozen=True, slots=True)
class Check:
    """The text by which servers with one version are compared: `token_ids`, scored from position `begin` on.

    `expected` is what the learner measured of it, position by position; empty when nobody did.
    """

    token_ids: tuple[int, ...]
    begin: int = 1
    expected: tuple[float, ...] = ()

    @classmethod
    def of(cls, folder: Path, renderer: Renderer) -> Check:
        """The first answer of an adapter's own probe, or else a few words that are always the same. Reads a file."""
        try:
            item = next(item for item in Probe.read(folder).items if item.response_ids)
        except AdapterRejected:  # whoever loads it judges its probe; here it only lends a text
            return cls.of_words(renderer)
        return cls((*item.prompt_ids, *item.response_ids), len(item.prompt_ids), item.logprobs)

    @classmethod
    def of_words(cls, renderer: Renderer) -> Check:
        """A few words that are always the same."""
        return cls(renderer.render([{"role": "user", "content": WORDS}]).token_ids)

    async def score(self, replica: Replica, name: str, *, context: int) -> tuple[float, ...]:
        """What a server says of the text, as far as its context reaches. Raises as `Replica.score` does."""
        return (await replica.score(name, self.token_ids[:context]))[self.begin - 1 :]

    def settle(self, scores: Sequence[tuple[float, ...]]) -> tuple[float, ...] | None:
        """Which of several servers' scores count: those next to what the learner measured, or else those of most.

        Nothing, when none agrees with what was measured, or half of them stand against the other half.
        """
        if self.expected:
            nearest = min(scores, key=lambda own: distance(own, self.expected))
            return nearest if agree(nearest, self.expected) else None
        backed = {own: sum(agree(own, other) for other in scores) for own in scores}
        best = max(backed, key=lambda own: backed[own])
        return best if 2 * backed[best] > len(scores) else None


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Mean nats per token between two scores of one text; endless when one of them is no number."""
    off = sum(abs(x - y) for x, y in zip(a, b, strict=False)) / max(min(len(a), len(b)), 1)
    return math.inf if math.isnan(off) else off


def agree(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two servers that gave these scores can be taken for one another."""
    return distance(a, b) <= AGREED_NATS


class Greeting:
    """The renderer's context is settled by the first server that is greeted; the others must have as much."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._prompt = renderer.render([{"role": "user", "content": "Hello"}]).token_ids
        self._is_settled = False

    async def greet(self, replica: Replica, listing: Listing) -> None:
        """Raises Unavailable, with the flag that mends it, when the server must not answer."""
        # One less than it could hold: to score a prompt and a response, vLLM wants room for one id more.
        context = listing.context - 1
        release = await replica.release()
        if release and release < OLDEST:
            raise Unavailable(
                f"it is vLLM {release[0]}.{release[1]}, in which a load may push an adapter out from under a running "
                f"reply: take {OLDEST[0]}.{OLDEST[1]} or later"
            )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._must_report_raw(replica, listing.base, context=context)
        except TimeoutError as error:
            raise Lost("it takes too long to answer a word", reached=True, silent=True) from error
        if not self._is_settled:  # nobody was answered yet, so nothing was rendered for more
            self._renderer.narrow(context)
            self._is_settled = True
        if context < self._renderer.context:
            raise Unavailable(
                f"its context of {listing.context} tokens is shorter than that of the others: "
                "give all of them the same --max-model-len"
            )

    async def _must_report_raw(self, replica: Replica, base: str, *, context: int) -> None:
        """Draw a few hot tokens and score them again: the record and what learns from it live by these numbers."""
        prompt = self._prompt
        body = {
            "model": base,
            "prompt": list(prompt),
            "max_tokens": min(TOKENS, context - len(prompt)),
            "temperature": TEMPERATURE,
            "seed": 0,
            "logprobs": 0,
            "ignore_eos": True,
        }
        pieces: list[Piece] = [piece async for piece in replica.complete(body)]
        ids = [i for piece in pieces for i in piece.token_ids]
        reported = [value for piece in pieces for value in piece.logprobs]
        if not ids:  # as one does that is being stopped, well to all other questions
            raise Lost("it ends what it is asked for before the first token", reached=True)
        if len(reported) != len(ids):
            raise Unavailable("it reports no log probabilities")
        scored = (await replica.score(base, [*prompt, *ids]))[len(prompt) - 1 :]
        is_raw = all(abs(a - b) < TOLERANCE_NATS for a, b in zip(reported, scored, strict=True))  # no NaN is
        if not is_raw or max(reported) > 1e-3:  # a number above nought is a logit
            raise Unavailable(
                "the log probabilities that it reports are not the raw policy's: "
                "start it with --logprobs-mode raw_logprobs"
            )
