"""Names and moments of rows: UUIDv7 with a prefix, and the wall clock in UTC.

Ids sort roughly by time, but nothing relies on it: what must not miss a row reads by `FeedbackEvent.seq`.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime


def new_id(prefix: str) -> str:
    """`new_id("turn")` -> `turn_0193…`: 48 bits of milliseconds, then 74 random bits (RFC 9562, version 7)."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds & (1 << 48) - 1) << 80 | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    return f"{prefix}_{bits:032x}"


def now() -> datetime:
    """Now in UTC, by this machine's wall clock."""
    return datetime.now(UTC)
