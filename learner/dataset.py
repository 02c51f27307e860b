"""What a cycle learns from, as plain values: comparisons, thumbs and prompts, already counted and weighted.

Made by `learner.collect`, read by the reward model, PPO and the judge. Holds token ids and voices (a user, or all the
anonymous ones of a client together), no text, and knows nothing of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """What a user's votes are for: one person never both trains a policy and judges it."""

    TRAIN = "train"
    JUDGE = "judge"


class Outcome(StrEnum):
    """What was said of two replies."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    BOTH_BAD = "both_bad"


class Example(NamedTuple):
    """A prompt and a response to it, as ids; the response holds its end-of-turn id if it ended by itself."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to one prompt and what `user` said of them; `first` was shown first."""

    first: Example
    second: Example
    outcome: Outcome
    user: str
    role: Role = Role.TRAIN
    weight: float = 1.0
    seq: int = 0

    @property
    def decided(self) -> bool:
        return self.outcome in (Outcome.FIRST, Outcome.SECOND)


@dataclass(frozen=True, slots=True)
class Thumb:
    """Up or down on one response."""

    example: Example
    up: bool
    user: str
    role: Role = Role.TRAIN
    weight: float = 1.0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt that rollouts may answer; `turn_id` says where it came from."""

    token_ids: tuple[int, ...]
    turn_id: str = ""
    user: str = ""
    role: Role = Role.TRAIN
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything one cycle reads. `counts` are for people: what was found, dropped and why."""

    comparisons: tuple[Comparison, ...]
    thumbs: tuple[Thumb, ...]
    prompts: tuple[PromptRow, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def of(self, role: Role) -> Dataset:
        """The votes of that role's users; the prompts stay whole."""
        return replace(
            self,
            comparisons=tuple(c for c in self.comparisons if c.role is role),
            thumbs=tuple(t for t in self.thumbs if t.role is role),
        )

    @property
    def users(self) -> tuple[str, ...]:
        """Everyone who voted, in a stable order."""
        return tuple(sorted({c.user for c in self.comparisons} | {t.user for t in self.thumbs}))

    @property
    def labels(self) -> int:
        return len(self.comparisons) + len(self.thumbs)
