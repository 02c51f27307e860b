"""The vLLM servers behind one engine: which versions are wanted of all of them, and which server answers next.

    watch: look at each every two seconds, and at once when a request was refused or broke off
    load:  wanted -> brought to each that is well -> scored by each and compared -> visible
           who takes long is waited for until the others have it, and compared when it comes

Refuses to know vLLM's words (`replica`), what a server needs before it may answer (`member`) and text.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from server.engine.greeting import Check, Greeting, agree, distance
from server.engine.member import Member, Wanted, differs
from server.engine.refusals import AGAIN_SECONDS, Lacks, Lost
from server.engine.replica import Replica
from server.errors import AdapterRejected, Busy, HoneError, Unavailable
from server.prompts import Renderer

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
FIRST_LOOK_SECONDS = 5.0
"""How long the first callers wait to hear of any server at all."""
TOGETHER_SECONDS = 15.0
"""How long a load that some servers have done waits for the others."""


class Fleet:
    """Servers that all serve one base. Made inside of a running event loop, on which they are watched."""

    def __init__(self, replicas: Sequence[Replica], renderer: Renderer) -> None:
        self._wanted: dict[int, Wanted] = {0: Wanted("", Check.of_words(renderer))}
        self._arriving: set[int] = set()
        greeting = Greeting(renderer)
        self.members = [Member(replica, wanted=self._wanted, greeting=greeting) for replica in replicas]
        self._turn = 0
        self._loading = asyncio.Lock()
        self._bringing: set[asyncio.Task[HoneError | None]] = set()
        self._seen_well = asyncio.Event()
        self._tasks = [asyncio.create_task(self._watch(member)) for member in self.members]

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that some server has been seen to hold, the base first."""
        return tuple(sorted(self._wanted.keys() - self._arriving))

    @property
    def well(self) -> int:
        """How many servers may answer."""
        return sum(member.well for member in self.members)

    @property
    def detail(self) -> str:
        """What is wrong, server by server; empty when nothing is."""
        return " · ".join(member.detail for member in self.members if member.detail)

    async def looked(self) -> None:
        """Wait until a server was found well for the first time, or none can be for now."""
        if self._seen_well.is_set():
            return
        looks = [asyncio.create_task(self._seen_well.wait()), asyncio.create_task(self._all_seen())]
        try:
            await asyncio.wait(looks, timeout=FIRST_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for look in looks:
                look.cancel()

    async def load(self, version: int, path: str, check: Check) -> None:
        """Bring a version to every server that is well and see that all of them mean the same by it.

        One that cannot take it, or scores the check's text unlike the others, is set apart; one that is away gets it
        before it gets requests. So does one that takes long. Raises AdapterRejected when every server there is blames
        the adapter itself, Unavailable when none took it, or when it cannot be told which of them is right.
        """
        await self.looked()
        async with self._loading:
            if version in self._wanted:
                return
            self._wanted[version] = Wanted(path, check)
            self._arriving.add(version)
            try:
                present = [member for member in self.members if member.well]
                said = await self._brought(version, present)
                await self._compare(version)
                if not any(member.holds(version) for member in self.members):
                    raise self._none_took(said)
            except BaseException:
                self._wanted.pop(version, None)
                raise
            finally:
                self._arriving.discard(version)

    async def _brought(self, version: int, present: Sequence[Member]) -> dict[Member, HoneError | None]:
        """What each of them said to it. Who says nothing for long goes on beside, once another one holds it."""
        tasks = {asyncio.create_task(member.bring(version)): member for member in present}
        late = set(tasks)
        for task in tasks:
            self._bringing.add(task)
            task.add_done_callback(self._bringing.discard)
        try:
            if late:
                _, late = await asyncio.wait(late, timeout=TOGETHER_SECONDS)
            while late and not any(version in member.held for member in present):
                _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            for task in late:
                task.cancel()
            raise
        return {member: task.result() for task, member in tasks.items() if task not in late}

    async def _compare(self, version: int) -> None:
        """Settle what the version says of its text; who says otherwise is set apart, now and whenever it comes."""
        wanted = self._wanted[version]
        holders = [member for member in self.members if version in member.held]
        if not holders:
            return
        agreed = wanted.check.settle([member.scores[version] for member in holders])
        if agreed is None:
            raise self._undecided(version, holders)
        wanted.agreed = agreed
        for member in holders:
            if not agree(member.scores[version], agreed):
                await member.disown(version, differs(version, distance(member.scores[version], agreed)))
            elif wanted.check.expected:
                self._trust_base_of(member)

    def _undecided(self, version: int, holders: Sequence[Member]) -> Unavailable:
        """Nobody is right, or nobody knows who. No fault of the adapter's: its files are those that were published."""
        expected = self._wanted[version].check.expected
        if expected:
            far = ", ".join(
                f"{m.replica.name} by {distance(m.scores[version], expected):.2g}" for m in holders
            )
            found = f"no vLLM server gives v{version} the log probabilities that were trained (nats a token off: {far})"
        else:
            found = (
                f"the vLLM servers do not agree on v{version}, and half of them stand against the other half"
            )
        return Unavailable(
            f"{found}: give all of them the same checkpoint, type and adapters", retry_after=AGAIN_SECONDS
        )

    def _trust_base_of(self, member: Member) -> None:
        """It says of an adapter what the learner measured, so its base is the right one, whoever was greeted first."""
        base, right = self._wanted[0], member.scores.get(0)
        if right is None or agree(right, base.agreed):
            return
        log.warning("the base of vLLM on %s counts: it says what was trained", member.replica.name)
        base.agreed = right
        for other in self.members:  # scored again, by the next request or look
            other.held.discard(0)
            other.refused.pop(0, None)
            other.nudge.set()

    async def unload(self, version: int) -> None:
        """Let go of a version everywhere; a server that is away now does so when it is back."""
        self._wanted.pop(version, None)
        await asyncio.gather(*(member.drop() for member in self.members if member.well))

    async def choose(self, version: int, *, avoid: Sequence[Member] = ()) -> Member:
        """Who answers next: well, holding `version`, not in doubt, with the fewest replies, or else the longest rest.

        Raises Unavailable when there is nobody.
        """
        fit = sorted(
            (member for member in self.members if member.well and member not in avoid),
            key=lambda member: (member.doubted, member.load, member.chosen),
        )
        found = next((member for member in fit if member.holds(version)), None)
        found = found or await self._bring_to_one(fit, version)
        self._turn += 1
        found.chosen = self._turn
        return found

    async def _bring_to_one(self, fit: Sequence[Member], version: int) -> Member:
        """Restarted just now, or unloaded from by somebody: no need to wait for the next look."""
        for member in fit:
            if member.may_be_brought(version):
                await member.bring(version)
            if member.holds(version):
                return member
        raise self.nobody()

    def nobody(self) -> Unavailable:
        """The refusal when no server can answer. Whoever chats reads it, so it does not say where the servers stand."""
        return Unavailable(
            "no vLLM server can answer now", code="engine_unavailable", retry_after=AGAIN_SECONDS
        )

    def has_failed(self, member: Member, version: int, error: Lost | Lacks) -> None:
        """A request found out before the watch did: look again at once."""
        if isinstance(error, Lacks):
            member.held.discard(version)
            if not version:
                member.is_away("its base has another name than before")
        elif not error.reached:
            member.is_away(error.message)
        else:  # it may be stopping, and well to every other question
            member.doubted = True
        member.nudge.set()

    async def close(self) -> None:
        """Stop watching and break off what is read."""
        tasks = [*self._tasks, *self._bringing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(member.close() for member in self.members))

    async def _watch(self, member: Member) -> None:
        while True:
            member.nudge.clear()
            await member.look()
            if member.well:
                self._seen_well.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await member.nudge.wait()

    async def _all_seen(self) -> None:
        for member in self.members:
            await member.seen.wait()

    def _none_took(self, said: Mapping[Member, HoneError | None]) -> HoneError:
        """Why nobody holds what was brought: the adapter's own fault only when every server there is says so.

        A rejection is for good, and one server's fault must not become the adapter's.
        """
        if not said:
            return Unavailable(f"no vLLM server is well: {self.detail}", retry_after=AGAIN_SECONDS)
        rejections = [error for error in said.values() if isinstance(error, AdapterRejected)]
        if len(rejections) == len(self.members):
            return rejections[0]
        says = "; ".join(f"{m.replica.name}: {error.message}" for m, error in said.items() if error)
        return Unavailable(f"no vLLM server took the adapter: {says}", retry_after=AGAIN_SECONDS)


class Attempts:
    """One request's way from server to server, for as long as nobody has seen a token of it.

    `most_broken`: how many servers it may have brought down before it is given up.
    """

    def __init__(self, fleet: Fleet, version: int, *, most_broken: int) -> None:
        self._fleet = fleet
        self._version = version
        self._most_broken = most_broken
        self._avoid: list[Member] = []
        self._broken = self._lacking = 0
        self._full: Busy | None = None

    async def next(self) -> Member:
        """Where to try now. Raises Unavailable when nobody is left, Busy when somebody would be who is only full."""
        try:
            return await self._fleet.choose(self._version, avoid=self._avoid)
        except Unavailable as error:
            if self._full:
                raise self._full from error
            raise

    def failed(self, member: Member, error: Lost | Lacks | Busy) -> None:
        """Write a failure down. Raises Unavailable when another try makes no sense."""
        if isinstance(error, Busy):  # a full server is a well one: the next may have room
            self._full = error
            self._avoid.append(member)
            return
        self._fleet.has_failed(member, self._version, error)
        if isinstance(error, Lacks):
            self._lacking += 1
            if self._lacking > len(self._fleet.members):
                raise self._fleet.nobody() from error
            return
        self._avoid.append(member)
        self._broken += error.reached
        if self._broken > self._most_broken:
            raise self._fleet.nobody() from error
