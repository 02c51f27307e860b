"""One vLLM server of a fleet: whether it may answer, and with which versions.

    look: /health -> what it lists -> greet it when it is new, or may be -> bring what it lacks -> it may answer
    bring: load -> listed, from the right path -> its scores agree with those of the others -> held

Version 0, the base, is brought like the others, save that there is nothing to load.

What is wanted is the fleet's; what is held is what the server itself lists and was checked for. So a server that was
restarted, or that somebody else unloaded from, is brought up to date by the same few lines as a new one. A version
that it cannot be brought, or scores unlike the others, is set apart: it is not asked for it, and it is tried again.

Names that this process never brought are left alone: another Hone over the same server may be using them. They cost
a row in a list; vLLM keeps the weights of the most recently used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from server.engine.greeting import Check, Greeting, agree, distance
from server.engine.refusals import Lost
from server.engine.replica import ANSWER_SECONDS, Listing, Replica
from server.errors import HoneError, Unavailable

log = logging.getLogger(__name__)

AWAY_AFTER = 2
"""Looks in vain, one after the other, until a server gets no more requests; one refused connection is enough."""
SILENT_AFTER = 3
"""Looks to which nothing at all was said, one after the other, until what still waits for the server is given up. One
that refuses is another matter: a server that is being stopped takes nothing new and finishes what it has begun."""
BESIDE_SECONDS = 2.0
"""How long a look waits for what it brings; a slow load goes on while the next look asks for the server's health."""
BRING_AGAIN_SECONDS = 15.0
"""How soon a version that could not be brought is brought again."""
DROP_TRIES = 5
DROP_AGAIN_SECONDS = 2.0
"""How soon an adapter that could not be unloaded is unloaded again; twice as long after each further try."""


def name_of(version: int) -> str:
    """A version's name in vLLM. Never used for other weights: vLLM's caches go by it."""
    return f"hone-v{version:06d}"


@dataclass(slots=True)
class Wanted:
    """A version that every server shall hold: where it lies, and what those that hold it say of its check's text."""

    path: str
    check: Check
    agreed: tuple[float, ...] = ()
    """Empty until the first servers have been compared; of the base, until the first one has been greeted."""


class Retry(NamedTuple):
    """What could not be done: why, when to try again, and how often it was tried."""

    why: str
    again_at: float
    tries: int = 1


class Member:
    """One server, and what is known of it."""

    def __init__(self, replica: Replica, *, wanted: Mapping[int, Wanted], greeting: Greeting) -> None:
        self.replica = replica
        self.well = False
        self.trouble = "not looked at yet"
        self.doubted = False
        """A request has found it at fault since it was greeted: others are asked before it, and it is greeted anew."""
        self.running = 0
        """Replies of this process that it is writing."""
        self.others = 0
        """Replies that it was writing or holding back for others at the last look."""
        self.chosen = 0
        """Its last turn: a number that grows with every choice."""
        self.held: set[int] = set()
        """Versions that it listed, read from the right path, with scores like the others'."""
        self.scores: dict[int, tuple[float, ...]] = {}
        """What it said of the text of each version's check."""
        self.refused: dict[int, Retry] = {}
        self.seen = asyncio.Event()
        self.nudge = asyncio.Event()
        self._wanted = wanted
        self._greeting = greeting
        self._base = ""
        self._may_be_new = True
        """Whether it may have been started anew since it was last greeted."""
        self._brought: set[int] = set()
        """Versions that it was told to load: what was given up half-way it may hold all the same."""
        self._listed: frozenset[str] = frozenset()
        self._is_up = False
        """What its last word on its own health was."""
        self._misses = self._silences = self._botched = 0
        """Questions for its health in vain, those to which nothing was said, and attempts to bring it up to date; each
        one after the other."""
        self._undropped: dict[int, Retry] = {}
        self._mending: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # greeting, loading and unloading, one at a time

    def name_for(self, version: int) -> str:
        """What to ask it for."""
        return name_of(version) if version else self._base

    @property
    def load(self) -> int:
        """Replies that it has to write before it comes to another one, as far as is known."""
        return self.running + self.others

    def holds(self, version: int) -> bool:
        """Whether it may be asked for `version` at once."""
        return self.well and version in self.held

    def may_be_brought(self, version: int) -> bool:
        """Whether it is time to try; what has just failed is left alone for a while."""
        refusal = self.refused.get(version)
        return refusal is None or refusal.again_at <= _now()

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
            await self.replica.health()  # before anything else is waited for: a load may take minutes
        except HoneError as error:
            self._is_up = False
            self._misses += 1
            self._silences = self._silences + 1 if isinstance(error, Lost) and error.silent else 0
            self._missed(error, times=self._misses)
            if self._silences >= SILENT_AFTER:
                self._may_be_new = True
                self.replica.break_off()
            self.seen.set()
            return
        except Exception as error:
            self._broke(error)
            self.seen.set()
            return
        self._is_up, self._misses, self._silences = True, 0, 0
        await self._count_others()
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend())
        await asyncio.wait([self._mending], timeout=BESIDE_SECONDS)

    async def bring(self, version: int) -> HoneError | None:
        """Load a version now and see that it is the right one. What goes wrong is written down and returned."""
        async with self._lock:
            return await self._bring(version)

    async def disown(self, version: int, why: HoneError) -> None:
        """Let go of a version that is not what the others hold, so that the next try reads it from disk again."""
        async with self._lock:
            await self._disown(version, why)

    async def drop(self) -> None:
        """Unload what was brought here and is wanted no more. What cannot be unloaded now is tried at a later look."""
        with suppress(TimeoutError):  # a slow load on one server holds up no swap on the others
            async with asyncio.timeout(ANSWER_SECONDS), self._lock:
                await self._drop()

    async def close(self) -> None:
        """Take no more, and break off what is read."""
        self.well, self.trouble = False, "closed"
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        await self.replica.close()

    def is_away(self, why: str, *, is_only_slow: bool = False) -> None:
        """It gets no requests until a look finds it well. One that was only slow is still the one that it was."""
        if self.well or self.trouble != why:
            log.warning("vLLM on %s is away: %s", self.replica.name, why)
        self.well, self.trouble = False, why
        self._may_be_new |= not is_only_slow

    async def _count_others(self) -> None:
        """What it writes for other users of it. Our own may begin or end while it is asked: those count as ours."""
        ours = self.running
        with suppress(HoneError):
            self.others = max(await self.replica.load_of_all() - max(ours, self.running), 0)

    def _missed(self, error: HoneError, *, times: int) -> None:
        """A look was in vain, so many times in a row. A single slow answer takes no server away."""
        may_be_slow = isinstance(error, Lost) and error.reached
        if not may_be_slow or times >= AWAY_AFTER or not self.well:
            self.is_away(error.message, is_only_slow=isinstance(error, Lost) and error.silent)

    def _broke(self, error: Exception) -> None:
        """The edge of the watch: whatever is wrong is said, and looked at again."""
        log.error("looking at vLLM on %s failed", self.replica.name, exc_info=error)
        self._is_up = False
        self.is_away(f"{type(error).__name__}: {error}")

    async def _mend(self) -> None:
        try:
            async with self._lock:
                await self._bring_up_to_date()
        except HoneError as error:
            self._botched += 1
            is_certain = self.doubted and not (isinstance(error, Lost) and error.silent)
            self._missed(error, times=AWAY_AFTER if is_certain else self._botched)
        except Exception as error:
            self._broke(error)
        finally:
            self.seen.set()

    # --- under the lock ------------------------------------------------------------------------------------

    async def _bring_up_to_date(self) -> None:
        listing = await self.replica.listing()
        await self._recognise(listing)
        for version in [v for v in self._wanted if v not in self.held and self.may_be_brought(v)]:
            error = await self._bring(version)
            if isinstance(error, Lost):
                raise error
        await self._drop()
        if not self._is_up:  # while it was brought things, it has said that it is not well
            return
        if not self.well:
            names = ", ".join(map(name_of, sorted(self.held - {0}))) or "no adapters"
            log.info("vLLM on %s is well, with %s", self.replica.name, names)
        self.well, self.trouble, self._botched = True, "", 0

    async def _recognise(self, listing: Listing) -> None:
        """Keep what it still lists of what it held. One that may have been started anew is greeted and checked anew."""
        self._listed = frozenset(listing.adapters)
        adapters = self.held - {0}
        listed = {v for v in adapters if self._lists(listing, v)}
        has_forgotten_all = bool(adapters) and not listed
        # Adapters that it still lists are proof that it was only slow; without any, nothing is.
        has_no_proof = not self.well and not adapters
        if self._may_be_new or has_no_proof or has_forgotten_all or listing.base != self._base:
            self.held, self._may_be_new = listed - self._wanted.keys(), True
            await self._greet(listing)
        else:
            self.held = listed | (self.held & {0})
            if self.doubted:
                await self._greet(listing)

    async def _greet(self, listing: Listing) -> None:
        await self._greeting.greet(self.replica, listing)
        self._base, self._may_be_new, self.doubted = listing.base, False, False

    def _lists(self, listing: Listing, version: int) -> bool:
        root, wanted = listing.adapters.get(name_of(version)), self._wanted.get(version)
        return root is not None and (wanted is None or root == wanted.path)

    async def _bring(self, version: int) -> HoneError | None:
        wanted = self._wanted.get(version)
        if wanted is None or version in self.held:
            return None
        self._undropped.pop(version, None)
        try:
            scores = await self._load(version, wanted) if version else await self._score_base(wanted)
        except HoneError as error:
            self._set_apart(version, error)
            return error
        if self._wanted.get(version) is not wanted:  # nobody waited so long
            return Unavailable(f"{name_of(version)} is wanted no more")
        if not version and not wanted.agreed:
            wanted.agreed = scores
        self.scores[version] = scores
        if wanted.agreed and not agree(scores, wanted.agreed):
            why = differs(version, distance(scores, wanted.agreed))
            await self._disown(version, why)
            return why
        self.held.add(version)
        self.refused.pop(version, None)
        return None

    async def _score_base(self, wanted: Wanted) -> tuple[float, ...]:
        listing = await self.replica.listing()
        return await wanted.check.score(self.replica, listing.base, context=listing.context - 1)

    async def _load(self, version: int, wanted: Wanted) -> tuple[float, ...]:
        name = name_of(version)
        self._brought.add(version)
        await self.replica.load(name, wanted.path)
        listing = await self.replica.listing()
        root = listing.adapters.get(name)
        if root is None:
            raise Unavailable(f"it took {name} and does not list it")
        if root != wanted.path:
            raise Unavailable(f"{name} is taken there, by {root}: start that server anew", code="name_taken")
        return await wanted.check.score(self.replica, name, context=listing.context - 1)

    def _set_apart(self, version: int, error: HoneError) -> None:
        """It takes no requests for `version` until it could be brought after all."""
        self.held.discard(version)
        known = self.refused.get(version)
        if known is None or known.why != error.message:
            log.warning("vLLM on %s: %s", self.replica.name, error.message, extra={"version": version})
        again_at = 0.0 if isinstance(error, Lost) else _now() + BRING_AGAIN_SECONDS
        self.refused[version] = Retry(error.message, again_at)

    async def _disown(self, version: int, error: HoneError) -> None:
        self._set_apart(version, error)
        if version:
            with suppress(HoneError):
                await self.replica.unload(name_of(version))

    async def _drop(self) -> None:
        self.refused = {v: refusal for v, refusal in self.refused.items() if v in self._wanted}
        for version in self._brought - self._wanted.keys():
            if version not in self.held and name_of(version) not in self._listed:
                continue  # given up half-way: it may come yet
            tried = self._undropped.get(version)
            if tried and tried.again_at > _now():
                continue
            try:
                await self.replica.unload(name_of(version))
            except Lost as error:
                log.info("cannot unload from vLLM on %s: %s", self.replica.name, error.message)
                continue
            except HoneError as error:
                if not self._was_last_try(version, error, before=tried.tries if tried else 0):
                    continue
            self.held.discard(version)
            self._brought.discard(version)
            self.scores.pop(version, None)
            self._undropped.pop(version, None)

    def _was_last_try(self, version: int, error: HoneError, *, before: int) -> bool:
        """Some vLLMs cannot unload what they have pushed out of memory already; the name then stays in their list."""
        if not before:
            log.warning("vLLM on %s: %s; trying a few times more", self.replica.name, error.message)
        again_at = _now() + DROP_AGAIN_SECONDS * 2**before
        self._undropped[version] = Retry(error.message, again_at, before + 1)
        return before + 1 >= DROP_TRIES


def differs(version: int, nats: float) -> Unavailable:
    """Why a server is not asked for a version that it has loaded."""
    which = f"with v{version}" if version else "without adapters"
    return Unavailable(
        f"{which} its log probabilities are {nats:.2g} nats a token off the others': "
        "give all servers the same checkpoint, type and adapters"
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
