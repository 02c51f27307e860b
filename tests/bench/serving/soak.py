"""Half an hour of everything at once, and nothing left behind: no error, no slot, no socket, no thread, no memory.

    python -m tests.bench.serving soak --models S --minutes 30

Streams run all the time beside clients that leave at random points, long prompts, and now and then a flood that is
larger than the queue. A 429 is a right answer to a flood; any other failure is an error of the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from tests.bench.serving import page, record
from tests.bench.serving.clients import Stream, Wire
from tests.bench.serving.contestants import Hone, OverHttp, Setup
from tests.bench.serving.processes import Cores
from tests.bench.serving.shapes import SHAPES
from tests.bench.serving.throughput import words

NAME = "soak"
RUNNING, WAITING = 16, 32
"""Places of the server and of its queue."""
FLOOD = 2 * (RUNNING + WAITING)
FLOOD_EVERY = 30.0
MOST_GROWTH = 0.05
"""Of resident memory, between the end of the first tenth and the end."""
PUT_AWAY = ("running", "waiting", "rows")
"""What `/readyz` counts of the engine, and must be nothing at rest."""
SETTLING = 15.0
"""Seconds that the server may take until it has put everything away."""
ADAPTERS, RESIDENT = 4, 2
"""How many are asked for, and how many stay loaded when nobody needs them."""
STREAMS, LEAVERS, LONG = 8, 6, 2
"""Clients of each kind."""


@dataclass
class Tally:
    """What became of the requests, by kind of client."""

    done: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """Answered 429: there was no place."""
    errors: list[str] = field(default_factory=list)
    error_count: int = 0

    def add(self, kind: str, stream: Stream) -> None:
        if stream.status == 429:
            self.refused += 1
        elif stream.error:
            self.error_count += 1
            self.errors = [*self.errors, f"{kind}: {stream.error}"][:5]
        else:
            self.done["left" if stream.left else kind] += 1


@dataclass(frozen=True)
class Holding:
    """What the server holds at a moment of rest."""

    files: int
    threads: int
    rss_mib: float
    held_mib: float
    """Of keys and values, by the engine's own count: finished replies are kept, so not nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=words, default=["S"])
    parser.add_argument("--dtype", type=words, default=["float32"])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)


def main(options: argparse.Namespace) -> int:
    cores = Cores.first_two()
    cores.move_client()
    code, held = record.fingerprint(), True
    for model in options.models:
        for dtype in options.dtype:
            case = {"model": model, "dtype": dtype, "minutes": options.minutes, "seed": options.seed}
            if record.is_done(record.read(NAME, options.out), case, code=code):
                continue
            with tempfile.TemporaryDirectory(prefix="hone-bench-") as scratch:
                result = measured(
                    Setup(SHAPES[model], dtype, ADAPTERS, RUNNING, cores, Path(scratch)), options
                )
            record.keep(NAME, case, result, code=code, folder=options.out)
            print(json.dumps(result, indent=1), flush=True)
            page.write(options.out)
            held &= not result["lacks"]
    return 0 if held else 1


def measured(setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    server = Hone(keep_resident=RESIDENT, HONE_MAX_WAITING=str(WAITING)).start(setup)
    log = setup.folder / "data" / "server.log"
    tally = Tally()
    seconds = 60 * options.minutes
    try:
        asyncio.run(mixed(server, setup, tally, seconds=seconds / 10, seed=options.seed))
        early, left_early = at_rest(server)
        asyncio.run(mixed(server, setup, tally, seconds=seconds * 9 / 10, seed=options.seed + 1))
        late, left = at_rest(server)
        leased = asyncio.run(still_leased(server))
        words_of_log = log.read_text(errors="replace")
    finally:
        server.stop()
    found = {
        "minutes": options.minutes,
        "replies": dict(sorted(tally.done.items())),
        "refused_429": tally.refused,
        "errors": tally.error_count,
        "first_errors": tally.errors,
        "tracebacks": words_of_log.count("Traceback"),
        "still_open": left_early | left,
        "still_leased": leased,
        "files": [early.files, late.files],
        "threads": [early.threads, late.threads],
        "rss_mib": [round(early.rss_mib, 1), round(late.rss_mib, 1)],
        "rss_growth": round(late.rss_mib / early.rss_mib - 1, 4),
        "held_mib": [round(early.held_mib, 1), round(late.held_mib, 1)],
    }
    return found | {"lacks": lacks(found)}


def lacks(found: dict[str, Any]) -> list[str]:
    """What is not as it must be, in words; nothing when all is."""
    lacking = []
    if found["errors"] or found["tracebacks"]:
        lacking.append(f"{found['errors']} errors, {found['tracebacks']} tracebacks")
    if found["still_open"]:
        lacking.append(f"not put away: {found['still_open']}")
    if found["still_leased"]:
        lacking.append(f"leased by nobody: versions {found['still_leased']}")
    for name, what in (("files", "open files"), ("threads", "threads")):
        early, late = found[name]
        if late > early:
            lacking.append(f"{what}: {early} before, {late} after")
    if found["rss_growth"] > MOST_GROWTH:
        lacking.append(f"memory grew by {found['rss_growth']:.1%}, {MOST_GROWTH:.0%} are allowed")
    return lacking


async def mixed(server: OverHttp, setup: Setup, tally: Tally, *, seconds: float, seed: int) -> None:
    """All kinds of clients at once, for so long."""
    until = time.perf_counter() + seconds
    kinds: list[tuple[str, int, Callable[[random.Random], Awaitable[None]]]] = []

    def endless(
        kind: str, *, tokens: tuple[int, int], leaves: bool
    ) -> Callable[[random.Random], Awaitable[None]]:
        async def client(rng: random.Random) -> None:
            wire = Wire(server.url, key=server.key)
            while time.perf_counter() < until:
                stream = await ask(server, setup, wire, rng, tokens=rng.randint(*tokens), leaves=leaves)
                tally.add(kind, stream)
                if stream.error:
                    await asyncio.sleep(0.2)  # refused or broken: not a thousand times a second
            await wire.close()

        return client

    async def floods(rng: random.Random) -> None:
        for number in count():
            await asyncio.sleep(min(FLOOD_EVERY, seconds / 3))
            if time.perf_counter() >= until:
                return
            await asyncio.gather(*(one_of_a_flood(rng.random(), number) for _ in range(FLOOD)))

    async def one_of_a_flood(draw: float, number: int) -> None:
        wire, rng = Wire(server.url, key=server.key), random.Random(f"{draw} {number}")
        tally.add("flood", await ask(server, setup, wire, rng, tokens=32, leaves=False))
        await wire.close()

    kinds += [("stream", STREAMS, endless("stream", tokens=(16, 128), leaves=False))]
    kinds += [("leaver", LEAVERS, endless("leaver", tokens=(16, 128), leaves=True))]
    kinds += [("long", LONG, endless("long", tokens=(512, 1500), leaves=False))]
    kinds += [("floods", 1, floods)]
    await asyncio.gather(
        *(client(random.Random(f"{kind} {i} {seed}")) for kind, many, client in kinds for i in range(many))
    )


async def ask(
    server: OverHttp, setup: Setup, wire: Wire, rng: random.Random, *, tokens: int, leaves: bool
) -> Stream:
    """One request, by the base or by one of the adapters."""
    (prompt,) = setup.shape.prompts(tokens=tokens, count=1, seed=rng.random())
    policy = rng.choice(["default", *server.policies])
    body = server.body(policy, prompt, rng.randint(8, 96)) | {"temperature": rng.choice([0.0, 0.8])}
    return await wire.stream(body, leave_after=rng.randint(0, 40) if leaves else None)


def at_rest(server: OverHttp) -> tuple[Holding, dict[str, int]]:
    """What the server holds once nobody asks any more, and what it had not put away by then.

    Places are counted where they are promised, rows where they are worked on: a slot may leak in either.
    """
    deadline = time.monotonic() + SETTLING
    while True:
        engine = httpx.get(server.url + "/readyz", timeout=10).json()["engine"]
        left = {name: engine[name] for name in PUT_AWAY if engine[name]}
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    # Sockets that clients have closed are put away a moment later.
    time.sleep(2.0)
    watch = server.watch
    return Holding(watch.open_files(), watch.threads(), watch.rss_mib(), engine["held_bytes"] / 2**20), left


async def still_leased(server: OverHttp) -> list[str]:
    """Versions that somebody seems to need although nobody asks.

    Asked one after the other, more versions than may stay, each must have been dropped by the time that it is asked for
    again, and loaded anew: which leaves a check in the registry. One that is leased for ever is never dropped.
    """
    wire = Wire(server.url, key=server.key)
    for policy in server.policies:
        await once(server, wire, policy)
    leased = []
    for policy in server.policies:
        before = loads(server, policy)
        await once(server, wire, policy)
        if loads(server, policy) == before:
            leased.append(policy)
    await wire.close()
    return leased


async def once(server: OverHttp, wire: Wire, policy: str) -> None:
    stream = await wire.stream(server.body(policy, "hello", 1))
    if stream.error:
        raise RuntimeError(f"{policy} does not answer any more: {stream.error}")
    await asyncio.sleep(0.3)  # dropping what is too much goes on beside the answer


def loads(server: OverHttp, policy: str) -> int:
    """How often the version was loaded so far."""
    headers = {"Authorization": f"Bearer {server.key}"}
    answer = httpx.get(f"{server.url}/v1/adapters/{policy.partition('@')[2]}", headers=headers, timeout=30)
    return len(answer.raise_for_status().json()["checks"])
