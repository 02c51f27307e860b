"""Living together: what people who wait for replies notice while a cycle runs on the same machine.

A few clients stream one reply after another, first on an idle server, then from the moment a cycle is asked for
until it has ended, with the learner where `hone serve` puts it: a child process of low priority.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from learner.simulation.scripts import Script
from tests.prove.case import Case
from tests.prove.learns import CROWD, outcome
from tests.prove.unseen import pool
from tests.running import RunningHone

STREAMS = 4
IDLE_SECONDS, WARM_UP_SECONDS = 60.0, 5.0
TIME_OUT = 60.0
MOST_GAP_RATIO, MOST_FIRST_RATIO = 2.0, 3.0
BY_REQUEST = {"HONE_TRAIN_EVERY_VOTES": "1000000", "HONE_TRAIN_EVERY_HOURS": "10000"}
"""The cycle begins when it is asked for, not while the crowd still votes."""


@dataclass
class Latencies:
    """What the clients saw, in seconds."""

    first: list[float] = field(default_factory=list)
    """From the request to the first text."""
    gaps: list[float] = field(default_factory=list)
    """Between two pieces of text of one reply."""
    timeouts: int = 0
    failures: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "streams": len(self.first),
            "first_token_p50_ms": milliseconds(self.first, 0.50),
            "first_token_p95_ms": milliseconds(self.first, 0.95),
            "inter_token_p50_ms": milliseconds(self.gaps, 0.50),
            "inter_token_p95_ms": milliseconds(self.gaps, 0.95),
        }


@dataclass
class Memory:
    """The most that either process ever held, in MiB, as the kernel counts it."""

    server: int = 0
    learner: int = 0

    def look(self, pid: int) -> None:
        self.server = max(self.server, peak_of(pid))
        for child in psutil.Process(pid).children(recursive=True):
            self.learner = max(self.learner, peak_of(child.pid))


def peak_of(pid: int) -> int:
    """Highest resident size so far in MiB; 0 for a process that has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0
    )


def milliseconds(seconds: Sequence[float], quantile: float) -> float:
    every = sorted(seconds)
    return round(1000 * every[min(len(every) - 1, int(len(every) * quantile))], 1)


async def client(
    http: httpx.AsyncClient, seen: Latencies, stop: asyncio.Event, scripts: Sequence[Script], *, number: int
) -> None:
    """Reply after reply, without a pause between them."""
    while not stop.is_set():
        script = scripts[number % len(scripts)]
        number += STREAMS
        body = {
            "model": "default",
            "messages": list(script.messages),
            "stream": True,
            "seed": number,
            "metadata": {"hone_train": "false"},
        }
        try:
            await read(http, body, seen)
        except httpx.TimeoutException:
            seen.timeouts += 1
        except httpx.HTTPError as error:
            seen.failures.append(repr(error))
            await asyncio.sleep(0.2)  # a server that is gone must not be asked a thousand times a second


async def read(http: httpx.AsyncClient, body: dict[str, Any], seen: Latencies) -> None:
    asked, last, line = time.monotonic(), None, ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            seen.failures.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
            return
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith('data: {"error"'):
                seen.failures.append(line[:200])
            if not text_of(line):
                continue
            now = time.monotonic()
            if last is None:
                seen.first.append(now - asked)
            else:
                seen.gaps.append(now - last)
            last = now
    seen.failures.append("a stream ended without [DONE]")


def text_of(line: str) -> str:
    """What one line of a stream adds to the reply."""
    if not line.startswith("data: {"):
        return ""
    chunk = json.loads(line.removeprefix("data: "))
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))


async def listen(
    hone: RunningHone, scripts: Sequence[Script], until: Callable[[httpx.AsyncClient], Awaitable[None]]
) -> Latencies:
    """What the clients see while `until` runs."""
    seen, stop = Latencies(), asyncio.Event()
    headers = {"Authorization": f"Bearer {hone.key}"}
    async with httpx.AsyncClient(base_url=hone.url, headers=headers, timeout=TIME_OUT) as http:
        clients = [
            asyncio.create_task(client(http, seen, stop, scripts, number=number)) for number in range(STREAMS)
        ]
        try:
            await until(http)
        finally:
            stop.set()
            await asyncio.gather(*clients)
    return seen


async def whole_cycle(http: httpx.AsyncClient, *, pid: int, memory: Memory) -> None:
    """Ask for a cycle and wait for its end, with an eye on both processes."""
    asked = (await http.post("/v1/learner/cycles", json={})).raise_for_status().json()["id"]
    while True:
        memory.look(pid)
        row = (await http.get(f"/v1/learner/cycles/{asked}")).raise_for_status().json()
        if row["finished_at"] is not None:
            return
        await asyncio.sleep(1.0)


def together(
    folder: Path, *, crowd: Sequence[str] = CROWD, idle_seconds: float = IDLE_SECONDS, **environment: str
) -> dict[str, Any]:
    scripts, memory = pool(400), Memory()
    with RunningHone(folder, learner=True, **BY_REQUEST, **environment) as hone:
        hone.simulate(*crowd, "--taste", "friendly-brief", "--seed", "0")
        asyncio.run(listen(hone, scripts, lambda _: asyncio.sleep(WARM_UP_SECONDS)))
        idle = asyncio.run(listen(hone, scripts, lambda _: asyncio.sleep(idle_seconds)))
        busy = asyncio.run(listen(hone, scripts, partial(whole_cycle, pid=hone.pid, memory=memory)))
        cycle = outcome(hone.newest_cycle())
    found = ratios(idle, busy) | {
        "server_peak_mib": memory.server,
        "learner_peak_mib": memory.learner,
        **cycle,
    }
    return {"holds": not lacks(found), **found}


def ratios(idle: Latencies, busy: Latencies) -> dict[str, Any]:
    alone, beside = idle.figures(), busy.figures()
    return {
        "clients": STREAMS,
        "idle": alone,
        "busy": beside,
        "inter_token_p50_ratio": round(beside["inter_token_p50_ms"] / alone["inter_token_p50_ms"], 2),
        "first_token_p95_ratio": round(beside["first_token_p95_ms"] / alone["first_token_p95_ms"], 2),
        "timeouts": idle.timeouts + busy.timeouts,
        "failed_requests": len(idle.failures) + len(busy.failures),
        "failures": (idle.failures + busy.failures)[:3],
    }


def lacks(found: dict[str, Any]) -> list[str]:
    """What is not bearable, in words."""
    gap, first = found["inter_token_p50_ratio"], found["first_token_p95_ratio"]
    lacking = []
    if gap > MOST_GAP_RATIO:
        lacking.append(
            f"the inter-token p50 is {gap} times that of an idle server, {MOST_GAP_RATIO:g} are allowed"
        )
    if first > MOST_FIRST_RATIO:
        lacking.append(
            f"the first token's p95 is {first} times that of an idle server, {MOST_FIRST_RATIO:g} are"
        )
    if found["timeouts"] or found["failed_requests"]:
        lacking.append(f"{found['timeouts']} time-outs, {found['failed_requests']} failed requests")
    if not found["step_seconds"].get("ppo"):
        lacking.append(f"the cycle did not train: {found['reason']}")
    return lacking


def cases() -> list[Case]:
    return [Case("one-cycle", 0, partial(together))]
