"""An engine that says what a test wrote down, as fast as the test lets it; everything around it is the real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

from server.engine import Served
from server.engine.base import BaseIdentity, Delta, FinishReason, Prompt, Sampling
from server.engine.echo import END, EchoEngine, echo_renderer

STEP_SECONDS = 0.005


class ScriptedEngine(EchoEngine):
    """Reply i of a turn is `texts[i]`, word by word. A closed gate holds back a reply's last word.

    The i-th reply of a pair may stand on either side: the server throws that coin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates = (threading.Event(), threading.Event())
        self.reset()

    def reset(self) -> None:
        """The plain script: two short texts, nothing held back, nothing broken."""
        self.texts: Sequence[str] = ("First thing to know.", "Another way to see it.")
        self.asked: list[str] = []
        """Every prompt as it was rendered."""
        self.refusals: list[Exception] = []
        """Raised one by one, before anything is written."""
        self.breakdown: Exception | None = None
        """Raised in the place of the last word."""
        self.open_gates()

    def open_gates(self) -> None:
        for gate in self.gates:
            gate.set()

    def close_gates(self) -> None:
        for gate in self.gates:
            gate.clear()

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        self.asked.append(self._readable(prompt))
        if self.refusals:
            raise self.refusals.pop(0)
        steps = [(i, step) for i in range(n) for step in self._steps(i)]
        steps.sort(key=lambda pair: pair[1][0])
        waiting = [(i, word, is_last) for i, (_, word, is_last) in steps]
        while waiting:
            index, word, is_last = self._next(waiting)
            await asyncio.sleep(STEP_SECONDS)
            if word is None:
                continue
            if is_last and self.breakdown:
                raise self.breakdown
            ids = tuple(word.encode())
            yield Delta(word, ids, (-1.0,) * len(ids), None, index)
            if is_last:
                yield Delta("", (END,), (-1.0,), FinishReason.STOP, index)

    def _steps(self, index: int) -> list[tuple[int, str, bool]]:
        words = self.texts[index % len(self.texts)].split(" ")
        spaced = [word if at == 0 else f" {word}" for at, word in enumerate(words)]
        return [(at, word, at == len(words) - 1) for at, word in enumerate(spaced)]

    def _next(self, waiting: list[tuple[int, str, bool]]) -> tuple[int, str | None, bool]:
        """The next word whose gate is open; none when all wait."""
        for at, (index, word, is_last) in enumerate(waiting):
            if not is_last or self.gates[index].is_set():
                del waiting[at]
                return index, word, is_last
        return 0, None, False

    @staticmethod
    def _readable(prompt: Prompt) -> str:
        return bytes(i if i < END else 10 for i in prompt.token_ids).decode(errors="replace")


def scripted(engine: ScriptedEngine) -> Served:
    """What `create_app` takes in the place of a model."""
    renderer = echo_renderer()
    return Served(engine, renderer, BaseIdentity("scripted", "scripted", renderer.template_hash))
