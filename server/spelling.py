"""One token by itself: the text that it shows and the bytes that it stands for.

A token may hold a part of a character only. Its text then reads U+FFFD, but its vocabulary entry still says the
bytes, in one of two spellings: `<0xE6>`, or the letters of a byte-level vocabulary. Knows nothing of conversations.
"""

from __future__ import annotations

import re
from typing import NamedTuple

BROKEN = "\ufffd"
ONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling(NamedTuple):
    """A token as people read it, and its bytes; None where there are none, or nobody can say them."""

    text: str
    raw: bytes | None


def spell(text: str, *, entry: str) -> Spelling:
    """The token that shows as `text` and stands in the vocabulary as `entry`."""
    if BROKEN not in text:
        return Spelling(text, text.encode())
    raw = _unspell(entry)
    return Spelling(text, raw if raw is not None and raw.decode(errors="replace") == text else None)


def _unspell(entry: str) -> bytes | None:
    if one := ONE_BYTE.fullmatch(entry):
        return bytes([int(one[1], 16)])
    if all(letter in BYTE_OF for letter in entry):
        return bytes(BYTE_OF[letter] for letter in entry)
    return None


def _byte_of() -> dict[str, int]:
    """How byte-level vocabularies write bytes, after GPT-2: printable ones as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_of()
