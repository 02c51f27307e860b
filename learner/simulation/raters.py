"""Simulated people: each sees two scores or one and votes as people do, noisily and not quite fairly.

Scores are numbers of any scale, standardised; whose taste gave them, dialogues, tokens and HTTP are unknown here. All
chance is seeded.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from server.errors import Invalid

Pick = Literal["first", "second", "tie", "both_bad", "skip"]
Thumb = Literal["up", "down"]

SHARPNESS = 1.5
"""Log-odds per deviation at noise 1: two users agree on about 70 % of the picks that both decide."""
CLICKERS, SKIPS, TIE_WIDTH, BAD = 0.05, 0.01, 0.25, -1.0


class Scale(NamedTuple):
    """Puts a taste of any scale on the one that raters expect: mean 0, deviation 1 between replies to one prompt."""

    mean: float
    deviation: float

    def __call__(self, score: float) -> float:
        return (score - self.mean) / self.deviation


def standardise(pairs: Sequence[tuple[float, float]]) -> Scale:
    """The scale of a taste, from its scores of pairs of replies to the same prompt.

    The deviation is that of replies to one prompt, since nobody chooses between replies to different ones: half the
    mean square difference. Takes one pair at least. Invalid when none differs, for then there is nothing to prefer.
    """
    # By a power of two, which rounds nothing: the squares of very large or small differences are no numbers.
    exponent = math.frexp(max(abs(a - b) for a, b in pairs))[1]
    squares = (math.ldexp(a - b, -exponent) ** 2 for a, b in pairs)
    deviation = math.ldexp(math.sqrt(statistics.fmean(squares) / 2), exponent)
    if deviation == 0:
        raise Invalid(
            f"The taste gives both replies the same score in all {len(pairs)} pairs: nothing can be learned from it.",
            code="flat_taste",
            param="taste",
        )
    return Scale(statistics.fmean(score for pair in pairs for score in pair), deviation)


@dataclass(frozen=True)
class Rater:
    """One person. `sharpness` 0 clicks at random, infinity never errs; an adversary has `sign` -1."""

    user: str
    rng: random.Random
    sharpness: float
    sign: int = 1
    side_bias: float = 0.0
    """Log-odds in favour of whatever stands first."""
    tie_width: float = 0.0
    """Log-odds within which the two look alike."""
    leniency: float = 0.0
    """Deviations below the average that still earn a thumb up."""

    def pick(self, first_score: float, second_score: float) -> Pick:
        """Bradley-Terry with ties by Rao and Kupper (1967); a tie of two bad replies is "both_bad"."""
        if self.sharpness == 0:
            return self.rng.choice(("first", "second"))
        first, second = self.sign * first_score, self.sign * second_score
        if math.isinf(self.sharpness):
            lead = first - second
        else:
            if self.rng.random() < SKIPS:
                return "skip"
            lead = self.sharpness * (first - second) + self.side_bias + _logistic(self.rng)
        if abs(lead) <= self.tie_width:
            return "both_bad" if max(first, second) + self.leniency < BAD else "tie"
        return "first" if lead > 0 else "second"

    def thumb(self, score: float) -> Thumb:
        if self.sharpness == 0:
            return self.rng.choice(("up", "down"))
        liking = self.sign * score + self.leniency
        if not math.isinf(self.sharpness):
            liking = self.sharpness * liking + _logistic(self.rng)
        return "up" if liking > 0 else "down"


def _logistic(rng: random.Random) -> float:
    u = min(max(rng.random(), 1e-12), 1 - 1e-12)
    return math.log(u / (1 - u))


def make_raters(
    count: int, *, noise: float = 1.0, adversaries: float = 0.0, seed: int = 0, clickers: float = CLICKERS
) -> list[Rater]:
    """`count` people who differ: `noise` 0 makes all of them exact, infinity makes all of them toss coins.

    The shares of adversaries and random clickers are rounded to whole people, and who they are is drawn.
    """
    if count < 1 or noise < 0 or math.isnan(noise) or not 0 <= adversaries <= 1:
        raise Invalid("Raters need a count of at least 1, noise of at least 0 and adversaries from 0 to 1.")
    rng = random.Random(f"raters:{seed}")
    order = rng.sample(range(count), count)
    against = set(order[: round(adversaries * count)])
    careless = set(order[len(against) :][: round(clickers * count)]) if noise > 0 else set()
    return [
        _draw_rater(number, seed, noise, sign=-1 if number in against else 1, careless=number in careless)
        for number in range(count)
    ]


def _draw_rater(number: int, seed: int, noise: float, *, sign: int, careless: bool) -> Rater:
    rng = random.Random(f"rater:{seed}:{number}")
    user = f"user-{number:03d}"
    temper, bias, leniency = rng.gauss(0, 0.3), rng.gauss(0.1, 0.2), rng.gauss(0.2, 0.5)
    if noise == 0:
        return Rater(user, rng, math.inf, sign)
    if careless or math.isinf(noise):
        return Rater(user, rng, 0.0, sign)
    return Rater(
        user,
        rng,
        SHARPNESS * math.exp(temper) / noise,
        sign,
        side_bias=bias,
        tie_width=TIE_WIDTH,
        leniency=leniency,
    )
