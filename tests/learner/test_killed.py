"""Real learner processes, killed and stopped in the middle of their work."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from tests.learner.crowd import prepare

ROOT = Path(__file__).resolve().parents[2]
LEASE_SECONDS = 6.0
"""Where the lease's end is waited for; elsewhere it is longer than any test, and ended by hand after a kill."""


class Learner:
    """`python -m learner once` over the installation in `folder`."""

    def __init__(self, folder: Path, *, lease_seconds: float = 600) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds
        with (folder / "learner.log").open("ab") as log:
            self.process = self._started(log)

    def _started(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
        return subprocess.Popen(
            [sys.executable, "-m", "learner", "once"],
            cwd=ROOT,
            env={
                **environment,
                "OMP_NUM_THREADS": "1",
                "HONE_DATA_DIR": str(self.folder),
                "HONE_MODEL": str(self.folder / "model"),
                "HONE_PROFILE": "tiny",
                "HONE_MIN_LABELS": "20",
                "HONE_LEARNER_THREADS": "1",
                "HONE_LEARNER_LEASE_SECONDS": str(self.lease_seconds),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def until(self, moment: str, *, patience: float = 120) -> None:
        """Wait for a file of the cycle's folder, named by a pattern, to appear."""
        deadline = time.monotonic() + patience
        while not list((self.folder / "cycles").glob(f"cyc_*/{moment}")):
            assert self.process.poll() is None, f"it ended before {moment}:\n{self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)

    def end(self) -> int:
        return self.process.wait(240)

    def kill(self) -> None:
        """End it at once, and its lease with it: nobody wants to wait for that."""
        self.process.send_signal(signal.SIGKILL)
        self.end()
        with closing(sqlite3.connect(self.folder / "hone.db")) as connection, connection:
            connection.execute("update lease set expires_at = heartbeat_at")

    def said(self) -> str:
        return (self.folder / "learner.log").read_text(errors="replace")[-4000:]


def published(folder: Path) -> dict[str, bytes]:
    """Every published file and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for root in ("adapters", "reward")
        for path in sorted((folder / root).rglob("*"))
        if path.is_file()
    }


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "hone.db")) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken") / "house"
    shutil.copytree(prepared, folder)
    learner = Learner(folder)
    assert learner.end() == 0, learner.said()
    return published(folder)


@pytest.fixture
def house(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "house"))


MOMENTS = {
    "collect": "",
    "reward": "collect.json",
    "ppo": "reward.json",
    "inside ppo": "ppo/state.pt",
    "judge": "ppo.json",
    "inside judge": "candidate/adapter_model.safetensors",
    "register": "judge.json",
}
QUICK = ("inside ppo", "register")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MOMENTS]
)
def test_a_learner_killed_in_any_step_ends_with_the_bytes_of_an_unbroken_run(
    name: str, house: Path, unbroken: dict[str, bytes]
) -> None:
    learner = Learner(house)
    learner.until(MOMENTS[name])
    learner.kill()
    assert rows(house, "select version from adapter") == []
    again = Learner(house)
    assert again.end() == 0, again.said()
    assert published(house) == unbroken
    assert rows(house, "select version, cycle_id is not null from adapter") == [(1, 1)]
    assert rows(house, "select count(*) from cycle") == [(1,)]


@pytest.mark.full
def test_a_learner_killed_again_and_again_still_ends_with_those_bytes(
    house: Path, unbroken: dict[str, bytes]
) -> None:
    for moment in ("collect.json", "reward.json", "ppo/state.pt", "ppo.json", "judge.json"):
        learner = Learner(house)
        learner.until(moment)
        learner.kill()
    assert Learner(house).end() == 0
    assert published(house) == unbroken


@pytest.mark.full
def test_a_learner_asked_to_stop_leaves_its_cycle_to_the_next(
    house: Path, unbroken: dict[str, bytes]
) -> None:
    learner = Learner(house)
    learner.until("ppo/state.pt")
    learner.process.send_signal(signal.SIGTERM)
    assert learner.end() == 1
    assert "goes on from here" in learner.said()
    assert rows(house, "select state from cycle") == [("running",)]
    assert Learner(house).end() == 0
    assert published(house) == unbroken


def stays_alone(folder: Path) -> None:
    """Nobody comes while it sleeps."""


def another_finishes(folder: Path) -> None:
    """Another learner takes the cycle over and finishes it while the first one sleeps."""
    other = Learner(folder)
    assert other.end() == 0, other.said()


@pytest.mark.parametrize("meanwhile", [stays_alone, pytest.param(another_finishes, marks=pytest.mark.full)])
def test_a_learner_stopped_past_its_lease_and_continued_publishes_nothing(
    house: Path, unbroken: dict[str, bytes], meanwhile: Callable[[Path], None]
) -> None:
    learner = Learner(house, lease_seconds=LEASE_SECONDS)
    learner.until("ppo/state.pt")
    learner.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(LEASE_SECONDS + 0.5)
        meanwhile(house)
        before = published(house)
    finally:
        learner.process.send_signal(signal.SIGCONT)
    assert learner.end() == 1
    assert "lease" in learner.said()
    assert published(house) == before
    if not before:
        assert rows(house, "select state from cycle") == [("running",)]
        assert Learner(house).end() == 0
    assert published(house) == unbroken
