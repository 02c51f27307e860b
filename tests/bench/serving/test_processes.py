"""What `/proc` says of processes whose work is known."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.serving.processes import CannotRun, Cores, Process, Watch, environment, shown
from tests.running import ROOT

BUSY = "import time; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"
WAIT = "print('there', flush=True); input()\n"


def started(code: str, folder: Path) -> Process:
    command = [sys.executable, "-c", code]
    process = Process(command, log=folder / "log", env=environment(), pipes=True)
    assert process.process.stdout is not None
    assert process.process.stdout.readline() == b"there\n"
    return process


def test_cpu_seconds_count_the_process_its_threads_and_its_children(tmp_path: Path) -> None:
    threads = "import threading; t = threading.Thread(target=lambda: exec(work)); t.start(); t.join()"
    child = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', work + {end!r}])"
    code = f"work = {BUSY.format(seconds=0.3)!r}\n{threads}\n{child}\nimport time; time.sleep(0.01)\n"
    alive = started(code.format(end="input()") + "c.poll()\n" + WAIT, tmp_path)
    try:
        for _ in range(100):
            if alive.cpu_seconds() >= 0.6:
                break
            time.sleep(0.1)
        assert len(alive.tree()) == 2
        assert 0.6 <= alive.cpu_seconds() < 3.0
    finally:
        alive.stop()


def test_a_child_that_ended_still_counts(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY.format(seconds=0.3)!r}])\n"
    parent = started(code + WAIT, tmp_path)
    try:
        assert len(parent.tree()) == 1
        assert parent.cpu_seconds() >= 0.3
    finally:
        parent.stop()


def test_waiting_costs_nothing() -> None:
    watch = Watch(os.getpid())
    before = watch.cpu_seconds()
    time.sleep(0.2)
    assert watch.cpu_seconds() - before < 0.1


def test_the_peak_can_be_forgotten(tmp_path: Path) -> None:
    process = started("b = bytearray(96 << 20); b[::4096] = b[::4096]; del b\n" + WAIT, tmp_path)
    try:
        assert process.peak_mib() > process.rss_mib() + 80
        process.forget_peak()
        assert process.peak_mib() < process.rss_mib() + 16
        assert process.open_files() >= 3
        assert process.threads() == 1
    finally:
        process.stop()


def test_a_server_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)\n" + WAIT
    process = started(code, tmp_path)
    tree = process.tree()
    assert len(tree) == 2
    process.stop()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() and Watch(pid).rss_mib() for pid in tree):
            break
        time.sleep(0.05)
    assert not any(Watch(pid).rss_mib() for pid in tree)


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    process = Process(
        [sys.executable, "-c", "raise SystemExit('no such model')"], log=tmp_path / "log", env={}
    )
    with pytest.raises(CannotRun, match="no such model"):
        process.wait_until_answering("http://127.0.0.1:9/health")


def test_client_and_server_get_cores_of_their_own_where_there_are_two() -> None:
    cores = Cores.first_two()
    mine = os.sched_getaffinity(0)
    assert {cores.server, cores.client} <= mine
    assert (cores.server != cores.client) == (len(mine) > 1)
    said = subprocess.run(
        [*cores.prefix, sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str({cores.server})


def test_the_record_names_no_places_of_this_machine() -> None:
    assert shown([f"{ROOT}/x", "serve"]) == "./x serve"
