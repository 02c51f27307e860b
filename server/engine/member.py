"""One vLLM server of a fleet: whether it may answer, and with which versions.

    look: /health -> what it lists -> greet it when it is new or new again -> load what it lacks -> it may answer

What is wanted is the fleet's; what is held is what the server itself lists. So a server that was restarted, or that
somebody else unloaded from, is brought up to date by the same few lines as a new one.

Names that this process never brought are left alone: another Hone over the same server may be using them. They cost
a row in a list; vLLM keeps the weights of the most recently used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import NamedTuple

from server.engine.greeting import Greeting
from server.engine.replica import Lost, Replica
from server.errors import AdapterRejected, HoneError, Unavailable

log = logging.getLogger(__name__)

AWAY_AFTER = 2
"""Looks in vain, one after the other, until a server gets no more requests; one refused connection is enough."""
SILENT_AFTER = 3
"""… and until what still waits for it is given up."""
BRING_AGAIN_SECONDS = 15.0
"""How soon a version that could not be brought is brought again."""


def name_of(version: int) -> str:
    """A version's name in vLLM. Never used for other weights: vLLM's caches go by it."""
    return f"hone-v{version:06d}"


class Refusal(NamedTuple):
    """Why a version could not be brought, and when to try again."""

    why: str
    again_at: float


class Member:
    """One server, and what is known of it."""

    def __init__(self, replica: Replica, *, wanted: Mapping[int, str], greeting: Greeting) -> None:
        self.replica = replica
        self.well = False
        self.trouble = "not looked at yet"
        self.running = 0
        """Replies of this process that it is writing."""
        self.chosen = 0
        """Its last turn: a number that grows with every choice."""
        self.held: set[int] = set()
        """Versions that it listed, read from the right path."""
        self.refused: dict[int, Refusal] = {}
        self.seen = asyncio.Event()
        self.nudge = asyncio.Event()
        self._wanted = wanted
        self._greeting = greeting
        self._base = ""
        self._misses = 0
        self._lock = asyncio.Lock()  # looking, loading and unloading, one at a time

    def name_for(self, version: int) -> str:
        """What to ask it for."""
        return name_of(version) if version else self._base

    def holds(self, version: int) -> bool:
        """Whether it may be asked for `version` at once."""
        return self.well and (not version or version in self.held)

    @property
    def detail(self) -> str:
        """What is wrong with it; empty when nothing is."""
        if not self.well:
            return f"{self.replica.name} is away: {self.trouble}"
        reasons = "; ".join(dict.fromkeys(refusal.why for refusal in self.refused.values()))
        return f"{self.replica.name} lacks a version: {reasons}" if reasons else ""

    async def look(self) -> None:
        """Find out whether it may answer, and bring it what it lacks."""
        try:
            async with self._lock:
                await self._bring_up_to_date()
        except Lost as error:
            self._misses += 1
            if not error.reached or self._misses >= AWAY_AFTER or not self.well:
                self.is_away(error.message)
            if self._misses >= SILENT_AFTER:
                self.replica.break_off()
        except HoneError as error:
            self.is_away(error.message)
        except Exception as error:  # the edge of the watch: whatever is wrong is said, and looked at again
            log.exception("looking at vLLM on %s failed", self.replica.name)
            self.is_away(f"{type(error).__name__}: {error}")
        finally:
            self.seen.set()

    async def bring(self, version: int) -> HoneError | None:
        """Load a version now. What goes wrong is written down and returned."""
        async with self._lock:
            return await self._bring(version)

    async def drop(self) -> None:
        """Unload what was brought here and is wanted no more. What cannot be unloaded now is tried at the next look."""
        async with self._lock:
            await self._drop()

    def is_away(self, why: str) -> None:
        """It gets no requests until a look finds it well."""
        if self.well or self.trouble != why:
            log.warning("vLLM on %s is away: %s", self.replica.name, why)
        self.well, self.trouble = False, why

    # --- under the lock ------------------------------------------------------------------------------------

    async def _bring_up_to_date(self) -> None:
        await self.replica.health()
        listing = await self.replica.listing()
        listed = {
            version
            for version in self.held | self._wanted.keys()
            if (root := listing.adapters.get(name_of(version))) and root == self._wanted.get(version, root)
        }
        forgot = (self.held & self._wanted.keys()) - listed
        self.held = listed
        if not self.well or forgot or listing.base != self._base:
            await self._greeting.greet(self.replica, listing)
            self._base = listing.base
        for version in [v for v in self._wanted if v not in self.held]:
            refusal = self.refused.get(version)
            if refusal is None or refusal.again_at <= asyncio.get_running_loop().time():
                error = await self._bring(version)
                if isinstance(error, Lost):
                    raise error
        await self._drop()
        if not self.well:
            names = ", ".join(map(name_of, sorted(self.held))) or "no adapters"
            log.info("vLLM on %s is well, with %s", self.replica.name, names)
        self.well, self.trouble, self._misses = True, "", 0

    async def _bring(self, version: int) -> HoneError | None:
        path = self._wanted.get(version)
        if path is None or version in self.held:
            return None
        name = name_of(version)
        try:
            await self.replica.load(name, path)
            root = (await self.replica.listing()).adapters.get(name)
            if root is None:
                raise Unavailable(f"it took {name} and does not list it")
            if root != path:
                raise AdapterRejected(f"{name} is taken there, by {root}", code="name_taken")
        except HoneError as error:
            known = self.refused.get(version)
            if known is None or known.why != error.message:
                log.warning("vLLM on %s: %s", self.replica.name, error.message, extra={"version": version})
            again_at = asyncio.get_running_loop().time() + BRING_AGAIN_SECONDS
            self.refused[version] = Refusal(error.message, 0.0 if isinstance(error, Lost) else again_at)
            return error
        self.held.add(version)
        self.refused.pop(version, None)
        return None

    async def _drop(self) -> None:
        self.refused = {v: refusal for v, refusal in self.refused.items() if v in self._wanted}
        for version in self.held - self._wanted.keys():
            try:
                await self.replica.unload(name_of(version))
            except HoneError as error:
                log.info("cannot unload from vLLM on %s: %s", self.replica.name, error.message)
            else:
                self.held.discard(version)
