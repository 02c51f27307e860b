"""The right to work: one learner at a time holds it, and whoever lost it commits nothing more.

Acquires the lease, renews it from a thread of its own, and puts the epoch's check into every transaction. Knows
nothing of cycles. A learner that was stopped past its lease learns of it at its next breath: by the heartbeat, by
`check()` between two batches and before files are written, and, whatever it believes itself to be, by the
transaction that it tries.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from sqlmodel import Session

from server.errors import Conflict, HoneError, Unavailable
from server.store import leases
from server.store.leases import LEARNER
from server.store.session import Store

log = logging.getLogger(__name__)

BEATS = 6
"""Heartbeats per lease: 5 s of 30."""

Result = TypeVar("Result")


class LeaseLost(HoneError):
    """Another learner may be at work: stop at once and leave everything as it is."""

    code = "lease_lost"


def awake_or_not() -> float:
    """Seconds that pass while the machine sleeps, too, as the lease's do."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def holder() -> str:
    """This process's name in the record's leases."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Tenure:
    """One learner's turn at work, from `acquire` to `release`."""

    def __init__(
        self, store: Store, *, epoch: int, seconds: float, clock: Callable[[], float] = awake_or_not
    ) -> None:
        self.epoch = epoch
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._held_at = clock()
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @classmethod
    def acquire(cls, store: Store, *, seconds: float) -> Tenure | None:
        """Take the lease, or None while somebody else holds it."""
        epoch = store.write(lambda s: leases.acquire_lease(s, name=LEARNER, holder=holder(), seconds=seconds))
        if epoch is None:
            return None
        tenure = cls(store, epoch=epoch, seconds=seconds)
        tenure._heart.start()
        return tenure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def check(self) -> None:
        """Raise LeaseLost if the lease is gone. Cheap: ask as often as you like.

        A process that was asleep wakes in the middle of its work, before its heartbeat does: when no heartbeat can
        vouch for the lease any more, the database is asked.
        """
        self._raise_if_lost()
        if self._clock() - self._held_at >= self._seconds:
            try:
                self.confirm()
            except Unavailable as error:
                log.warning("the lease could not be confirmed: %s", error)  # as in `_beat`
                self._held_at = self._clock()

    def write(self, work: Callable[[Session], Result]) -> Result:
        """Commit `work` only if the lease is still ours, checked in the same transaction."""
        self._raise_if_lost()

        def fenced(session: Session) -> Result:
            leases.assert_epoch(session, name=LEARNER, epoch=self.epoch)
            return work(session)

        try:
            return self._store.write(fenced)
        except Conflict as conflict:
            if conflict.code != LeaseLost.code:
                raise
            self._lost.set()
            raise LeaseLost(conflict.message) from conflict

    def confirm(self) -> None:
        """Ask the database itself: before anything that leaves a trace outside it."""
        self.write(lambda session: None)

    def _raise_if_lost(self) -> None:
        if self._lost.is_set():
            raise LeaseLost("another learner may be at work; this one stops")

    def release(self) -> None:
        """Let others work; quietly, since a lease that cannot be given back runs out by itself."""
        self._ended.set()
        self._heart.join()
        if self.lost:
            return
        try:
            self._store.write(lambda s: leases.release_lease(s, name=LEARNER, epoch=self.epoch))
        except (Unavailable, Conflict) as error:
            log.warning("the lease could not be given back and will run out: %s", error)

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds / BEATS):
            asked_at = self._clock()
            try:
                held = self._store.write(
                    lambda s: leases.renew_lease(s, name=LEARNER, epoch=self.epoch, seconds=self._seconds)
                )
            except HoneError as error:
                # While the database is away nobody else can take the lease either; each commit asks again.
                log.warning("the heartbeat could not be written: %s", error)
                continue
            if not held:
                log.error(
                    "the lease of epoch %d is lost: this learner stops and publishes nothing", self.epoch
                )
                self._lost.set()
                return
            self._held_at = asked_at
