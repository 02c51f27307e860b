"""What a comparison by a taste says, as figures: wins, ties, losses, and whether the taste is fair. Pure.

    outcomes of every version, scores of more replies of the first -> wins with intervals, losses with bounds -> table

Knows nothing of how replies were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

CONFIDENCE_Z = 1.959964
SEPARATES = Fraction(4, 5)
"""Share of the pairs of draws that a taste must tell apart for their prompt to count as separated."""
FAIR_DRAWS = 16
MOST_TIES, LEAST_WINS = 0.15, 0.85
"""A taste is fair when the first version's replies tie at most this often, and its own best of 16 wins this often."""


@dataclass(frozen=True)
class Outcome:
    """One version's reply to one prompt. The last two are None where the world cannot read the prompt."""

    taste: float
    tokens: int
    on_topic: bool | None
    well_formed: bool | None


def summary(
    taste: str,
    versions: Sequence[int],
    rows: Sequence[Sequence[Outcome]],
    drawn: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """The table as JSON: `rows` holds, per prompt, one outcome of each version in their order.

    `drawn` holds, per prompt, the taste's scores of further replies of the first version; empty leaves `draws` and
    `separated` out.
    """
    columns = dict(zip(versions, zip(*rows, strict=True), strict=True))
    first = versions[0]
    later = {f"{version}>{first}": columns[version] for version in versions if version != first}
    pairs = {
        name: [(theirs.taste, ours.taste) for theirs, ours in zip(column, columns[first], strict=True)]
        for name, column in later.items()
    }
    table: dict[str, Any] = {
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
        "wins": {name: win_rate(both) for name, both in pairs.items()},
        "losses": {name: losses(columns[first], column) for name, column in later.items()},
    }
    if drawn:
        parted = [separates(scores) for scores in drawn]
        table["draws"] = fairness([one.taste for one in columns[first]], drawn)
        table["separated"] = {
            "prompts": sum(parted),
            "wins": {
                name: win_rate([pair for pair, counts in zip(both, parted, strict=True) if counts])
                for name, both in pairs.items()
                if any(parted)
            },
        }
    return table


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


def losses(before: Sequence[Outcome], after: Sequence[Outcome]) -> dict[str, Any]:
    """What is lost of either rate from `before` to `after`, prompt by prompt; less than nothing is a gain."""
    return {
        "on_topic": loss([(a.on_topic, b.on_topic) for a, b in zip(before, after, strict=True)]),
        "well_formed": loss([(a.well_formed, b.well_formed) for a, b in zip(before, after, strict=True)]),
    }


def loss(pairs: Sequence[tuple[bool | None, bool | None]]) -> dict[str, float] | None:
    """Mean of the paired differences and its upper normal 95 % bound; None where nothing could be read."""
    gone = [
        float(before) - float(after) for before, after in pairs if before is not None and after is not None
    ]
    if not gone:
        return None
    mean = fmean(gone)
    # One pair says nothing of the spread: all may be lost.
    upper = mean + CONFIDENCE_Z * stdev(gone) / math.sqrt(len(gone)) if len(gone) > 1 else 1.0
    return {"mean": mean, "upper95": upper}


def separates(scores: Sequence[float]) -> bool:
    """Whether the taste tells this prompt's replies apart in at least `SEPARATES` of their pairs."""
    pairs = list(combinations(scores, 2))
    return bool(pairs) and Fraction(sum(a != b for a, b in pairs), len(pairs)) >= SEPARATES


def fairness(replies: Sequence[float], drawn: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Whether there is something to prefer: how often draws tie, and how often the best of them beats `replies`.

    Only the first `FAIR_DRAWS` may be chosen from. With fewer, `fair` is None where more of them might still do.
    """
    tied = total = 0
    for scores in drawn:
        pairs = list(combinations(scores, 2))
        tied += sum(a == b for a, b in pairs)
        total += len(pairs)
    ties = tied / total if total else 0.0
    per_prompt = min(map(len, drawn))
    best = win_rate([(max(scores[:FAIR_DRAWS]), reply) for scores, reply in zip(drawn, replies, strict=True)])
    wins = best["rate"] >= LEAST_WINS
    fair = None if ties <= MOST_TIES and not wins and per_prompt < FAIR_DRAWS else ties <= MOST_TIES and wins
    return {
        "per_prompt": per_prompt,
        "ties": ties,
        "best_of": min(per_prompt, FAIR_DRAWS),
        "best_wins": best,
        "fair": fair,
    }


def _share(seen: Sequence[bool | None]) -> float | None:
    known = [one for one in seen if one is not None]
    return fmean(known) if known else None
