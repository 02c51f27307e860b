"""How replies are written, seen from outside: how long, with lists, questions, emoji, exclamation marks.

Pure arithmetic on texts. Knows no taste, no votes and nothing of where the texts come from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from unicodedata import category, east_asian_width

LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,9}[.)])[ \t]+\S", re.MULTILINE)
"""As the chat page draws lists (`web/words.js`)."""
QUESTION = re.compile(r"\?(?!\w)|[？؟]")
"""Not the one inside an address."""
EXCLAMATION = re.compile(r"!(?![=\w])|！")
"""Not the one of `!=`."""
COLOURED = "\ufe0f"
"""Asks for the character before it as an emoji."""
FLAGS, PICTURES, EAST_ASIAN = (
    re.compile(f"[{first}-{last}]")
    for first, last in (("\U0001f1e6", "\U0001f1ff"), ("\U0001f300", "\U0001faff"), ("\u2e80", "\ua4ff"))
)


@dataclass(frozen=True, slots=True)
class Manner:
    """Over some replies: mean lengths, then the share of replies that use each thing."""

    tokens: float
    words: float
    lists: float
    questions: float
    emoji: float
    exclamations: float


def manner_of(texts: Sequence[str], tokens: Sequence[int]) -> Manner:
    """Of at least one reply; `tokens` are their lengths as the policy counts. Words are what blanks part."""
    assert len(texts) == len(tokens) > 0
    return Manner(
        tokens=fmean(tokens),
        words=fmean(len(text.split()) for text in texts),
        lists=fmean(bool(LIST_ITEM.search(text)) for text in texts),
        questions=fmean(bool(QUESTION.search(text)) for text in texts),
        emoji=fmean(has_emoji(text) for text in texts),
        exclamations=fmean(bool(EXCLAMATION.search(text)) for text in texts),
    )


def has_emoji(text: str) -> bool:
    """Whether anything in it is drawn as a small picture; a plain ✓ or ♥ is not."""
    return COLOURED in text or any(map(_is_emoji, text))


def _is_emoji(char: str) -> bool:
    """Outside the planes of pictures, those shown in colour by default are the wide symbols that no script owns."""
    if FLAGS.match(char) or PICTURES.match(char):
        return True
    return category(char) == "So" and east_asian_width(char) == "W" and not EAST_ASIAN.match(char)
