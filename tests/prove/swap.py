"""The swap is invisible: sixteen streams go on while versions are promoted and rolled back, and every reply is true
to the version it names."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

from server.modeling import load_adapter, load_base, sequence_logprobs, use_adapter
from server.settings import DEMO_MODEL
from tests.planting import QUESTIONS, plant
from tests.prove.case import Case
from tests.running import RunningHone

CLIENTS = 16
SWAP_WINDOW = 1.0
"""Seconds around a promotion or rollback that count as its window."""


@dataclass
class Streams:
    """What the clients saw: when each chunk came, which turns they got, and what failed."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    """(when it ended, how long it was), in seconds, between two chunks of one stream."""
    turns: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def stream_until(hone: RunningHone, seen: Streams, stop: asyncio.Event, *, client: int) -> None:
    """One client, reply after reply."""
    headers = {"Authorization": f"Bearer {hone.key}"}
    async with httpx.AsyncClient(base_url=hone.url, headers=headers, timeout=60) as http:
        asked = 0
        while not stop.is_set():
            question = QUESTIONS[(client + asked) % len(QUESTIONS)]
            asked += 1
            body = {
                "model": "default",
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                "max_tokens": 96,
                "user": f"client-{client}",
            }
            try:
                async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    if answer.status_code != 200:
                        seen.failures.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                        continue
                    seen.turns.append(answer.headers["X-Hone-Turn-Id"])
                    await read_stream(answer, seen)
            except httpx.HTTPError as error:
                seen.failures.append(repr(error))


async def read_stream(answer: httpx.Response, seen: Streams) -> None:
    last, done = None, False
    async for line in answer.aiter_lines():
        if not line.startswith("data: "):
            continue
        done = line == "data: [DONE]"
        if '"error"' in line:
            seen.failures.append(line[:200])
        now = time.monotonic()
        if last is not None:
            seen.gaps.append((now, now - last))
        last = now
    if not done:
        seen.failures.append("a stream ended without [DONE]")


@dataclass
class Move:
    """One promotion or rollback: when it was called, and how long until a new request was served by its version."""

    kind: str
    version: int
    called: float
    seconds: float
    ended: float


async def move(hone: RunningHone, http: httpx.AsyncClient, *, kind: str, version: int) -> Move:
    called = time.monotonic()
    body: dict[str, Any] = {"reason": "proving the swap"}
    if kind == "promote":
        body["version"] = version
    (await http.post(f"/v1/segments/default/{kind}", json=body)).raise_for_status()
    while await version_that_answers(http) != version:
        if time.monotonic() - called > 30:
            raise TimeoutError(f"version {version} did not serve within 30 s")
    ended = time.monotonic()
    return Move(kind, version, called, ended - called, ended)


async def version_that_answers(http: httpx.AsyncClient) -> int:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
    answer = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()
    turn = (await http.get(f"/v1/turns/{answer['hone']['turn_id']}")).raise_for_status().json()
    return int(turn["replies"][0]["version"])


async def swap_under_streams(
    hone: RunningHone, versions: list[int], *, rounds: int
) -> tuple[Streams, list[Move]]:
    seen, stop, moves = Streams(), asyncio.Event(), []
    clients = [asyncio.create_task(stream_until(hone, seen, stop, client=i)) for i in range(CLIENTS)]
    headers = {"Authorization": f"Bearer {hone.key}"}
    async with httpx.AsyncClient(base_url=hone.url, headers=headers, timeout=60) as http:
        await asyncio.sleep(3)
        serving = 0
        for round_ in range(rounds):
            version = versions[round_ % len(versions)]
            moves.append(await move(hone, http, kind="promote", version=version))
            await asyncio.sleep(2)
            moves.append(await move(hone, http, kind="rollback", version=serving))
            await asyncio.sleep(2)
    stop.set()
    await asyncio.gather(*clients)
    return seen, moves


def gaps_around(seen: Streams, moves: list[Move]) -> tuple[float, float]:
    """(p99 of all gaps, longest gap in the windows of swaps), in milliseconds."""
    every = sorted(gap for _, gap in seen.gaps)
    inside = [
        gap
        for ended, gap in seen.gaps
        if any(m.called - SWAP_WINDOW <= ended <= m.ended + SWAP_WINDOW for m in moves)
    ]
    return every[int(len(every) * 0.99)] * 1000, max(inside) * 1000


def rescore(hone: RunningHone, turns: list[str]) -> dict[str, Any]:
    """Score every stored reply again, offline, under the version it names, and under the bare base."""
    rows = []
    with hone.client() as http:
        for turn in turns:
            stored = http.get(f"/v1/turns/{turn}").raise_for_status().json()
            rows += [(stored["prompt_token_ids"], r) for r in stored["replies"] if r["token_ids"]]
    off, moved = 0.0, []
    by_version: dict[int, list[tuple[list[int], dict[str, Any]]]] = {}
    for prompt, reply in rows:
        by_version.setdefault(reply["version"], []).append((prompt, reply))
    for version, mine in by_version.items():
        model = load_base(str(DEMO_MODEL), dtype="float32").model
        if version:
            model = load_adapter(model, "served", hone.data_dir / f"adapters/default/v{version:06d}")
        pairs = [(prompt, reply["token_ids"]) for prompt, reply in mine]
        with torch.no_grad():
            again = sequence_logprobs(model, pairs)
            if version:
                use_adapter(model, None, trainable=False)
                bare = sequence_logprobs(model, pairs)
                moved.append(
                    float(torch.cat([(a - b).abs() for a, b in zip(again, bare, strict=True)]).mean())
                )
        for (_, reply), scored in zip(mine, again, strict=True):
            off = max(off, float((scored - torch.tensor(reply["logprobs"])).abs().max()))
    return {
        "replies": len(rows),
        "by_version": {str(v): len(mine) for v, mine in sorted(by_version.items())},
        "largest_difference_nats": round(off, 6),
        "least_mean_distance_from_base_nats": round(min(moved), 4),
    }


def swap(folder: Path, *, rounds: int = 10) -> dict[str, Any]:
    hone = RunningHone(folder)
    hone.cli("db", "upgrade")
    versions = plant(folder, count=2, strength=0.08)
    with hone:
        seen, moves = asyncio.run(swap_under_streams(hone, versions, rounds=rounds))
        p99, longest = gaps_around(seen, moves)
        scored = rescore(hone, seen.turns)
    rollbacks = [m.seconds for m in moves if m.kind == "rollback"]
    result = {
        "streams_completed": len(seen.turns),
        "failed_requests": len(seen.failures),
        "failures": seen.failures[:3],
        "moves": len(moves),
        "gap_p99_ms": round(p99, 1),
        "longest_gap_in_swap_windows_ms": round(longest, 1),
        "rollback_to_served_median_s": round(statistics.median(rollbacks), 3),
        **scored,
    }
    result["holds"] = (
        not seen.failures
        and longest <= 3 * p99
        and scored["largest_difference_nats"] <= 1e-3
        and scored["least_mean_distance_from_base_nats"] >= 0.02
        and result["rollback_to_served_median_s"] < 0.5
    )
    return result


def cases() -> list[Case]:
    return [Case("sixteen-streams", 0, partial(swap))]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(swap(Path(scratch), rounds=2), indent=1))
