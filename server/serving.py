"""Joins what the promotion log says to what the engine holds: the only file that knows both.

    log row -> verify checksums, base, template -> engine.load -> probe -> flip the pointer
            -> old replies finish on the old version (leases) -> the last few stay resident -> unload

A reply leases its version, so a swap cannot touch it. A version that cannot be loaded changes nothing: what
served before goes on serving, and `status()` says why. It does not know HTTP, and decides no promotion.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlmodel import Session

from server.artifacts import Artifacts
from server.engine.base import BaseIdentity, Engine, Prompt
from server.errors import AdapterRejected, Busy, HoneError, NotFound
from server.metrics import Metrics
from server.pairing import PairingPolicy
from server.probe import Probe
from server.store import adapters
from server.store.ids import now
from server.store.session import Store

log = logging.getLogger(__name__)
DEFAULT = "default"
RETRY_SECONDS = 5.0
START_SECONDS = 10.0
"""How long a start waits for the champions; after that the bare base answers until they are loaded."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the log says about one segment."""

    segment: str
    version: int
    seq: int
    """Newest row of the log that it follows: its own, or `default`'s."""
    own_seq: int
    since: datetime | None
    """When it became the champion; nothing, when nothing was ever promoted."""
    pairing: PairingPolicy

    @property
    def revision(self) -> int:
        """A number that changes with the champion and with nothing else, the same on every replica."""
        return 1 + int(self.since.timestamp() * 1000) if self.since else 1


@dataclass(frozen=True, slots=True)
class Post:
    """Who answers a segment right now. `trouble` says why it is not the champion that the log names."""

    wanted: Wanted
    version: int = 0
    revision: int = 0
    since: datetime = field(default_factory=now)
    trouble: str = ""

    @property
    def serves_champion(self) -> bool:
        return self.version == self.wanted.version


@dataclass(slots=True)
class Resident:
    """A version that the engine holds."""

    stamp: str
    leases: int = 0


class Serving:
    """Which version answers which segment, and which versions the engine must keep."""

    def __init__(
        self,
        *,
        store: Store,
        artifacts: Artifacts,
        engine: Engine,
        base: BaseIdentity,
        metrics: Metrics,
        keep_resident: int,
        follow_seconds: float,
    ) -> None:
        self.store = store
        self.artifacts = artifacts
        self.engine = engine
        self.base = base
        self.metrics = metrics
        self.keep_resident = keep_resident
        self.follow_seconds = follow_seconds
        self._posts: dict[str, Post] = {}
        self._resident: OrderedDict[int, Resident] = OrderedDict({0: Resident(self._stamp("base"))})
        self.trouble = ""
        """Why the log cannot be followed right now; empty when it can."""
        self._refused: dict[int, str] = {}
        self._retry_at: dict[int, float] = {}
        self._settling = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._will_evict = False
        self._nudged = asyncio.Event()
        self._settled = asyncio.Condition()
        self._readings = self._read = 0
        """Readings of the log that have begun, and the last one that every segment was settled by."""
        self._tasks: set[asyncio.Task[None]] = set()

    # --- following the log ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve what the log says, then go on following it. A load that takes long is not waited for."""
        reading = self._spawn(self._settle_all())
        await asyncio.wait([reading], timeout=START_SECONDS)
        if reading.done():
            reading.result()
        self._spawn(self._follow(reading))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def nudge(self) -> None:
        """The log has just changed in this process: look at once."""
        self._nudged.set()

    async def _follow(self, reading: asyncio.Task[None]) -> None:
        """Read the log again and again, once `reading`, the first time, has come to its end."""
        while True:
            try:
                await reading
                self.trouble = ""
            except HoneError as error:
                log.warning("cannot read the promotion log: %s", error.message)
                self.trouble = error.message
            except Exception as error:
                log.exception("following the promotion log failed; trying again")
                self.trouble = f"{type(error).__name__}: {error}"
            with suppress(TimeoutError):
                async with asyncio.timeout(self.follow_seconds):
                    await self._nudged.wait()
            self._nudged.clear()
            reading = self._spawn(self._settle_all())

    async def _settle_all(self) -> None:
        """Bring every segment to the version that the log names. One at a time: an older reading must not win."""
        async with self._settling:
            self._readings += 1
            wanted = await self.store.read_async(_read_wanted)
            await asyncio.gather(*(self._settle(lane) for lane in wanted))
            self._read = self._readings
        async with self._settled:
            self._settled.notify_all()
        await self._evict()

    async def _settle(self, wanted: Wanted) -> None:
        """Load what is wanted, then flip: requests never see a moment without a version."""
        post = self._posts.get(wanted.segment) or Post(wanted)
        self._posts.setdefault(wanted.segment, post)
        if post.serves_champion and post.wanted == wanted and post.revision:
            return
        began = time.monotonic()
        trouble = "" if wanted.version in self._resident else await self._try_to_bring(wanted)
        if trouble:
            self._posts[wanted.segment] = replace(post, wanted=wanted, trouble=trouble)
            return
        flipped = post.version != wanted.version
        first = not post.revision
        self._posts[wanted.segment] = Post(
            wanted,
            version=wanted.version,
            revision=wanted.revision,
            since=(wanted.since or post.since) if first else now() if flipped else post.since,
        )
        self.metrics.serving.labels(wanted.segment).set(wanted.version)
        if flipped:
            self.metrics.swap_seconds.observe(time.monotonic() - began)
            log.info("now serving", extra={"segment": wanted.segment, "version": wanted.version})

    async def _try_to_bring(self, wanted: Wanted) -> str:
        """Load the wanted version; the trouble in words, or nothing."""
        if wanted.version in self._refused:
            return self._refused[wanted.version]
        if time.monotonic() < self._retry_at.get(wanted.version, 0.0):
            return self._posts[wanted.segment].trouble or "waiting to try again"
        try:
            await self._bring(wanted.version)
        except Exception as error:
            self._retry_at[wanted.version] = time.monotonic() + RETRY_SECONDS
            self.metrics.load_failures.inc()
            ids = {"segment": wanted.segment, "version": wanted.version}
            if isinstance(error, HoneError):
                log.warning("cannot serve a promoted version: %s", error.message, extra=ids)
                return error.message
            log.exception("loading a promoted version failed", extra=ids)
            return f"{type(error).__name__}: {error}"
        return ""

    # --- what requests ask ---------------------------------------------------------------------------------

    async def post(self, segment: str) -> Post:
        """Who answers `segment`. Raises NotFound (`unknown_segment`)."""
        if segment not in self._posts and await self.store.read_async(
            lambda session: adapters.has_segment(session, segment)
        ):
            await self._settle_all()
        post = self._posts.get(segment)
        if post is None:
            raise NotFound(f"There is no segment {segment!r}.", code="unknown_segment", param="model")
        return post

    def champion(self, segment: str) -> int:
        """The version that answers `segment` right now; 0 is the bare base."""
        return self._posts[segment].version

    def posts(self) -> list[Post]:
        return [self._posts[name] for name in sorted(self._posts)]

    def stamp(self, version: int) -> str:
        """An opaque mark of the weights: equal weights, equal mark, and no number to read from it."""
        return self._resident[version].stamp

    async def hold(self, version: int) -> None:
        """Lease `version`: keep it loaded until it is released; load it first when it is not.

        A resident version is held without giving way to anybody.
        """
        if version not in self._resident:
            await self._bring(version, make_room=True)
        self._resident[version].leases += 1
        self._resident.move_to_end(version)

    def release(self, version: int) -> None:
        """End a lease."""
        self._resident[version].leases -= 1
        if len(self._idle()) > self.keep_resident and not self._will_evict:
            self._will_evict = True  # one that waits for a load will do for all leases that end meanwhile
            self._spawn(self._evict())

    async def wait_serving(self, segment: str, *, patience: float) -> Post:
        """The segment's post once the record was read anew, or as it is when the time is up."""
        next_reading = self._readings + 1  # one that runs may have read before the caller wrote
        self.nudge()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience), self._settled:
                await self._settled.wait_for(lambda: self._read >= next_reading)
        return await self.post(segment)

    # --- what the engine holds -----------------------------------------------------------------------------

    async def _bring(self, version: int, *, make_room: bool = False) -> None:
        """Verify, load and probe a version. Raises AdapterRejected, NotFound, Busy, Unavailable."""
        row = await self.store.read_async(lambda session: _read_adapter(session, version))
        async with self._loading:
            if version in self._resident:
                return
            if version in self._refused:
                raise AdapterRejected(self._refused[version])
            if make_room:
                await self._make_room()
            try:
                found = await self._loaded(version, row)
            except AdapterRejected as error:
                self._refused[version] = f"v{version} was rejected: {error.message}"
                await self._record(version, "rejected", error.message)
                raise
            self._resident[version] = Resident(self._stamp(row.manifest_sha256))
            await self._record(version, "verified", found)

    async def _loaded(self, version: int, row: AdapterRow) -> str:
        """Verify, load, probe; what the probe found. A version that fails on the way is not left in the engine."""
        folder = await self._verified(row)
        try:
            await self.engine.load(version, folder)
            return await self._probed(version, folder)
        except BaseException:
            with suppress(HoneError):
                await self.engine.unload(version)
            raise

    async def _verified(self, row: AdapterRow) -> Path:
        """The version's folder, once its files, base and template are the right ones."""
        folder = await self.artifacts.fetch_async(row.path)
        manifest = await asyncio.to_thread(self.artifacts.verify, folder)
        if row.manifest_sha256 != await asyncio.to_thread(_sha256, folder / "manifest.json"):
            raise AdapterRejected("its manifest is not the one that was registered", code="manifest_changed")
        if manifest.get("base", {}).get("hash") != self.base.base_hash:
            raise AdapterRejected("it was trained on another base model", code="other_base")
        if manifest.get("template_hash") != self.base.template_hash:
            raise AdapterRejected("it was trained with another chat template", code="other_template")
        return folder

    async def _probed(self, version: int, folder: Path) -> str:
        probe = await asyncio.to_thread(Probe.read, folder)
        items = [(Prompt(item.prompt_ids), item.response_ids) for item in probe.items]
        # One call, not one for each: every call is a forward of its own between two steps of running replies.
        scored = await self.engine.score_many(version, items)
        return probe.judge(scored, dtype=self.base.dtype)

    async def _record(self, version: int, outcome: str, detail: str) -> None:
        """Leave the finding in the registry; a database that is away must not stop a swap."""

        def write(session: Session) -> None:
            adapters.record_check(session, version=version, outcome=outcome, detail=detail)

        try:
            await self.store.write_async(write)
        except HoneError as error:
            log.warning("cannot record a check: %s", error.message, extra={"version": version})

    def _idle(self) -> list[int]:
        """Loaded versions that nobody needs right now, least recently used first."""
        serving = {post.version for post in self._posts.values()} | {0}
        return [v for v, held in self._resident.items() if not held.leases and v not in serving]

    async def _make_room(self) -> None:
        """For a version that only one request asked for. Raises Busy when all that is loaded is in use."""
        while len(idle := self._idle()) >= self.keep_resident and await self._unload(idle[0]):
            pass
        bound = 2 * self.keep_resident + len(self._posts) + 1
        if len(self._resident) > bound:
            raise Busy("Too many versions are in use at once.", code="versions_busy", retry_after=2)

    async def _evict(self) -> None:
        async with self._loading:
            self._will_evict = False
            while len(idle := self._idle()) > self.keep_resident and await self._unload(idle[0]):
                pass

    async def _unload(self, version: int) -> bool:
        """Forget first, so that nobody can lease what is about to go. Whether it went.

        The engine may still be ending a reply whose client has just left; then it is tried again later.
        """
        held = self._resident.pop(version)
        try:
            await self.engine.unload(version)
        except HoneError as error:
            self._resident[version] = held
            log.info("cannot unload yet: %s", error.message, extra={"version": version})
            return False
        return True

    def _stamp(self, weights: str) -> str:
        return "fp_" + hashlib.sha256(f"{self.base.base_hash}:{weights}".encode()).hexdigest()[:16]

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """The part of the registry that loading needs."""

    path: str
    manifest_sha256: str


def _read_adapter(session: Session, version: int) -> AdapterRow:
    row = adapters.get_adapter(session, version)
    return AdapterRow(row.path, row.manifest_sha256)


def _read_wanted(session: Session) -> list[Wanted]:
    """What the log says about every segment; one without a champion of its own wants `default`'s."""
    lanes = {row.name: (row, adapters.lane(session, row.name)) for row in adapters.list_segments(session)}
    default = lanes[DEFAULT][1]
    wanted = []
    for name, (row, lane) in lanes.items():
        source = lane if lane.has_champion else default
        wanted.append(
            Wanted(
                name,
                version=source.champion,
                seq=source.seq,
                own_seq=lane.seq,
                since=source.since,
                pairing=PairingPolicy.from_row(row.pairing),
            )
        )
    return wanted


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
