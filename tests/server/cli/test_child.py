"""A kept child comes back when it dies, and ends when it is told to."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli import child
from server.cli.child import Child

ENVIRONMENT = dict(os.environ)


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def eventually(holds: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_that_dies_is_started_again_ever_later(tmp_path: Path) -> None:
    log = tmp_path / "log"
    kept = Child(
        "x",
        python("import sys,time; open(sys.argv[1],'a').write(f'{time.monotonic()}\\n')", str(log)),
        ENVIRONMENT,
        first_pause=0.1,
    )
    kept.start()
    eventually(lambda: log.exists() and len(log.read_text().splitlines()) >= 4)
    kept.stop()
    times = [float(line) for line in log.read_text().splitlines()]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert gaps[0] >= 0.1
    assert gaps[2] >= 0.4
    lines = len(times)
    time.sleep(0.5)
    assert len(log.read_text().splitlines()) == lines


def test_a_killed_child_is_replaced() -> None:
    kept = Child("x", python("import time; time.sleep(60)"), ENVIRONMENT, first_pause=0.05)
    kept.start()
    try:
        eventually(lambda: kept.pid is not None)
        first = kept.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        eventually(lambda: kept.pid not in {None, first})
    finally:
        kept.stop()
    assert kept.pid is None


@pytest.fixture
def deaf(tmp_path: Path) -> Child:
    """A child that hears of no end, once it runs."""
    ready = tmp_path / "ready"
    code = "import signal,sys,time; signal.signal(15, signal.SIG_IGN); open(sys.argv[1],'w').close(); time.sleep(60)"
    kept = Child("x", python(code, str(ready)), ENVIRONMENT)
    kept.start()
    eventually(ready.exists)
    return kept


def seconds_to_stop(kept: Child) -> float:
    pid = kept.pid
    assert pid is not None
    began = time.monotonic()
    kept.stop()
    assert not is_alive(pid)
    return time.monotonic() - began


def test_stopping_asks_first_and_insists_later(deaf: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "PATIENCE_SECONDS", 0.5)
    assert 0.5 <= seconds_to_stop(deaf) < 5


def test_the_time_since_it_was_first_asked_counts(deaf: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replies of its parent had their time to end meanwhile; nobody waits for the child once more as long."""
    monkeypatch.setattr(child, "PATIENCE_SECONDS", 4.0)
    deaf.ask()
    time.sleep(2.5)
    deaf.ask()
    assert 0.5 <= seconds_to_stop(deaf) < 3.5


def test_a_parent_in_a_hurry_insists_soon(deaf: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "HURRIED_SECONDS", 0.2)
    deaf.hurry()
    assert seconds_to_stop(deaf) < 5


def test_a_child_is_beyond_the_reach_of_the_terminals_ctrl_c() -> None:
    kept = Child("x", python("import time; time.sleep(60)"), ENVIRONMENT)
    kept.start()
    try:
        eventually(lambda: kept.pid is not None)
        assert kept.pid is not None
        assert os.getpgid(kept.pid) != os.getpgid(0)
    finally:
        kept.stop()


def test_a_command_that_is_not_there_is_tried_again_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    kept = Child("learner", ["/no/such/program"], ENVIRONMENT, first_pause=0.01)
    kept.start()
    eventually(lambda: caplog.text.count("cannot be started") >= 2)
    kept.stop()


def test_stopping_before_starting_and_twice_is_harmless() -> None:
    kept = Child("x", python("pass"), ENVIRONMENT)
    kept.stop()
    kept.stop()
