"""What a policy's replies look like from outside: length, endings, variety, distance from the base. No taste at all.

Pure arithmetic on token ids and log probabilities. Knows nothing of votes, of reward models or of thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Means over a set of replies."""

    replies: int
    length: float
    """Tokens."""
    eos_rate: float
    """Share that ended by themselves."""
    distinct2: float
    """Different pairs of neighbouring tokens over all pairs, in the whole set."""
    repetition: float
    """Share of 4-grams that occurred before in the same reply."""
    entropy: float
    """Nats per token: minus the mean log probability of what was drawn."""
    kl: float
    """Nats per reply from the bare base: mean log(policy / base) of what was drawn, never below 0."""

    def to_dict(self) -> dict[str, float]:
        return {key: float(value) for key, value in asdict(self).items()}


def behaviour_of(
    responses: Sequence[Ids],
    *,
    ended: Sequence[bool],
    logprobs: Sequence[Sequence[float]],
    ref_logprobs: Sequence[Sequence[float]],
) -> Behaviour:
    """Measure replies drawn at temperature 1. `logprobs` are the policy's, `ref_logprobs` the bare base's."""
    count = max(1, len(responses))
    tokens = max(1, sum(len(r) for r in responses))
    drawn = sum(sum(row) for row in logprobs)
    return Behaviour(
        replies=len(responses),
        length=tokens / count,
        eos_rate=sum(ended) / count,
        distinct2=distinct2(responses),
        repetition=sum(repeated(r) for r in responses) / count,
        entropy=-drawn / tokens,
        # Not k3: a single token that the base finds far likelier would decide about the whole set.
        kl=max(0.0, drawn - sum(map(sum, ref_logprobs))) / count,
    )


def distinct2(responses: Sequence[Ids]) -> float:
    """Different pairs of neighbours over all pairs; 1 where there are none."""
    pairs = [pair for r in responses for pair in pairwise(r)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def repeated(response: Ids) -> float:
    """Share of the response's 4-grams that it held before; 0 where it is too short to have any."""
    grams = list(zip(*(response[i:] for i in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
