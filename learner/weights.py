"""How much each vote counts: nobody is heard more than a fair share, and old votes fade. Pure arithmetic.

Knows voices (strings), times and masses; nothing of the record, of tensors or of what a vote said. Ages are
measured from the newest vote that a cycle can have seen, never from the wall clock, so that the same record always
weighs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median

SPREAD = 1.5
"""Among few voices, each may hold this many times an even share."""


def decay(times: Sequence[datetime], *, until: datetime, half_life_days: float) -> list[float]:
    """2^(-age / half-life) of each vote, its age counted from the newest of them.

    A vote from after `until` was stamped by a clock that ran ahead: it counts as cast then, and makes none older.
    """
    if not times:
        return []
    times = [min(at, until) for at in times]
    newest = max(times)
    return [0.5 ** ((newest - at).total_seconds() / (half_life_days * 86_400)) for at in times]


def ceiling(masses: Sequence[float], *, share: float) -> float:
    """The level above which no mass may stand, so that none holds more than `share` of what is left.

    Pouring water: the largest j masses are cut to one level L with L = share * (j * L + the others' sum).
    `share` below 1 / len(masses) cannot be met; then all are cut to the smallest, which is as fair as it gets.
    """
    falling = sorted(masses, reverse=True)
    rest = sum(falling)
    for cut, mass in enumerate(falling):
        level = share * rest / (1.0 - cut * share) if cut * share < 1.0 else 0.0
        if mass <= level:
            return level if cut else mass
        rest -= mass
    return falling[-1] if falling else 0.0


def fair_weights(
    voices: Sequence[str],
    freshness: Sequence[float],
    *,
    least_cap: float = 5.0,
    cap_of_median: float = 1.5,
    max_share: float = 0.05,
) -> list[float]:
    """One weight per vote: its freshness, shrunk so that no voice drowns the others.

    First min(1, c / n) for a voice with n votes, c = max(`least_cap`, `cap_of_median` x the median voice's
    votes); then the voices' sums are levelled so that none exceeds max(`max_share`, 1.5 / voices) of the total.
    """
    assert len(voices) == len(freshness)
    if not voices:
        return []
    votes: dict[str, int] = {}
    for voice in voices:
        votes[voice] = votes.get(voice, 0) + 1
    cap = max(least_cap, cap_of_median * median(votes.values()))
    weights = [fresh * min(1.0, cap / votes[voice]) for voice, fresh in zip(voices, freshness, strict=True)]
    masses = _sum_by(voices, weights)
    level = ceiling(list(masses.values()), share=max(max_share, SPREAD / len(masses)))
    factor = {voice: min(1.0, level / mass) if mass > 0 else 1.0 for voice, mass in masses.items()}
    return [weight * factor[voice] for voice, weight in zip(voices, weights, strict=True)]


def inverse_frequency(voices: Sequence[str]) -> list[float]:
    """One weight per prompt such that all of a voice's prompts together weigh 1."""
    counts = _sum_by(voices, [1.0] * len(voices))
    return [1.0 / counts[voice] for voice in voices]


def scaled_to(weights: Sequence[float], *, total: float) -> list[float]:
    """The same proportions with another sum."""
    held = sum(weights)
    return [weight * total / held for weight in weights] if held > 0 else list(weights)


def _sum_by(voices: Sequence[str], weights: Sequence[float]) -> Mapping[str, float]:
    sums: dict[str, float] = {}
    for voice, weight in zip(voices, weights, strict=True):
        sums[voice] = sums.get(voice, 0.0) + weight
    return sums
