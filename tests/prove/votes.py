"""Nothing is lost: votes survive SIGKILL, every batch of 2xx waits for a sync, and a slow disk does not stop them."""

import asyncio
import random
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tests.flood import Flood, post_all
from tests.prove.case import Case
from tests.running import RunningHone

SYNCS = "fsync,fdatasync,sync_file_range,msync"


async def make_replies(hone: RunningHone, count: int) -> list[str]:
    """`count` replies to vote on, one user each."""
    bodies = [
        {
            "model": "default",
            "messages": [{"role": "user", "content": f"Hello {i}"}],
            "max_tokens": 4,
            "user": f"u{i}",
        }
        for i in range(count)
    ]
    made = await post_all(hone.url, "/v1/chat/completions", bodies, key=hone.key, connections=16)
    assert len(made.with_status(200)) == count, made.answers[-1:]
    return [got["choices"][0]["reply_id"] for _, got in made.with_status(200)]


def thumbs(replies: list[str], *, count: int) -> list[dict[str, Any]]:
    return [
        {
            "kind": "thumb",
            "reply_id": replies[i % len(replies)],
            "value": "up" if i % 3 else "down",
            "comment": f"{i} é",
        }
        for i in range(count)
    ]


async def votes_then_kill(hone: RunningHone, *, kill_after: int, concurrent: int = 200) -> Flood:
    """Vote without end on `concurrent` connections; SIGKILL the server once `kill_after` answers are in."""
    replies = await make_replies(hone, 200)

    def watch(flood: Flood) -> None:
        if len(flood.answers) == kill_after:
            hone.kill()

    return await post_all(
        hone.url,
        "/v1/feedback",
        thumbs(replies, count=20_000),
        key=hone.key,
        connections=concurrent,
        on_answer=watch,
    )


def missing_after_restart(hone: RunningHone, flood: Flood) -> list[str]:
    """Ids that were answered 2xx and are not in the record of the restarted server."""
    hone.start()
    with hone.client() as client:
        acknowledged = [got["id"] for _, got in flood.with_status(201)]
        return [id_ for id_ in acknowledged if client.get(f"/v1/feedback/{id_}").status_code != 200]


def kill_during_votes(folder: Path, *, seed: int) -> dict[str, Any]:
    hone = RunningHone(folder, "--engine", "echo").start()
    kill_after = random.Random(seed).randint(1, 3000)
    flood = asyncio.run(votes_then_kill(hone, kill_after=kill_after))
    missing = missing_after_restart(hone, flood)
    sequence = [row["seq"] for row in all_feedback(hone)]
    gapless = sorted(sequence) == list(range(1, len(sequence) + 1))
    hone.stop()
    return {
        "holds": not missing and gapless and flood.broken > 0,
        "killed_after": kill_after,
        "acknowledged": len(flood.with_status(201)),
        "cut_off": flood.broken,
        "in_the_record": len(sequence),
        "missing": len(missing),
        "gapless": gapless,
    }


def all_feedback(hone: RunningHone) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = None
    with hone.client() as client:
        while True:
            params = {"limit": 200, **({"cursor": cursor} if cursor else {})}
            page = client.get("/v1/feedback", params=params).raise_for_status().json()
            rows += page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return rows


def each_answer_waits_for_a_sync(folder: Path, *, votes: int = 2000) -> dict[str, Any]:
    """Trace the server: between a vote's arrival and its 201 on the same socket a sync must have ended."""
    trace = folder / "trace"
    calls = f"{SYNCS},read,recvfrom,recvmsg,write,writev,sendto,sendmsg"
    hone = RunningHone(folder / "data", "--engine", "echo")
    hone.start("strace", "-f", "-ttt", "-T", "-s", "64", "-e", f"trace={calls}", "-o", str(trace))
    replies = asyncio.run(make_replies(hone, 100))
    asyncio.run(
        post_all(hone.url, "/v1/feedback", thumbs(replies, count=votes), key=hone.key, connections=50)
    )
    hone.stop()
    answered, unsynced, syncs = read_trace(trace)
    return {
        "holds": answered >= votes and unsynced == 0,
        "votes_answered": answered,
        "answered_without_a_sync": unsynced,
        "syncs": syncs,
        "votes_per_sync": round(answered / max(syncs, 1), 1),
    }


def read_trace(path: Path) -> tuple[int, int, int]:
    """(votes answered 201, of these without a completed sync since their arrival, syncs).

    Time is the order of lines. A call that another thread interrupts is written as `<unfinished …>` and later
    `<… resumed>`; a sync counts where it ends, an arrival and an answer where their bytes are printed.
    """
    line_of_arrival: dict[str, int] = {}
    last_sync, syncs, answered, unsynced = -1, 0, 0, 0
    pending: dict[str, str] = {}
    with path.open(errors="replace") as lines:
        for number, line in enumerate(lines):
            thread = line.split(" ", 1)[0]
            if re.search(rf"(?:{SYNCS.replace(',', '|')})(?:\(\d+\)| resumed>\)).* = 0", line):
                last_sync, syncs = number, syncs + 1
            call = re.search(r"(?:read|recvfrom|recvmsg|write|writev|sendto|sendmsg)\((\d+)", line)
            if call:
                pending[thread] = call[1]
            fd = call[1] if call else pending.get(thread)
            if fd is None:
                continue
            if "POST /v1/feedback" in line:
                line_of_arrival[fd] = number
            elif "HTTP/1.1 201" in line and fd in line_of_arrival:
                answered += 1
                unsynced += last_sync < line_of_arrival.pop(fd)
    return answered, unsynced, syncs


def throughput(folder: Path, *, added_ms: float, votes: int = 20_000) -> dict[str, Any]:
    """Votes per second over HTTP, each of them on disk before its 2xx, with a delay added to every sync."""
    hone = RunningHone(folder, "--engine", "echo")
    prefix: list[str] = []
    if added_ms:
        delay = f"inject={SYNCS}:delay_exit={int(added_ms * 1000)}"
        prefix = ["strace", "-f", "--seccomp-bpf", "-e", f"trace={SYNCS}", "-e", delay, "-o", "/dev/null"]
    hone.start(*prefix)
    replies = asyncio.run(make_replies(hone, 500))
    rates = []
    for _ in range(3):
        bodies = thumbs(replies, count=votes // 3)
        flood = asyncio.run(post_all(hone.url, "/v1/feedback", bodies, key=hone.key, connections=200))
        assert len(flood.with_status(201)) == len(bodies)
        rates.append(len(bodies) / flood.seconds)
    hone.stop()
    rates.sort()
    return {
        "holds": rates[1] >= 1000,
        "added_ms_per_sync": added_ms,
        "votes_per_second": [round(r) for r in rates],
    }


def cases() -> list[Case]:
    assert shutil.which("strace"), "strace is needed: it counts syncs and slows them down"
    return [
        *(Case(f"sigkill-{seed}", seed, partial(kill_during_votes, seed=seed)) for seed in range(20)),
        Case("sync-before-2xx", 0, each_answer_waits_for_a_sync),
        Case("throughput", 0, partial(throughput, added_ms=0)),
        Case("throughput-slow-disk", 0, partial(throughput, added_ms=5)),
    ]
