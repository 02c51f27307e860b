"""A child process that is kept alive while its parent lives: started again with back-off, ended with it."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
STEADY_SECONDS = 600.0
"""A child that lived this long was well: the next pause is short again."""
PATIENCE_SECONDS = 15.0
"""How long a child may take to end, from when it was first asked to."""
HURRIED_SECONDS = 1.0
"""The same, when its parent is in a hurry."""


class Child:
    """`command`, kept running from `start` to `stop`, in a session of its own so that Ctrl-C ends it in order."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._asked: float | None = None
        self._hurried = False
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep, name=f"{name}-keeper", daemon=True)

    def start(self) -> None:
        self._keeper.start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask(self) -> None:
        """Ask the child to end, without waiting; it is not started again. Safe to call twice, or before `start`."""
        with self._lock:
            self._stopping.set()
            self._asked = self._asked or time.monotonic()
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()

    def hurry(self) -> None:
        """Do not wait long for the child's end: a killed one loses nothing but time."""
        self._hurried = True

    def stop(self) -> None:
        """Ask, wait, insist. When this returns there is no child any more."""
        self.ask()
        process = self._process
        if process is not None:
            try:
                process.wait(self._patience())
            except subprocess.TimeoutExpired:
                log.warning("%s did not end when it was asked to and is killed", self.name)
                process.kill()
                process.wait()
        if self._keeper.is_alive():
            self._keeper.join(5)

    def _patience(self) -> float:
        waited = time.monotonic() - self._asked if self._asked is not None else 0.0
        left = max(PATIENCE_SECONDS - waited, 0.0)
        return min(left, HURRIED_SECONDS) if self._hurried else left

    def _keep(self) -> None:
        pause = self._first_pause
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run_once()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > STEADY_SECONDS:
                pause = self._first_pause
            log.warning("%s ended with code %s; it is started again in %.0f s", self.name, code, pause)
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _run_once(self) -> int | None:
        """The child's exit code, or None when it could not be started or was not wanted any more."""
        with self._lock:
            if self._stopping.is_set():
                return None
            try:
                self._process = subprocess.Popen(  # noqa: S603 our own command, no shell
                    self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                log.warning("%s cannot be started: %s", self.name, error)
                return None
        return self._process.wait()
