"""What the moments of many streams come to: rates, waits, and whether everybody did the work that was asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.serving.clients import Stream


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of them lie, one of them and not between two. Raises ValueError for none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("nothing was measured")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def milliseconds(values: Iterable[float], share: float) -> float:
    return round(1000 * quantile(values, share), 2)


def gaps(streams: Iterable[Stream]) -> list[float]:
    """Seconds between neighbouring pieces of text of one stream, of all streams."""
    return [b - a for one in streams for a, b in zip(one.arrivals, one.arrivals[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the server spent meanwhile."""

    cpu_seconds: float
    peak_mib: float


def figures(streams: Sequence[Stream], cost: Cost) -> dict[str, Any]:
    """The measures of one run, of streams that all came to their end."""
    tokens = sum(one.tokens for one in streams)
    seconds = max(one.ended for one in streams) - min(one.asked for one in streams)
    first, between = [one.first for one in streams], gaps(streams)
    return {
        "streams": len(streams),
        "tokens": tokens,
        "pieces": sum(len(one.arrivals) for one in streams),
        "counted_by": "server" if all(one.counted is not None for one in streams) else "pieces of text",
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "tokens_per_cpu_second": round(tokens / max(cost.cpu_seconds, 0.01), 2),
        "ttft_p50_ms": milliseconds(first, 0.50),
        "ttft_p95_ms": milliseconds(first, 0.95),
        "gap_p50_ms": milliseconds(between, 0.50),
        "gap_p99_ms": milliseconds(between, 0.99),
        "peak_mib": round(cost.peak_mib),
    }


def complaints(
    streams: Sequence[Stream], *, prompt_tokens: int, new_tokens: int, may_end_early: bool = False
) -> list[str]:
    """Why these streams are no measurement: a figure counts only when everybody did exactly the same work."""
    found = [one.error for one in streams if one.error]
    for one in streams:
        if one.error:
            continue
        if one.tokens != new_tokens and not (may_end_early and 0 < one.tokens < new_tokens):
            found.append(f"{one.tokens} new tokens instead of {new_tokens}")
        elif one.prompt_tokens not in (None, prompt_tokens):
            found.append(f"a prompt of {one.prompt_tokens} tokens instead of {prompt_tokens}")
        elif not one.arrivals:
            found.append("a reply without any text")
    return found
