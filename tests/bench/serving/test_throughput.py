"""A whole run with a contestant that only pretends: order, resuming, and what happens when things break."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from tests.bench.serving import page, record, throughput
from tests.bench.serving.clients import Stream
from tests.bench.serving.contestants import Job, Setup
from tests.bench.serving.processes import CannotRun, Cores, Watch


class Pretending:
    """Starts, answers and stops without a server; writes down what it was asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.watch, self.command, self.version = Watch(os.getpid()), "pretend", "1"
        self.short = 0
        self.may_end_early = False
        self.refuses = ""

    def start(self, setup: Setup) -> Pretending:
        if self.refuses:
            raise CannotRun(self.refuses)
        self.log.append(f"{self.name} starts")
        return self

    async def run(self, job: Job) -> list[Stream]:
        if job.new_tokens != throughput.WARM_UP:
            self.log.append(f"{self.name} runs {len(job.prompts)}x{len(job.prompts[0])}")
        tokens = job.new_tokens - self.short
        arrivals = [1.0 + i for i in range(tokens)]
        return [
            Stream(0.0, arrivals, 1.0 + tokens, prompt_tokens=64, counted=tokens, finish="length")
            for mine in job.prompts
            for _ in mine
        ]

    def stop(self) -> None:
        self.log.append(f"{self.name} stops")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    log: list[str] = []
    both = {name: Pretending(name, log) for name in ("hone", "other")}
    monkeypatch.setattr(throughput, "CONTESTANTS", both)
    monkeypatch.setattr(Cores, "move_client", lambda self: None)
    monkeypatch.setattr(record, "fingerprint", lambda: "code.1")

    def once(*words: str) -> list[str]:
        parser = argparse.ArgumentParser()
        throughput.add_arguments(parser)
        given = (
            "--models S --dtype float32 --contestants hone,other --adapters 0 --prompts 64 --concurrency 1,4"
        )
        options = parser.parse_args([*given.split(), "--repeats", "2", "--replies", "1", *words])
        options.out = tmp_path
        log.clear()
        throughput.main(options)
        return list(log)

    once.both = both  # type: ignore[attr-defined]
    once.folder = tmp_path  # type: ignore[attr-defined]
    return once


def test_repeats_alternate_and_one_contestant_is_alive_at_a_time(run: Any) -> None:
    log = run()
    assert [word for word in log if "starts" in word] == [
        f"{n} starts" for n in ("hone", "other", "other", "hone")
    ]
    assert log[:4] == ["hone starts", "hone runs 1x2", "hone runs 4x2", "hone stops"]


def test_what_was_measured_is_not_measured_again(run: Any) -> None:
    run()
    lines = record.read("throughput", run.folder)
    assert len(lines) == 8
    assert run() == []
    assert run("--concurrency", "1,4,16") == [
        f"{name} {word}"
        for name in ("hone", "other", "other", "hone")
        for word in ("starts", "runs 16x2", "stops")
    ]


def test_a_cut_off_run_goes_on_where_it_stopped(run: Any) -> None:
    run()
    path = run.folder / "throughput.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert run() == [
        *("other starts", "other runs 4x2", "other stops"),
        *("other starts", "other runs 1x2", "other runs 4x2", "other stops"),
        *("hone starts", "hone runs 1x2", "hone runs 4x2", "hone stops"),
    ]


def test_few_streams_go_on_longer(run: Any) -> None:
    """One stream of two replies would be too short to count its CPU time in hundredths of a second."""
    assert [word for word in run("--replies", "8", "--repeats", "1") if word.startswith("hone runs")] == [
        "hone runs 1x8",
        "hone runs 4x2",
    ]


def test_wrong_counts_are_no_measurement(run: Any) -> None:
    run.both["other"].short = 1
    run()
    wrong = [line for line in record.read("throughput", run.folder) if line["contestant"] == "other"]
    assert all("63 new tokens instead of 64" in line["result"]["error"] for line in wrong)
    assert "failed: " in page.text(run.folder)


def test_a_sampled_reply_may_end_by_itself(run: Any) -> None:
    """Greedy replies are made so that none can; drawn ones cannot be."""
    run.both["hone"].short, run.both["hone"].may_end_early = 1, True
    run()
    ours = [line for line in record.read("throughput", run.folder) if line["contestant"] == "hone"]
    assert ours
    assert all(record.is_measured(line) for line in ours)


def test_a_refusal_stands_in_the_table_and_hides_nobody(run: Any) -> None:
    run.both["other"].refuses = "no such processor"
    assert not any("other" in word for word in run())
    text = page.text(run.folder)
    assert "cannot: no such processor" in text
    assert "| 0 | 4 | hone |" in text


def test_prompts_are_fresh_in_every_run() -> None:
    seen: list[str] = []

    class Asking(Pretending):
        async def run(self, job: Job) -> list[Stream]:
            seen.extend(prompt for mine in job.prompts for prompt in mine)
            return await super().run(job)

    from tests.bench.serving.shapes import S

    setup = Setup(S, "float32", 0, 4, Cores(0, 0), Path())
    for repeat in range(2):
        for concurrency in (1, 4):
            cell = throughput.Cell("S", "float32", 0, concurrency, 64, 64, 2)
            throughput.measured(Asking("x", []), setup, cell, repeat=repeat)
    assert len(seen) == len(set(seen)) == 20
