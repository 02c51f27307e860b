"""A fresh machine: one command to a page that answers, and one to green tests."""

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx

from tests.prove.case import Case
from tests.running import ROOT

PATIENCE = 1800.0


def clone(folder: Path) -> Path:
    """What is committed, and nothing else, as a newcomer gets it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "hone")], check=True)
    return folder / "hone"


def environment() -> dict[str, str]:
    """This shell's, without what was set for the proofs themselves."""
    own = ("HONE_", "PYTHONPATH", "OMP_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def made(home: Path, port: int, log: IO[bytes]) -> Any:
    """`make serve`, ended with everything that it began."""
    process = subprocess.Popen(
        ["make", "serve", f"ARGS=--port {port}"],
        cwd=home, env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def until_ready(process: subprocess.Popen[bytes], url: str, *, since: float) -> float:
    """Seconds from `since` to an answer of `/readyz`."""
    while time.monotonic() - since < PATIENCE:
        assert process.poll() is None, "make serve ended"
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return round(time.monotonic() - since, 1)
        except httpx.HTTPError:
            time.sleep(0.05)
    raise TimeoutError("make serve was never ready")


def talk(url: str, key: str) -> str:
    body = {"model": "default", "messages": [{"role": "user", "content": "How do I make good coffee?"}]}
    answer = httpx.post(
        f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=120
    )
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


def serve(folder: Path) -> dict[str, Any]:
    home, port = clone(folder), free_port()
    url, seconds = f"http://127.0.0.1:{port}", []
    with (folder / "log").open("wb") as log:
        for _ in range(4):  # the first sets up, the others show how long a start takes
            began = time.monotonic()
            with made(home, port, log) as process:
                seconds.append(until_ready(process, url, since=began))
                page = httpx.get(url).status_code
                said = talk(url, (home / "data" / "admin.key").read_text().strip())
    return {
        "holds": page == 200 and bool(said) and max(seconds[1:]) < 10,
        "first_start_with_all_set_up_seconds": seconds[0],
        "later_starts_seconds": seconds[1:],
        "it_said": said,
    }


def test(folder: Path) -> dict[str, Any]:
    home, began = clone(folder), time.monotonic()
    # Where the project's neighbours are looked for: tests of foreign checkpoints skip without them.
    (folder / "shared").symlink_to(ROOT.parent / "shared")
    done = subprocess.run(["make", "test"], cwd=home, env=environment(), capture_output=True, text=True)
    seconds = time.monotonic() - began
    last = next((line for line in reversed(done.stdout.splitlines()) if re.search(r"\d passed", line)), "")
    return {
        "holds": done.returncode == 0 and seconds <= 15 * 60,
        "seconds_with_all_set_up": round(seconds, 1),
        "said": last,
    }


def cases() -> list[Case]:
    return [Case("serve", 0, partial(serve)), Case("test", 0, partial(test))]
