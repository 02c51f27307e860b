"""What the API itself costs, with nobody behind it who thinks: Hone's echo engine, and LiteLLM's proxy with a mock.

    python -m tests.bench.serving overhead --rate 200 --seconds 20 --repeats 3

Neither has a model: what a request takes is what the server adds to it. At a fixed rate each request counts from the
moment at which it was due. Hone writes every turn and every vote down before it answers; the proxy keeps nothing. What
of that is the disk's is seen beside it: how long a sync takes, and the same with the record in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench.serving import page, record, venvs
from tests.bench.serving.clients import CHAT, Answer, Body, open_loop
from tests.bench.serving.contestants import version_of
from tests.bench.serving.measures import milliseconds
from tests.bench.serving.processes import CannotRun, Cores, Process, Watch, environment, free_port, shown
from tests.bench.serving.throughput import turns, words
from tests.flood import post_all
from tests.prove.votes import make_replies, thumbs
from tests.running import RunningHone

NAME = "overhead"
VOTERS, VOTING = 500, 200
"""Replies that are voted on, and connections that vote at once."""
MEMORY = Path("/dev/shm")
SYNCS = 50
REPLY = "It is the proxy itself that is measured here, with a reply of a few words."


@dataclass
class Api:
    """A server to be asked for whole answers."""

    url: str
    watch: Watch
    stop: Callable[[], None]
    command: str
    version: str
    key: str = ""
    hone: RunningHone | None = None


def start_hone(cores: Cores, folder: Path) -> Api:
    hone = RunningHone(folder / "data", "--engine", "echo", **environment(HONE_KEY_RATE="0"))
    hone.start(*cores.prefix)
    command = "hone serve --no-learner --engine echo"
    return Api(hone.url, Watch(hone.pid), hone.stop, command, "hone", key=hone.key, hone=hone)


def start_hone_in_memory(cores: Cores, folder: Path) -> Api:
    """The same where a sync takes no time: what is Hone's own of what a request takes, and not the disk's."""
    if not MEMORY.is_dir():
        raise CannotRun(f"there is no {MEMORY}")
    scratch = tempfile.TemporaryDirectory(prefix="hone-bench-", dir=MEMORY)
    api = start_hone(cores, Path(scratch.name))

    def stop() -> None:
        with scratch:
            api.stop()

    return replace(api, stop=stop, command=f"{api.command} (data in {MEMORY})")


def start_litellm(cores: Cores, folder: Path) -> Api:
    """One worker, like Hone's one; no database, no key, no cache: the least that it can be asked to do."""
    python, port = venvs.python_of("litellm"), str(free_port())
    mock = {"model": "openai/mock", "api_key": "none", "mock_response": REPLY}
    config = folder / "litellm.yaml"
    # JSON is YAML, too.
    config.write_text(json.dumps({"model_list": [{"model_name": "default", "litellm_params": mock}]}))
    command = [str(python), str(python.with_name("litellm")), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", port, "--num_workers", "1", "--telemetry", "False"]
    process = Process(
        [*cores.prefix, *command],
        log=folder / "server.log",
        env=environment(LITELLM_LOG="ERROR", LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY="true"),
    )
    url = f"http://127.0.0.1:{port}"
    process.wait_until_answering(url + "/health/liveliness")
    said = shown(process.command).replace(str(folder), "FOLDER")
    return Api(url, process, process.stop, said, f"litellm {version_of(python, 'litellm')}")


STARTS: dict[str, Callable[[Cores, Path], Api]] = {
    "hone": start_hone,
    "hone-in-memory": start_hone_in_memory,
    "litellm": start_litellm,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contestants", type=words, default=[*STARTS], help=", ".join(STARTS))
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second, at the fixed rate")
    parser.add_argument("--seconds", type=float, default=20.0, help="at the fixed rate")
    parser.add_argument("--clients", type=int, default=64, help="at once, without a fixed rate")
    parser.add_argument("--requests", type=int, default=4000, help="without a fixed rate")
    parser.add_argument("--votes", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)


def main(options: argparse.Namespace) -> int:
    cores = Cores.first_two()
    cores.move_client()
    code = record.fingerprint()
    amounts = ("rate", "seconds", "clients", "requests", "votes")
    for repeat, name in turns(options.contestants, options.repeats):
        case = {"contestant": name, **{one: getattr(options, one) for one in amounts}, "repeat": repeat}
        if record.is_done(record.read(NAME, options.out), case, code=code):
            continue
        result, more = run(name, options, cores)
        record.keep(NAME, case, result, code=code, folder=options.out, **more)
        print(name, repeat, json.dumps(result), flush=True)
        page.write(options.out)
    return 0


def run(name: str, options: argparse.Namespace, cores: Cores) -> tuple[dict[str, Any], dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="hone-bench-") as scratch:
        try:
            api = STARTS[name](cores, Path(scratch))
        except CannotRun as refusal:
            return {"cannot": str(refusal)}, {}
        try:
            result = measured(api, options)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:600]}
        finally:
            api.stop()
        return result, {"server": api.command, "version": api.version}


def chat(number: int) -> Body:
    """A short question, never twice the same."""
    return {"model": "default", "messages": [{"role": "user", "content": f"What is {number} to you?"}]}


def measured(api: Api, options: argparse.Namespace) -> dict[str, Any]:
    ask = post_all(api.url, CHAT, [chat(i) for i in range(200)], key=api.key, connections=8)
    if wrong := [got for _, status, got in asyncio.run(ask).answers if status != 200]:
        raise RuntimeError(f"it does not answer: {wrong[0]}")
    spent = api.watch.cpu_seconds()
    answers = asyncio.run(
        open_loop(api.url, CHAT, chat, rate=options.rate, seconds=options.seconds, key=api.key)
    )
    result = at_fixed_rate(answers, cpu_seconds=api.watch.cpu_seconds() - spent)
    bodies = [chat(i) for i in range(options.requests)]
    flood = asyncio.run(post_all(api.url, CHAT, bodies, key=api.key, connections=options.clients))
    result["closed_failed"] = len(bodies) - len(flood.with_status(200))
    result["closed_per_second"] = round(len(flood.with_status(200)) / flood.seconds, 1)
    if api.hone is not None:
        result["votes_per_second"] = round(votes_per_second(api.hone, options.votes), 1)
        result["sync_ms"] = sync_ms(api.hone.data_dir)
    return result | {"peak_mib": round(api.watch.peak_mib())}


def sync_ms(folder: Path) -> float:
    """Median time of a sync of one page: every reply waits for one before its first token, and for one at its end."""
    taken = []
    with (folder / "sync.bench").open("wb", buffering=0) as out:
        for _ in range(SYNCS):
            out.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(out.fileno())
            taken.append(time.perf_counter() - began)
    return milliseconds(taken, 0.50)


def at_fixed_rate(answers: list[Answer], *, cpu_seconds: float) -> dict[str, Any]:
    good = [one.seconds for one in answers if one.status == 200]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "added_p50_ms": milliseconds(good, 0.50),
        "added_p99_ms": milliseconds(good, 0.99),
        "cpu_ms_per_request": round(1000 * cpu_seconds / len(answers), 3),
    }


def votes_per_second(hone: RunningHone, count: int) -> float:
    """Each of them on disk before its 201."""
    replies = asyncio.run(make_replies(hone, VOTERS))
    bodies = thumbs(replies, count=count)
    flood = asyncio.run(post_all(hone.url, "/v1/feedback", bodies, key=hone.key, connections=VOTING))
    if len(flood.with_status(201)) != count:
        raise RuntimeError(f"{count - len(flood.with_status(201))} of {count} votes were not taken")
    return count / flood.seconds
