"""The follower: what the log says is what the engine holds, and no reply ever loses its version."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.artifacts import Artifacts
from server.engine.base import Answered, BaseIdentity, Prompt
from server.engine.echo import EchoEngine, echo_renderer
from server.errors import AdapterRejected, Busy, Conflict, NotFound, Unavailable
from server.metrics import Metrics
from server.serving import Serving
from server.settings import Settings
from server.store import adapters, migrate
from server.store.session import Store, open_store
from tests.server.publishing import ANSWERED, publish


class CountingEngine(EchoEngine):
    """Remembers what was loaded and unloaded; can be made to fail, or to take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[int] = []
        self.unloaded: list[int] = []
        self.fails = False
        self.breaks_probes = False
        self.scored: list[tuple[int, int]] = []
        """(version, how many responses) of each call that scored something."""
        self.in_use: set[int] = set()
        self.slow = 0.0

    async def load(self, version: int, path: Path) -> None:
        await asyncio.sleep(self.slow)
        if self.fails:
            raise Unavailable("the engine is away")
        await super().load(version, path)
        self.loaded.append(version)

    async def logprobs(self, version: int, prompt: Prompt, response: tuple[int, ...]) -> tuple[float, ...]:
        if self.breaks_probes:
            raise Unavailable("the engine is away")
        return await super().logprobs(version, prompt, response)

    async def score_many(self, version: int, items: Sequence[Answered]) -> list[tuple[float, ...]]:
        self.scored.append((version, len(items)))
        return await super().score_many(version, items)

    async def unload(self, version: int) -> None:
        if version in self.in_use:
            raise Conflict("replies still run on it", code="version_in_use")
        await super().unload(version)
        self.unloaded.append(version)


class House:
    """A record, an engine and the follower between them."""

    def __init__(self, data_dir: Path, *, keep_resident: int = 1) -> None:
        self.settings = Settings(data_dir=data_dir, engine="echo")
        data_dir.mkdir(exist_ok=True)
        migrate.upgrade(self.settings.resolved_database_url)
        self.store: Store = open_store(self.settings.resolved_database_url)
        self.store.write(lambda session: adapters.ensure_segment(session, "default").name)
        self.engine = CountingEngine()
        self.serving = Serving(
            store=self.store,
            artifacts=Artifacts(self.settings.resolved_artifacts_url),
            engine=self.engine,
            base=BaseIdentity("echo", "echo", echo_renderer().template_hash),
            metrics=Metrics(),
            keep_resident=keep_resident,
            follow_seconds=0.02,
        )

    def promote(self, version: int, segment: str = "default") -> None:
        self.store.write(
            lambda s: adapters.promote(s, segment=segment, version=version, by="test", reason="").seq
        )

    async def serve(self, version: int, segment: str = "default") -> int:
        """Promote as another process would, and wait for the follower."""
        await asyncio.to_thread(self.promote, version, segment)
        post = await self.serving.wait_serving(segment, patience=5)
        return post.version


def house(tmp_path: Path, story: Callable[[House], Awaitable[None]], **options: int) -> None:
    """Run an async story with a follower that runs."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[House]:
        made = House(tmp_path, **options)
        await made.serving.start()
        try:
            yield made
        finally:
            await made.serving.close()
            await made.engine.close()
            made.store.close()

    async def run() -> None:
        async with opened() as made:
            await story(made)

    asyncio.run(run())


async def until(claim: Callable[[], bool]) -> None:
    """Nobody announces these; a follower is to be watched from outside."""
    async with asyncio.timeout(5):
        while not claim():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_row_written_by_another_process_is_followed(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        version = await asyncio.to_thread(publish, at.store, at.settings)
        await asyncio.to_thread(at.promote, version)
        await until(lambda: at.serving.champion("default") == version)
        assert at.engine.loaded == [version]
        found = at.store.read(lambda s: [check.outcome for check in adapters.checks(s, version)])
        assert found == ["verified"]

    house(tmp_path, story)


def test_a_probe_is_scored_in_one_call(tmp_path: Path) -> None:
    """Each call is a forward of its own, between two steps of whoever is being answered."""

    async def story(at: House) -> None:
        version = await asyncio.to_thread(publish, at.store, at.settings)
        assert await at.serve(version) == version
        assert at.engine.scored == [(version, len(ANSWERED))]

    house(tmp_path, story)


def test_waiting_for_a_change_ignores_a_reading_that_began_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new policy was said to be in force while the follower still settled by what it had read before."""

    async def story(at: House) -> None:
        read = at.store.read_async

        async def read_slowly(work: Any) -> Any:
            found = await read(work)
            has_read.set()
            await asyncio.sleep(0.1)
            return found

        has_read = asyncio.Event()
        monkeypatch.setattr(at.store, "read_async", read_slowly)
        await has_read.wait()
        await asyncio.to_thread(
            at.store.write,
            lambda s: adapters.update_segment(s, "default", pairing={"share": 0.9}).name,
        )
        post = await at.serving.wait_serving("default", patience=5)
        assert post.wanted.pairing.share == 0.9

    house(tmp_path, story)


def test_a_leased_version_stays_until_its_last_reply_has_ended(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        versions = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(4)]
        await at.serve(versions[0])
        await at.serving.hold(versions[0])
        for version in versions[1:]:
            await at.serve(version)
        assert versions[0] not in at.engine.unloaded
        assert versions[1] in at.engine.unloaded
        at.serving.release(versions[0])
        await until(lambda: len(at.engine.unloaded) == 2)
        # The champion stays, and the one before it, which a rollback would ask for.
        assert sorted(at.engine.unloaded) == versions[:2]

    house(tmp_path, story, keep_resident=1)


def test_a_rollback_to_a_resident_version_loads_nothing(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        first, second = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(2)]
        await at.serve(first)
        await at.serve(second)
        before = list(at.engine.loaded)
        at.store.write(lambda s: adapters.rollback(s, segment="default", by="test", reason="").seq)
        post = await at.serving.wait_serving("default", patience=5)
        assert post.version == first
        assert at.engine.loaded == before

    house(tmp_path, story, keep_resident=2)


def test_an_engine_that_cannot_load_leaves_the_old_version_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.serving.RETRY_SECONDS", 0.1)

    async def story(at: House) -> None:
        first, second = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(2)]
        await at.serve(first)
        at.engine.fails = True
        assert await at.serve(second) == first
        (post,) = at.serving.posts()
        assert "away" in post.trouble
        assert not post.serves_champion
        at.engine.fails = False
        await until(lambda: at.serving.champion("default") == second)
        assert at.serving.posts()[0].trouble == ""

    house(tmp_path, story)


def test_a_rejected_version_is_not_loaded_again_and_again(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        wrong = await asyncio.to_thread(lambda: publish(at.store, at.settings, off_by=0.5))
        assert await at.serve(wrong) == 0
        await asyncio.sleep(0.2)
        assert at.engine.loaded == [wrong]
        assert at.engine.unloaded == [wrong]
        with pytest.raises(AdapterRejected):
            await at.serving.hold(wrong)

    house(tmp_path, story)


def test_many_requests_for_one_version_load_it_once(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        version = await asyncio.to_thread(publish, at.store, at.settings)
        at.engine.slow = 0.05
        await asyncio.gather(*(at.serving.hold(version) for _ in range(20)))
        assert at.engine.loaded == [version]
        for _ in range(20):
            at.serving.release(version)

    house(tmp_path, story)


def test_versions_that_only_requests_asked_for_are_bounded(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        versions = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(8)]
        held = versions[:4]
        for version in held:
            await at.serving.hold(version)
        with pytest.raises(Busy) as caught:
            await at.serving.hold(versions[4])
        assert caught.value.code == "versions_busy"
        for version in held:
            at.serving.release(version)
        await at.serving.hold(versions[-1])
        at.serving.release(versions[-1])

    house(tmp_path, story, keep_resident=1)


def test_leases_that_end_during_a_long_load_leave_one_task_behind(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        first, second, slow = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(3)]
        for version in (first, second):
            await at.serving.hold(version)
        at.engine.slow = 60
        loading = asyncio.create_task(at.serving.hold(slow))
        await until(at.serving._loading.locked)
        before = len(at.serving._tasks)
        at.serving.release(first)
        at.serving.release(second)
        for _ in range(50):
            await at.serving.hold(second)
            at.serving.release(second)
        assert len(at.serving._tasks) <= before + 1
        loading.cancel()
        await until(lambda: first in at.engine.unloaded)
        assert second not in at.engine.unloaded

    house(tmp_path, story, keep_resident=1)


def test_a_version_that_the_engine_still_needs_is_unloaded_later(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        versions = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(3)]
        await at.serve(versions[0])
        at.engine.in_use = {versions[0]}
        for version in versions[1:]:
            await at.serve(version)
        assert at.serving.trouble == ""
        assert versions[0] not in at.engine.unloaded
        at.engine.in_use = set()
        await until(lambda: len(at.engine.unloaded) == 1)

    house(tmp_path, story, keep_resident=1)


def test_a_load_that_breaks_off_in_the_middle_leaves_nothing_in_the_engine(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        version = await asyncio.to_thread(publish, at.store, at.settings)
        at.engine.breaks_probes = True
        assert await at.serve(version) == 0
        assert version not in (await at.engine.status()).versions

    house(tmp_path, story)


def test_a_version_that_was_never_published_is_unknown(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        with pytest.raises(NotFound) as caught:
            await at.serving.hold(77)
        assert caught.value.code == "unknown_version"
        with pytest.raises(NotFound) as unknown:
            await at.serving.post("nowhere")
        assert unknown.value.code == "unknown_segment"

    house(tmp_path, story)


def test_a_name_that_means_nothing_waits_for_no_load_and_reads_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody with a key could make the server read its whole log, and stood in line behind a new champion."""

    async def story(at: House) -> None:
        at.engine.slow = 60
        version = await asyncio.to_thread(publish, at.store, at.settings)
        await asyncio.to_thread(at.promote, version)
        await until(at.serving._loading.locked)
        monkeypatch.setattr("server.serving._read_wanted", None)
        async with asyncio.timeout(5):
            with pytest.raises(NotFound):
                await at.serving.post("gpt-9")
            with pytest.raises(NotFound):
                await at.serving.hold(77)

    house(tmp_path, story)


def test_a_segment_that_another_server_has_just_made_is_served_when_it_is_first_named(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        at.serving.follow_seconds = 60
        await asyncio.sleep(0.05)
        at.store.write(lambda session: adapters.ensure_segment(session, "night").name)
        assert (await at.serving.post("night")).wanted.segment == "night"

    house(tmp_path, story)


def test_the_base_serves_when_no_champion_can_be_loaded_at_start(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        version = await asyncio.to_thread(publish, at.store, at.settings)
        await at.serve(version)

    house(tmp_path, story)
    made = House(tmp_path)
    made.engine.fails = True

    async def start() -> None:
        await made.serving.start()
        (post,) = made.serving.posts()
        assert post.version == 0
        assert post.trouble
        await made.serving.close()

    asyncio.run(start())
    made.store.close()


def test_a_start_does_not_wait_for_a_champion_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.serving.START_SECONDS", 0.05)
    made = House(tmp_path)
    version = publish(made.store, made.settings)
    made.promote(version)
    made.engine.slow = 0.5

    async def start() -> None:
        await made.serving.start()
        assert made.serving.champion("default") == 0
        await until(lambda: made.serving.champion("default") == version)
        assert made.engine.loaded == [version]
        await made.serving.close()

    asyncio.run(start())
    made.store.close()


def test_the_stamp_tells_weights_apart_and_shows_no_number(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        first, second = [await asyncio.to_thread(publish, at.store, at.settings) for _ in range(2)]
        await at.serve(first)
        await at.serve(second)
        stamps = {at.serving.stamp(version) for version in (0, first, second)}
        assert len(stamps) == 3
        assert all(stamp.startswith("fp_") for stamp in stamps)

    house(tmp_path, story, keep_resident=2)


def test_the_revision_changes_with_the_champion_and_with_nothing_else(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        first = await asyncio.to_thread(publish, at.store, at.settings)
        blank = (await at.serving.post("default")).revision
        await at.serve(first)
        served = (await at.serving.post("default")).revision
        at.store.write(lambda s: adapters.pin(s, segment="default", by="test", reason="").seq)
        pinned = (await at.serving.wait_serving("default", patience=5)).revision
        assert blank < served == pinned

    house(tmp_path, story)


def test_a_database_that_is_away_is_said_and_the_champion_goes_on(tmp_path: Path) -> None:
    async def story(at: House) -> None:
        at.store.close()
        await until(lambda: bool(at.serving.trouble))
        assert at.serving.champion("default") == 0
        await at.serving.hold(0)
        at.serving.release(0)

    house(tmp_path, story)
