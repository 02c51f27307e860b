"""Whether the weights that an engine holds are the weights that were trained: the check behind every load.

An adapter folder carries `probe.json`: a few prompts and responses, with their log probabilities under the
policy and under the bare base, as the learner saw them. The engine scores them again. Pure arithmetic and one
file; knows neither the engine nor the store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import AdapterRejected

FILE = "probe.json"
LEAST_DIFFERENCE = 1e-4
"""Mean nats per token between policy and base: less means that the adapter changes nothing."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far re-scored log probabilities may lie from the written ones, in nats per token."""

    mean: float
    largest: float


TOLERANCE = {"float32": Tolerance(1e-3, 1e-3), "bfloat16": Tolerance(2e-2, math.inf)}


@dataclass(frozen=True, slots=True)
class Probed:
    """One prompt and response, and what the learner measured on it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """All of `probe.json`. `dtype` is what the learner measured in."""

    items: tuple[Probed, ...]
    dtype: str

    @classmethod
    def read(cls, folder: Path) -> Probe:
        """Raises AdapterRejected when there is none, or when it cannot be understood."""
        try:
            data = json.loads((folder / FILE).read_text())
            items = tuple(
                Probed(
                    prompt_ids=tuple(map(int, row["prompt_ids"])),
                    response_ids=tuple(map(int, row["response_ids"])),
                    logprobs=tuple(map(float, row["logprobs"])),
                    base_logprobs=tuple(map(float, row["base_logprobs"])),
                )
                for row in data["prompts"]
            )
            probe = cls(items, str(data.get("dtype", "float32")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterRejected(f"{FILE} cannot be read: {error}", code="probe_unreadable") from error
        if not any(item.response_ids for item in items):
            raise AdapterRejected(f"{FILE} holds nothing to score", code="probe_unreadable")
        if any(
            len(row) != len(item.response_ids)
            for item in items
            for row in (item.logprobs, item.base_logprobs)
        ):
            raise AdapterRejected(f"{FILE} lacks numbers for some of its tokens", code="probe_unreadable")
        return probe

    def judge(self, scored: Sequence[Sequence[float]], *, dtype: str = "float32") -> str:
        """What was found, in one sentence, for weights held in `dtype`. Raises AdapterRejected.

        `scored[i]` are the re-scored log probabilities of `items[i].response_ids`.
        """
        coarse = "bfloat16" in (dtype, self.dtype)
        tolerance = TOLERANCE["bfloat16" if coarse else "float32"]
        off = [
            abs(a - b)
            for item, row in zip(self.items, scored, strict=True)
            for a, b in zip(item.logprobs, row, strict=True)
        ]
        moved = [
            abs(a - b)
            for item, row in zip(self.items, scored, strict=True)
            for a, b in zip(item.base_logprobs, row, strict=True)
        ]
        mean, largest = sum(off) / len(off), max(off)
        # Written so that a NaN is refused too.
        if not (mean < tolerance.mean and largest < tolerance.largest):
            raise AdapterRejected(
                f"served log probabilities are {mean:.2g} nats (largest {largest:.2g}) from those that were trained",
                code="probe_mismatch",
            )
        difference = sum(moved) / len(moved)
        if not difference >= LEAST_DIFFERENCE:
            raise AdapterRejected("the adapter answers exactly as the bare base", code="probe_like_base")
        return f"probe off by {mean:.2g} nats (largest {largest:.2g}), {difference:.3f} nats from the base"
