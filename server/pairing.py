"""When a turn shows two replies, with which versions and seeds, and which of them stands first.

Pure: the dice are passed in, nothing is read or written. It knows neither conversations nor engines; it turns
a request's wishes and a segment's policy into a `Plan`.

    wishes (candidates, n, temperature, seed) + policy (share, floor) + dice -> Plan(replies, pairing, propensity)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Literal

from server.errors import Invalid

MAX_CHOICES = 4
SHARE = 0.2
MIN_TEMPERATURE = 0.7
SEEDS = 2**53
"""Seeds made here stay exact in JSON readers that know only doubles."""

Candidates = Literal[1, 2, "auto"]


class Purpose(StrEnum):
    """Why a reply was written."""

    SINGLE = "single"
    CHOICE = "choice"
    PAIR = "pair"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class PairingPolicy:
    """A segment's own say: how often `auto` becomes a pair, and how cold a pair may be drawn."""

    share: float = SHARE
    min_temperature: float = MIN_TEMPERATURE

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> PairingPolicy:
        """From `Segment.pairing`; what the row does not name keeps its default."""
        return cls(
            share=float(row.get("share", SHARE)),
            min_temperature=float(row.get("min_temperature", MIN_TEMPERATURE)),
        )


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the request asked for. `pinned` is true when an operator named the version."""

    version: int
    temperature: float
    candidates: Candidates = 1
    n: int = 1
    seed: int | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Draw:
    """One reply to be written: its index among the choices, the weights, the dice, and why."""

    position: int
    version: int
    seed: int
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class Plan:
    """What a turn will show. `propensity` is the probability with which it became this kind of pair."""

    draws: tuple[Draw, ...]
    temperature: float
    pairing: str | None = None
    propensity: float = 1.0

    @property
    def is_pair(self) -> bool:
        return self.pairing is not None


def plan(wishes: Wishes, policy: PairingPolicy, dice: Random) -> Plan:
    """Decide a turn. Raises Invalid when the wishes contradict each other.

    Both sides of a pair are drawn by the same version with neighbouring seeds, under the same sampling; only
    the order in which they stand is thrown. A request that names its seed gets the same plan every time; of a seed
    beyond `SEEDS` only the rest counts.
    """
    _refuse_contradictions(wishes)
    if wishes.seed is None:
        seed = dice.randrange(SEEDS)
    else:
        seed = wishes.seed % SEEDS
        dice = Random(seed)
    propensity = _propensity(wishes, policy)
    if propensity == 0 or dice.random() >= propensity:
        return _plain(wishes, seed)
    sides = [seed, seed + 1]
    dice.shuffle(sides)
    draws = tuple(Draw(i, wishes.version, side, Purpose.PAIR) for i, side in enumerate(sides))
    return Plan(draws, max(wishes.temperature, policy.min_temperature), "uniform", propensity)


def _refuse_contradictions(wishes: Wishes) -> None:
    if wishes.n > 1 and wishes.candidates != 1:
        raise Invalid("n above 1 gives plain choices and needs candidates 1", param="n")
    if wishes.pinned and wishes.candidates == 2:
        raise Invalid("a pinned version is never compared; ask for candidates 1", param="candidates")


def _propensity(wishes: Wishes, policy: PairingPolicy) -> float:
    """Probability of a pair: certain when asked for, the segment's share for `auto`, never greedy."""
    if wishes.candidates == 2:
        return 1.0
    if wishes.candidates == "auto" and wishes.temperature > 0 and not wishes.pinned:
        return policy.share
    return 0.0


def _plain(wishes: Wishes, seed: int) -> Plan:
    purpose = Purpose.PINNED if wishes.pinned else Purpose.CHOICE if wishes.n > 1 else Purpose.SINGLE
    draws = tuple(Draw(i, wishes.version, seed + i, purpose) for i in range(wishes.n))
    return Plan(draws, wishes.temperature)
