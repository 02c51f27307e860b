"""Versions promoted and rolled back under load: who notices, and how soon the new one speaks.

    python -m tests.bench.serving swap --models M --dtype bfloat16 --streams 32 --moves 100

Streams run all the time, first undisturbed, then while the champion changes. Only one version beside the champion stays
loaded, and each promotion is of another version than the last four: so every promotion reads its adapter from disk,
and every rollback finds its version in memory. A request sent as soon as a move is answered tells when the new version
speaks; every version is known by the mark that it leaves on its chunks. Afterwards every stored reply is scored again
under the version that it names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests.bench.serving import page, record, shapes
from tests.bench.serving.clients import Body, Stream, Wire
from tests.bench.serving.contestants import Hone, OverHttp, Setup
from tests.bench.serving.measures import gaps, milliseconds
from tests.bench.serving.processes import Cores
from tests.bench.serving.rescore import rescored
from tests.bench.serving.shapes import SHAPES
from tests.bench.serving.throughput import words
from tests.prove.swap import SWAP_WINDOW

NAME = "swap"
VERSIONS = 5
PAUSE = 2.0
"""Seconds between two moves."""
PROBES = 4
"""Places for the requests that look for the new version, so that they do not wait behind the streams."""


@dataclass
class Move:
    """One promotion or rollback. Moments are of the clients' clock."""

    kind: str
    version: int
    called: float
    answered: float
    spoke: float
    """When the first token of a reply by this version came."""


@dataclass
class Seen:
    """All that the clients saw."""

    streams: list[Stream] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    marks: dict[int, str] = field(default_factory=dict)
    steady_from: float = 0.0
    steady_until: float = 0.0
    rss_steady: float = 0.0
    """MiB before the first move …"""
    rss_early: float = 0.0
    """… and once every version has been promoted: from then on it must not grow."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=words, default=["S", "M"])
    parser.add_argument("--dtype", type=words, default=["float32", "bfloat16"])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--moves", type=int, default=100, help="promotions and rollbacks together")
    parser.add_argument("--steady", type=float, default=30.0, help="seconds before the first move")
    parser.add_argument("--tokens", type=int, default=64)


def main(options: argparse.Namespace) -> int:
    cores = Cores.first_two()
    cores.move_client()
    code, failed = record.fingerprint(), 0
    for model in options.models:
        for dtype in options.dtype:
            case = {"model": model, "dtype": dtype, "streams": options.streams, "moves": options.moves}
            if record.is_done(record.read(NAME, options.out), case, code=code):
                continue
            with tempfile.TemporaryDirectory(prefix="hone-bench-") as scratch:
                setup = Setup(SHAPES[model], dtype, VERSIONS, options.streams + PROBES, cores, Path(scratch))
                result = measured(setup, options)
            record.keep(NAME, case, result, code=code, folder=options.out)
            print(json.dumps(result, indent=1), flush=True)
            page.write(options.out)
            failed += result["failed_streams"]
    return 1 if failed else 0


def measured(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    server = Hone(keep_resident=1).start(setup)
    try:
        before = server.watch.rss_mib()
        seen = asyncio.run(run(server, setup, options))
        after = server.watch.rss_mib()
    finally:
        server.stop()
    again = rescored(setup.folder / "data", model=shapes.made(setup.shape), dtype=setup.dtype)
    return figures(seen) | again | memory(seen, before=before, after=after)


def memory(seen: Seen, *, before: float, after: float) -> dict[str, Any]:
    return {
        "rss_idle_mib": round(before),
        "rss_steady_mib": round(seen.rss_steady),
        "rss_early_mib": round(seen.rss_early),
        "rss_after_mib": round(after),
        "rss_growth": round(after / seen.rss_early - 1, 4),
    }


async def run(server: OverHttp, setup: Setup, options: argparse.Namespace) -> Seen:
    """Learn the marks, let the streams run, move."""
    seen, stop = Seen(), asyncio.Event()
    prober = Wire(server.url, key=server.key)
    for version in range(VERSIONS + 1):
        stream = await prober.stream(server.body(f"default@{version}", "hello", 1))
        if stream.error:
            raise RuntimeError(f"version {version} does not answer: {stream.error}")
        seen.marks[version] = stream.weights
    assert len(set(seen.marks.values())) == VERSIONS + 1, "versions leave marks of their own"
    clients = [
        asyncio.create_task(stream_until(server, setup, seen, stop, client=i, new_tokens=options.tokens))
        for i in range(options.streams)
    ]
    await asyncio.sleep(options.steady / 3)  # until the streams' joining is no longer in step
    seen.steady_from = time.perf_counter()
    await asyncio.sleep(options.steady)
    seen.steady_until, seen.rss_steady = time.perf_counter(), server.watch.rss_mib()
    for number in range(options.moves):
        # 1, back to 0, 2, back to 0 …: the version of each promotion was last used long ago.
        version = 0 if number % 2 else 1 + number // 2 % VERSIONS
        seen.moves.append(await move(server, prober, seen, version=version))
        await asyncio.sleep(PAUSE)
        if number < 2 * VERSIONS:
            seen.rss_early = server.watch.rss_mib()
    stop.set()
    await asyncio.gather(*clients)
    await prober.close()
    return seen


async def stream_until(
    server: OverHttp, setup: Setup, seen: Seen, stop: asyncio.Event, *, client: int, new_tokens: int
) -> None:
    """One client, reply after reply by whoever is champion."""
    wire = Wire(server.url, key=server.key)
    prompts = setup.shape.prompts(tokens=64, count=64, seed=f"swap {client}")
    for number in count():
        if stop.is_set():
            break
        stream = await wire.stream(server.body("default", prompts[number % len(prompts)], new_tokens))
        seen.streams.append(stream)
        if stream.error:
            await asyncio.sleep(0.2)  # a server that is gone must not be asked a thousand times a second
    await wire.close()


async def move(server: OverHttp, prober: Wire, seen: Seen, *, version: int) -> Move:
    """Promote, or roll back to the base, and ask at once until the wanted version answers."""
    kind = "promote" if version else "rollback"
    body: Body = {"reason": "measuring the swap"} | ({"version": version} if version else {})
    called = time.perf_counter()
    status, told = await prober.answer(f"/v1/segments/default/{kind}", body)
    if status != 200:
        raise RuntimeError(f"{kind} was answered {status}: {told}")
    answered = time.perf_counter()
    while time.perf_counter() - called < 60:
        stream = await prober.stream(server.body("default", "hello", 1))
        if stream.error:
            seen.streams.append(stream)
        elif stream.weights == seen.marks[version]:
            return Move(kind, version, called, answered, stream.arrivals[0])
    raise TimeoutError(f"version {version} did not speak within 60 s")


def figures(seen: Seen) -> dict[str, Any]:
    whole = [one for one in seen.streams if not one.error]
    failures = [one.error for one in seen.streams if one.error]
    steady = gaps_within(whole, [(seen.steady_from, seen.steady_until)])
    moving = gaps_within(whole, [(m.called - SWAP_WINDOW, m.spoke + SWAP_WINDOW) for m in seen.moves])
    from_disk = [m.spoke - m.called for m in seen.moves if m.kind == "promote"]
    in_memory = [m.spoke - m.called for m in seen.moves if m.kind == "rollback"]
    return {
        "streams_completed": len(whole),
        "failed_streams": len(failures),
        "failures": failures[:3],
        "versions_seen": len({one.weights for one in whole}),
        "steady_gap_p50_ms": milliseconds(steady, 0.50),
        "steady_gap_p99_ms": milliseconds(steady, 0.99),
        "moving_gap_p50_ms": milliseconds(moving, 0.50),
        "moving_gap_p99_ms": milliseconds(moving, 0.99),
        "longest_gap_ms": milliseconds(moving, 1.0),
        "disk_to_first_token_p50_ms": milliseconds(from_disk, 0.50),
        "disk_to_first_token_max_ms": milliseconds(from_disk, 1.0),
        "memory_to_first_token_p50_ms": milliseconds(in_memory, 0.50) if in_memory else None,
        "promote_answered_p50_ms": round(
            1000 * statistics.median(m.answered - m.called for m in seen.moves), 2
        ),
        "first_token_steady_p50_ms": milliseconds(
            [one.first for one in whole if seen.steady_from <= one.asked <= seen.steady_until], 0.50
        ),
    }


def gaps_within(streams: Sequence[Stream], windows: Sequence[tuple[float, float]]) -> list[float]:
    """Gaps between pieces of text that ended in one of the windows."""
    return [
        gap
        for one in streams
        for gap, ended in zip(gaps([one]), one.arrivals[1:], strict=True)
        if any(begin <= ended <= end for begin, end in windows)
    ]
