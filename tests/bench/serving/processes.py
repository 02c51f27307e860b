"""Servers as the kernel sees them: pinned to a core, what they cost in CPU time and memory, and their end.

Everything is read from `/proc`: Linux only. A server is its process and all that it started.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.running import ROOT

TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 300.0
"""Seconds that a server may take until it answers."""


class CannotRun(Exception):
    """Why a contestant takes no part: the reason stands in the table in place of its figures."""


class Cores(NamedTuple):
    """Where the server runs and where the client does: two cores, or one for both when there is no other."""

    server: int
    client: int

    @classmethod
    def first_two(cls) -> Cores:
        mine = sorted(os.sched_getaffinity(0))
        return cls(mine[0], mine[1] if len(mine) > 1 else mine[0])

    def move_client(self) -> None:
        """From here on this process, all its threads to come included, runs on the client's core."""
        os.sched_setaffinity(0, {self.client})

    @property
    def prefix(self) -> list[str]:
        """What pins a command to the server's core."""
        return ["taskset", "-c", str(self.server)]


class Watch:
    """A running process and its descendants, read from `/proc` whenever asked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def tree(self) -> list[int]:
        """The process and everything below it, as far as it still runs."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                parents.setdefault(int(fields[PARENT]), []).append(int(entry.name))
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """User and system time of all threads of all of them; of ended children too, once somebody waited for them."""
        ticks = 0
        for pid in self.tree():
            if fields := _stat(pid):
                ticks += sum(int(fields[field]) for field in CPU_TIMES)
        return ticks / TICK

    def peak_mib(self) -> float:
        """The most memory that was resident since `forget_peak`, each process by itself, added up."""
        return sum(_status(pid, "VmHWM") for pid in self.tree()) / 1024

    def rss_mib(self) -> float:
        return sum(_status(pid, "VmRSS") for pid in self.tree()) / 1024

    def forget_peak(self) -> None:
        """Let the peak begin anew at what is resident now."""
        for pid in self.tree():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def open_files(self) -> int:
        """File descriptors of the process itself, sockets included."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        return _status(self.pid, "Threads")


PARENT, CPU_TIMES = 1, (11, 12, 13, 14)
"""Places in `/proc/PID/stat`, counted behind the name: parent; user, system, and both of children that ended."""


def _stat(pid: int) -> list[str] | None:
    """The fields behind the name, which may itself hold spaces and brackets; nothing of a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _status(pid: int, name: str) -> int:
    """A number of `/proc/PID/status`; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name + ":")), 0)


def environment(**more: str) -> dict[str, str]:
    """This process's, without what would speak to Hone, and with one thread for whatever computes."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return mine | quiet | single | more


def free_port() -> int:
    """A port that nobody listens on right now; the next to ask may take it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def shown(command: Sequence[str]) -> str:
    """A command as the record may keep it: no places of this machine."""
    return " ".join(command).replace(str(ROOT), ".")


class Process(Watch):
    """A server in a process group of its own. Its words go to a file, and into the error when it does not start."""

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str], pipes: bool = False
    ) -> None:
        self.command, self.log = list(command), log
        log.parent.mkdir(parents=True, exist_ok=True)
        pipe = subprocess.PIPE if pipes else None
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=dict(env),
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or out,
                stderr=out,
                start_new_session=True,
            )
        super().__init__(self.process.pid)

    def wait_until_answering(self, url: str, *, patience: float = PATIENCE) -> None:
        """Until a GET of `url` gives 200. Raises CannotRun with the last words of a server that will not."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise CannotRun(f"it ended at once: {self.last_words()}")
            with suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise CannotRun(f"it did not answer within {patience:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-600:]

    def stop(self, *, patience: float = 20) -> None:
        """Ask the whole group to end, then insist."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                break
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        # What the first of the group left behind would go on using the core of whoever is next.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
