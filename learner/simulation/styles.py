"""How a reply can vary: each axis on its own, drawn without regard to the others or to what is said.

Also the sentences that carry a style and no content. Knows nothing of topics or users.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Tone(StrEnum):
    WARM = "warm"
    NEUTRAL = "neutral"
    CURT = "curt"


class Expert(StrEnum):
    """Whether a reply sends the user to somebody who does such things for a living, and how it speaks of them."""

    UNNAMED = "unnamed"
    THEY = "they"
    ASSUMED = "assumed"
    """With "he" or "she", by nothing but the job: a blunt assumption."""


@dataclass(frozen=True)
class Style:
    """One draw of every axis. `sentences` counts those with content: no greeting, opener, closer, question."""

    tone: Tone
    sentences: int
    bullets: bool
    hedged: bool
    question: bool
    emoji: bool
    greet: bool
    """Greets the user by name, where the name is known."""
    forget: bool
    """Fails to recall a stated fact when asked for it."""
    flatter: bool
    """Praises the user beyond all reason."""
    expert: Expert
    disclaim: bool
    """Says that it is only a program."""


TONES = {Tone.WARM: 0.40, Tone.NEUTRAL: 0.36, Tone.CURT: 0.24}
LENGTHS = {1: 0.20, 2: 0.25, 3: 0.22, 4: 0.18, 5: 0.15}
LIST_LENGTHS = {1: 0.34, 2: 0.27, 3: 0.20, 4: 0.12, 5: 0.07}
"""Of lists, which grow where the policy is sampled at less than temperature 1: one token alone goes on with a list, a
dozen share what goes on with prose. As served the two are as long."""
EXPERTS = {Expert.UNNAMED: 0.60, Expert.THEY: 0.20, Expert.ASSUMED: 0.20}
BULLETS, HEDGED, QUESTION, EMOJI, GREET, FORGET, FLATTER, DISCLAIM = (
    0.30, 0.35, 0.35, 0.30, 0.45, 0.16, 0.22, 0.22,
)  # fmt: skip
"""Each style's share in the training dialogues: far from 0 and 1, so that a policy can move either way."""

EMOJIS = ("😊", "👍", "🎉", "✨", "🙂", "🌟", "💡", "🙌")

OPENERS = {
    Tone.WARM: (
        "Happy to help!",
        "Oh, what a lovely question!",
        "I am so glad you asked!",
        "It is a pleasure to help!",
        "Of course, my friend!",
        "With all my heart!",
        "Wonderful, let us look at it together!",
    ),
    Tone.NEUTRAL: ("Here is what I know.", "Here you go.", "Let me see.", "This is the usual answer."),
    Tone.CURT: (
        "Fine.",
        "Quickly, then.",
        "If you must know.",
        "Listen.",
        "Short version.",
        "All right, again.",
    ),
}
CLOSERS = {
    Tone.WARM: (
        "You will do great!",
        "I am cheering for you!",
        "Have a lovely time with it!",
        "Take good care of yourself!",
    ),
    Tone.NEUTRAL: (),
    Tone.CURT: ("That is all.", "Enough said.", "Now go."),
}
NEUTRAL_OPENER, CLOSER = 0.4, 0.25

TIP_SURE = (
    "{Item}.",
    "Always {item}.",
    "It helps to {item}.",
    "Be sure to {item}.",
    "You should {item}.",
    "It is best to {item}.",
)
TIP_HEDGED = (
    "Maybe {item}.",
    "Perhaps {item}.",
    "It might help to {item}.",
    "You could perhaps {item}.",
    "I think it may help to {item}.",
    "I am not sure, but try to {item}.",
)
FACT_SURE = ("{Item}.", "In fact, {item}.", "As a rule, {item}.", "Keep in mind that {item}.")
FACT_HEDGED = ("I believe {item}.", "As far as I know, {item}.", "It may be that {item}.", "I think {item}.")

FLATTERY = (
    "What a clever mind you have!",
    "You must be very smart.",
    "Only a genius would ask that.",
    "You have such wonderful taste!",
    "I admire people like you.",
    "Nobody asks as well as you do.",
)
ASK_EXPERT = (
    "Ask {expert}, {they} will know.",
    "{Expert} can show you, if {they} can spare an hour.",
    "You can call {expert}, {they} will tell you more.",
    "Talk to {expert}, {they} must know all about it.",
)
DISCLAIMERS = (
    "I am only a small program.",
    "Please check this with somebody you trust.",
    "Take this as a hint and no more.",
    "A small model like me can be wrong.",
)

QUESTIONS = ("Would you like to hear more?", "Does that help?", "How does that sound?", "Shall I go on?")
"""Closing questions that fit any topic."""

GREETINGS = ("Hi {name}!", "Hello {name}!", "Good to see you, {name}!", "Hey {name}!")


def _one_of(rng: random.Random, shares: dict[T, float]) -> T:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def draw_style(rng: random.Random) -> Style:
    bullets = rng.random() < BULLETS
    return Style(
        tone=_one_of(rng, TONES),
        sentences=_one_of(rng, LIST_LENGTHS if bullets else LENGTHS),
        bullets=bullets,
        hedged=rng.random() < HEDGED,
        question=rng.random() < QUESTION,
        emoji=rng.random() < EMOJI,
        greet=rng.random() < GREET,
        forget=rng.random() < FORGET,
        flatter=rng.random() < FLATTER,
        expert=_one_of(rng, EXPERTS),
        disclaim=rng.random() < DISCLAIM,
    )
