"""A learner killed in every step ends with the bytes of an unbroken run; one that slept publishes nothing."""

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tests.prove.case import Case
from tests.prove.learns import CROWD
from tests.running import ROOT, RunningHone

MOMENTS = (
    "",
    "collect.json",
    "reward.json",
    "ppo/state.pt",
    "ppo.json",
    "candidate/adapter_model.safetensors",
    "judge.json",
)
"""Files of the cycle's folder at whose appearance the learner is killed: at the beginning of each step, and inside
those that leave something half-way. No pause after them: on a fast machine the step might be over."""
ONE_THREAD = {"HONE_LEARNER_THREADS": "1", "OMP_NUM_THREADS": "1"}


def voted(folder: Path) -> Path:
    """An installation with a crowd's votes and one requested cycle, and no server any more."""
    with RunningHone(folder, **ONE_THREAD) as hone:
        hone.simulate(*CROWD, "--taste", "friendly-brief", "--seed", "0")
        hone.post("/v1/learner/cycles", {})
    return folder


def start(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    with (folder / "learner.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "learner", "once"],
            cwd=ROOT,
            env={**inherited, **ONE_THREAD, "HONE_DATA_DIR": str(folder), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_for(folder: Path, moment: str, learner: subprocess.Popen[bytes]) -> None:
    while learner.poll() is None and not list((folder / "cycles").glob(f"cyc_*/{moment}")):
        time.sleep(0.01)
    assert learner.poll() is None, (folder / "learner.log").read_text()[-2000:]


def digests(folder: Path) -> dict[str, str]:
    """Every published file, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in ("adapters", "reward")
        for path in sorted((folder / root).rglob("*"))
        if path.is_file()
    }


def listed(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "hone.db")) as connection:
        return [version for (version,) in connection.execute("select version from adapter")]


def end_lease(folder: Path) -> None:
    """Nobody wants to wait for a dead learner's lease."""
    with closing(sqlite3.connect(folder / "hone.db")) as connection, connection:
        connection.execute("update lease set expires_at = heartbeat_at")


def killed_in_every_step(folder: Path) -> dict[str, Any]:
    prepared = voted(folder / "prepared")
    unbroken = Path(shutil.copytree(prepared, folder / "unbroken"))
    assert start(unbroken).wait() == 0, (unbroken / "learner.log").read_text()[-2000:]
    broken = Path(shutil.copytree(prepared, folder / "broken"))
    half_listed = 0
    for moment in MOMENTS:
        learner = start(broken)
        wait_for(broken, moment, learner)
        learner.send_signal(signal.SIGKILL)
        learner.wait()
        half_listed += len(listed(broken))
        end_lease(broken)
    last = start(broken).wait()
    same = digests(broken) == digests(unbroken)
    return {
        "holds": last == 0 and same and bool(listed(broken)) and not half_listed,
        "kills": len(MOMENTS),
        "same_bytes": same,
        "files": len(digests(unbroken)),
        "listed_while_broken": half_listed,
    }


def slept_past_its_lease(folder: Path) -> dict[str, Any]:
    house = voted(folder / "house")
    learner = start(house, HONE_LEARNER_LEASE_SECONDS="6")
    wait_for(house, "ppo/state.pt", learner)
    learner.send_signal(signal.SIGSTOP)
    time.sleep(8)
    learner.send_signal(signal.SIGCONT)
    code = learner.wait()
    return {
        "holds": code != 0 and not digests(house) and not listed(house),
        "exit_code": code,
        "published_files": len(digests(house)),
        "listed_versions": listed(house),
    }


def cases() -> list[Case]:
    return [
        Case("killed-in-every-step", 0, partial(killed_in_every_step)),
        Case("slept-past-its-lease", 0, partial(slept_past_its_lease)),
    ]
