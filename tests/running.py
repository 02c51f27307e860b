"""A real Hone in a process of its own: started, asked, killed and started again, as an operator would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

ROOT = Path(__file__).resolve().parent.parent


class RunningHone:
    """`hone serve` on a free port of loopback, with its own data directory.

    Without a learner unless asked for: most tests run cycles by hand with `cli("learn", "--once")`. With a `delay` the
    echo engine takes so many seconds for each word.
    """

    def __init__(
        self, data_dir: Path, *options: str, learner: bool = False, delay: float = 0.0, **environment: str
    ) -> None:
        self.data_dir = data_dir
        self.options = [*options] if learner else [*options, "--no-learner"]
        self.program = ["-m", "tests.slowly", str(delay)] if delay else ["-m", "server"]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HONE_")},
            "HONE_DATA_DIR": str(data_dir),
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *prefix: str, patience: float = 120) -> Self:
        """Start (under `prefix`, a tracer say) and wait until it is ready to answer."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.address_file.unlink(missing_ok=True)
        with (self.data_dir / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *self.program, "serve", "--port", "0", *self.options],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended at once:\n{self.log()[-4000:]}")
            if self.address_file.exists() and self._ready():
                return self
            time.sleep(0.05)
        self.kill()
        raise TimeoutError(f"the server was not ready in {patience} s:\n{self.log()[-4000:]}")

    def _ready(self) -> bool:
        try:
            return httpx.get(self.url + "/readyz", timeout=5).status_code == 200
        except (httpx.HTTPError, ValueError, KeyError):
            return False

    @property
    def address_file(self) -> Path:
        return self.data_dir / "server.json"

    @property
    def address(self) -> dict[str, Any]:
        return dict(json.loads(self.address_file.read_text()))

    @property
    def url(self) -> str:
        return str(self.address["url"]).rstrip("/")

    @property
    def pid(self) -> int:
        """Of the server itself, also when it runs under a tracer."""
        return int(self.address["pid"])

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    def client(self, **options: Any) -> httpx.Client:
        options.setdefault("timeout", 120)
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, **options)

    def get(self, path: str) -> Any:
        with self.client() as client:
            return client.get(path).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        with self.client() as client:
            return client.post(path, json=body).raise_for_status().json()

    def cli(self, *words: str, check: bool = True, timeout: float = 3600) -> str:
        """What `hone WORDS` prints, run against this installation."""
        done = subprocess.run(
            [sys.executable, "-m", "server", *words],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"hone {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def simulate(self, *options: str) -> str:
        return self.cli("simulate", "--url", self.url, "--key", self.key, *options)

    def evaluate(self, *options: str) -> dict[str, Any]:
        return dict(
            json.loads(self.cli("evaluate", "--url", self.url, "--key", self.key, "--json", *options))
        )

    def newest_cycle(self) -> dict[str, Any]:
        return dict(self.get("/v1/learner/cycles")["data"][0])

    def stop(self) -> None:
        """Ask it to end, as a service manager would; insist after a while."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """End the whole process group at once: nothing gets to clean up."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def log(self) -> str:
        return (self.data_dir / "server.log").read_text(errors="replace")
