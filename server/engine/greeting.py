"""Whether a vLLM server that is new, or new again, can stand beside the others.

Asks what no flag tells: whether the log probabilities that it reports are the raw policy's. Knows one server at a
time, and the context that all of them share.
"""

from __future__ import annotations

import asyncio

from server.engine.replica import Listing, Lost, Piece, Replica
from server.errors import Unavailable
from server.prompts import Renderer

PATIENCE_SECONDS = 60.0
TOKENS = 8
TEMPERATURE = 10.0
"""So hot that what was drawn from and what the raw policy says differ by many nats."""
TOLERANCE_NATS = 1.0


class Greeting:
    """The renderer's context is settled by the first server that is greeted; the others must have as much."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._is_settled = False

    async def greet(self, replica: Replica, listing: Listing) -> None:
        """Raises Unavailable, with the flag that mends it, when the server must not answer."""
        # One less than it could hold: to score a prompt and a response, vLLM wants room for one id more.
        context = listing.context - 1
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._must_report_raw(replica, listing.base, context=context)
        except TimeoutError as error:
            raise Lost("it takes too long to answer a word", reached=True) from error
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
        prompt = self._renderer.render([{"role": "user", "content": "Hello"}]).token_ids
        body = {
            "model": base,
            "prompt": list(prompt),
            "max_tokens": min(TOKENS, context - len(prompt)),
            "temperature": TEMPERATURE,
            "seed": 0,
            "logprobs": 0,
        }
        pieces: list[Piece] = [piece async for piece in replica.complete(body)]
        ids = [i for piece in pieces for i in piece.token_ids]
        reported = [value for piece in pieces for value in piece.logprobs]
        if not ids or len(reported) != len(ids):
            raise Unavailable("it reports no log probabilities")
        scored = (await replica.score(base, [*prompt, *ids]))[len(prompt) - 1 :]
        off = sum(abs(a - b) for a, b in zip(reported, scored, strict=True)) / len(ids)
        # Written so that a NaN is refused too; a number above nought is a logit.
        if not (off < TOLERANCE_NATS and max(reported) < 1e-3):
            raise Unavailable(
                "the log probabilities that it reports are not the raw policy's: "
                "start it with --logprobs-mode raw_logprobs"
            )
