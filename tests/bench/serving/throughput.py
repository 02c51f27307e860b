"""Tokens for many streams at once: Hone and its peers side by side, on the same core, asked by the same client.

    python -m tests.bench.serving throughput --models M --dtype bfloat16 --contestants hone,transformers
        --concurrency 1,4,16 --adapters 0,1,4 --repeats 3

One contestant at a time is alive. Repeats go round all contestants before the next begins, each round in another order,
so that whatever else the machine does meanwhile hits all alike. What has a line on this code is not measured again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tests.bench.serving import page, record
from tests.bench.serving.contestants import CONTESTANTS, NOT_BY_DEFAULT, Job, Server, Setup
from tests.bench.serving.measures import Cost, complaints, figures
from tests.bench.serving.processes import CannotRun, Cores
from tests.bench.serving.shapes import SHAPES

NAME = "throughput"
WARM_UP = 8
"""New tokens of the streams before anything is measured."""


@dataclass(frozen=True)
class Cell:
    """Everything that makes two runs comparable, but who ran and which repeat it was."""

    model: str
    dtype: str
    adapters: int
    concurrency: int
    prompt: int
    tokens: int
    rounds: int

    def case(self, contestant: str, repeat: int) -> dict[str, Any]:
        return {"contestant": contestant, **self.__dict__, "repeat": repeat}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = [name for name in CONTESTANTS if name not in NOT_BY_DEFAULT]
    parser.add_argument("--models", type=words, default=["S", "M"], help="S, M")
    parser.add_argument("--dtype", type=words, default=["float32", "bfloat16"])
    parser.add_argument("--contestants", type=words, default=listed, help=", ".join(CONTESTANTS))
    parser.add_argument("--concurrency", type=numbers, default=[1, 4, 16, 32], help="streams at once")
    parser.add_argument("--adapters", type=numbers, default=[0, 1, 4], help="0 is the bare base")
    parser.add_argument("--prompts", type=numbers, default=[64, 256], help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each reply")
    parser.add_argument("--rounds", type=int, default=2, help="replies that each client asks for, at least")
    parser.add_argument("--replies", type=int, default=8, help="of all clients, at least: few go on longer")
    parser.add_argument("--repeats", type=int, default=3)


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def main(options: argparse.Namespace) -> int:
    cores = Cores.first_two()
    cores.move_client()
    code = record.fingerprint()
    for model, dtype, adapters in product(options.models, options.dtype, options.adapters):
        cells = [
            Cell(
                model,
                dtype,
                adapters,
                concurrency,
                prompt,
                options.tokens,
                rounds=max(options.rounds, -(-options.replies // concurrency)),
            )
            for prompt, concurrency in product(options.prompts, sorted(options.concurrency))
        ]
        for repeat, name in turns(options.contestants, options.repeats):
            kept = record.read(NAME, options.out)
            missing = [cell for cell in cells if not record.is_done(kept, cell.case(name, repeat), code=code)]
            if missing:
                measure_all(name, missing, repeat=repeat, cores=cores, code=code, out=options.out)
                page.write(options.out)
    return 0


def turns(contestants: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Round after round, each beginning with another contestant."""
    for repeat in range(repeats):
        first = repeat % len(contestants)
        for name in [*contestants[first:], *contestants[:first]]:
            yield repeat, name


def measure_all(name: str, cells: Sequence[Cell], *, repeat: int, cores: Cores, code: str, out: Path) -> None:
    """Start a contestant, run every cell on it, stop it; a line for each, also when it did not come to that."""
    any_cell = cells[0]

    def keep(cell: Cell, result: dict[str, Any], **more: Any) -> None:
        record.keep(NAME, cell.case(name, repeat), result, code=code, folder=out, **more)
        told = result.get("tokens_per_cpu_second", result)
        print(f"{name} {json.dumps(cell.__dict__)} repeat {repeat}: {told}", flush=True)

    with tempfile.TemporaryDirectory(prefix="hone-bench-") as scratch:
        setup = Setup(
            shape=SHAPES[any_cell.model],
            dtype=any_cell.dtype,
            adapters=any_cell.adapters,
            most=max(cell.concurrency for cell in cells),
            cores=cores,
            folder=Path(scratch),
        )
        try:
            server = CONTESTANTS[name].start(setup)
        except CannotRun as refusal:
            for cell in cells:
                keep(cell, {"cannot": str(refusal)})
            return
        try:
            warm_up(server, setup)
            for cell in cells:
                result = measured(server, setup, cell, repeat=repeat)
                keep(cell, result, server=server.command, version=server.version)
        finally:
            server.stop()


def warm_up(server: Server, setup: Setup) -> None:
    """Let it allocate, compile and load adapters before anybody looks."""
    clients = min(setup.most, max(4, setup.adapters))
    asked = setup.shape.prompts(tokens=64, count=clients, seed="warm-up")
    asyncio.run(server.run(Job([[prompt] for prompt in asked], WARM_UP)))


def measured(server: Server, setup: Setup, cell: Cell, *, repeat: int) -> dict[str, Any]:
    """One run. Whatever goes wrong stands in the result: one broken run must not hide the others."""
    count = cell.concurrency * cell.rounds
    # Fresh prompts for every run: a prefix cache shall find nothing, as it would not with strangers' conversations.
    asked = setup.shape.prompts(
        tokens=cell.prompt, count=count, seed=f"{cell.concurrency} {cell.prompt} {repeat}"
    )
    job = Job([asked[i :: cell.concurrency] for i in range(cell.concurrency)], cell.tokens)
    server.watch.forget_peak()
    spent, began = server.watch.cpu_seconds(), time.monotonic()
    try:
        streams = asyncio.run(server.run(job))
        cost = Cost(server.watch.cpu_seconds() - spent, server.watch.peak_mib())
        if wrong := complaints(
            streams,
            prompt_tokens=cell.prompt,
            new_tokens=cell.tokens,
            may_end_early=server.may_end_early,
        ):
            return {"error": f"{len(wrong)} of {len(streams)} streams: {wrong[0]}"}
        return figures(streams, cost)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:600], "after_s": round(time.monotonic() - began)}
