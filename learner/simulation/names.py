"""Names nobody has heard before, so that only copying can recall them. Knows nothing of dialogues."""

from __future__ import annotations

import random
import zlib

_CLUSTERS = ("br", "ch", "cl", "dr", "fr", "gr", "kr", "ph", "pl", "sh", "st", "th", "tr")
_ONSETS = ("", *"bcdfghjklmnprstvwyz" * 3, *_CLUSTERS)
_VOWELS = (*"aeiouaeiouaeiouaeiou", "ai", "au", "ea", "ee", "ia", "ie", "oa", "ou", "y")
_CODAS = ("", "", "", *"lmnrstkx", "nd", "ck", "rt", "lla", "nn")

_FIRST_NAMES = (
    "Anna Maria John Peter Paul Emma Lisa Laura Sarah David Daniel Michael Thomas James Robert Mary Alice Bob "
    "Charlie Eve Julia Sophie Max Ben Tom Sam Alex Chris Nina Eva Leo Lucas Noah Mia Olivia Ella Amy Kate Jane "
    "Jack Harry George Oscar Hugo Omar Ali Fatima Yuki Chen Wei Priya Ravi Ivan Olga Carlos Diego Sofia Pedro"
)
COMMON = tuple(_FIRST_NAMES.split())
"""First names a stranger may well have: the demo model should not stumble over them."""


def syllable_name(rng: random.Random) -> str:
    """Two or three random syllables with a capital, such as "Tobika"."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 2, 3)))]
    return ("".join(syllables) + rng.choice(_CODAS)).capitalize()


def is_reserved(name: str) -> bool:
    """A fifth of all syllable names never occurs in training; held-out prompts use only those."""
    return zlib.crc32(name.lower().encode()) % 5 == 0


def draw_name(rng: random.Random, *, reserved: bool) -> str:
    while is_reserved(name := syllable_name(rng)) != reserved:
        pass
    return name
