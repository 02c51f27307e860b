"""One vLLM server under watch: slow, silent, refusing, forgetful, and what is done about each."""

import asyncio
import logging
from pathlib import Path

import pytest

from server.engine import member as members
from server.engine.base import Delta, Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.vllm import VllmEngine
from server.errors import Unavailable
from tests.fakes import random_adapter
from tests.vllm_fake import FakeVllm, over, until

pytestmark = pytest.mark.anyio

PROMPT = Prompt(tuple(b"what shall we cook"))
WARM = Sampling(temperature=1, max_tokens=20, seed=3)
NAME = "hone-v000007"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.fleet.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("server.engine.replica.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("server.engine.member.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("server.engine.member.BESIDE_SECONDS", 0.05)


@pytest.fixture
def folder(truth: LocalEngine, tmp_path: Path) -> Path:
    return random_adapter(truth.base, tmp_path / "adapters" / "v000007", seed=1)


async def reply(engine: VllmEngine, version: int = 0, sampling: Sampling = WARM) -> list[Delta]:
    return [delta async for delta in engine.generate(PROMPT, sampling, version)]


async def test_a_server_that_falls_silent_is_given_up(endless: LocalEngine) -> None:
    """A process that is stopped closes no connection."""
    with FakeVllm(endless) as server:
        server.pause = 0.02
        async with over(server) as engine:
            task = asyncio.create_task(reply(engine))
            await until(lambda: engine._fleet.members[0].running == 1)
            await asyncio.sleep(0.1)
            server.hangs = True
            with pytest.raises(Unavailable) as caught:
                await task
            assert caught.value.code == "engine_failed"
            assert engine._fleet.members[0]._silences >= members.SILENT_AFTER
            server.hangs = False
            await until(lambda: engine._fleet.well)
            assert await reply(engine)


@pytest.mark.parametrize("status", [503, 500])
async def test_a_server_that_takes_nothing_new_may_finish_what_it_has_begun(
    endless: LocalEngine, status: int
) -> None:
    """As vLLM does when it is stopped with a time to end in."""
    with FakeVllm(endless) as server:
        server.pause = 0.03
        async with over(server) as engine:
            (member,) = engine._fleet.members
            task = asyncio.create_task(reply(engine))
            await until(lambda: member.running == 1)
            server.health = status
            await until(lambda: member._misses >= 2 * members.SILENT_AFTER)
            assert (member.well, task.done()) == (False, False)
            assert len([i for delta in await task for i in delta.token_ids]) == WARM.max_tokens


async def test_only_silence_without_a_break_counts(endless: LocalEngine) -> None:
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            (member,) = engine._fleet.members
            engine._fleet._tasks[0].cancel()
            for _ in range(members.SILENT_AFTER):
                server.hangs, server.health = True, 200
                await member.look()
                server.hangs, server.health = False, 503
                await member.look()
                assert member._silences == 0


async def test_whatever_goes_wrong_in_a_look_is_said_and_looked_at_again(
    endless: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            (member,) = engine._fleet.members
            for part in ("health", "listing"):
                with monkeypatch.context() as broken:
                    broken.setattr(member.replica, part, None)
                    await until(lambda: "TypeError" in engine._fleet.detail)
                await until(lambda: member.well)
            assert await reply(engine)


async def test_a_slow_load_hides_nothing_of_its_health(endless: LocalEngine, folder: Path) -> None:
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            server.load_hangs = True
            loading = asyncio.create_task(engine.load(7, folder))
            await until(lambda: server.asked("load"))
            server.health = 503
            await until(lambda: not engine._fleet.well)
            assert not loading.done()
            server.hangs = True
            with pytest.raises(Unavailable):
                await loading


async def test_a_load_of_its_own_hides_nothing_either(endless: LocalEngine, folder: Path) -> None:
    """What a look brings goes on beside the next looks."""
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            (member,) = engine._fleet.members
            server.load_hangs = True
            server.adapters.clear()
            await until(lambda: len(server.asked("load")) == 2)
            server.health = 503
            await until(lambda: not member.well)
            server.health, server.load_hangs = 200, False
            await until(lambda: member.holds(7))
            assert await reply(engine, 7)


async def test_a_swap_does_not_wait_for_a_slow_load(endless: LocalEngine, folder: Path) -> None:
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            server.load_hangs = True
            loading = asyncio.create_task(engine.load(8, folder))
            await until(lambda: len(server.asked("load")) == 2)
            await asyncio.wait_for(engine.unload(7), 5)
            assert NAME in server.adapters
            server.load_hangs = False
            await loading
            await until(lambda: NAME not in server.adapters)


async def test_what_cannot_be_unloaded_is_tried_a_few_times_and_said_once(
    truth: LocalEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some vLLMs fail to unload what they have pushed out of memory already, and go on listing it."""
    monkeypatch.setattr("server.engine.member.DROP_AGAIN_SECONDS", 0.01)
    with FakeVllm(truth) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            server.unload_refusal = f"Failed to remove lora adapter '{NAME}' from the engine."
            await engine.unload(7)
            assert len(server.asked("unload")) == 1
            await until(lambda: len(server.asked("unload")) == members.DROP_TRIES)
            await asyncio.sleep(0.3)
            assert len(server.asked("unload")) == members.DROP_TRIES
            said = [
                r
                for r in caplog.records
                if r.levelno >= logging.WARNING and "Failed to remove" in r.getMessage()
            ]
            assert len(said) == 1
            await engine.load(7, folder)
            assert await reply(engine, 7)
            server.unload_refusal = ""
            await engine.unload(7)
            assert NAME not in server.adapters


async def test_only_one_that_has_forgotten_all_is_greeted_again(truth: LocalEngine, folder: Path) -> None:
    """Greeting takes a turn in its queue; for a single name that somebody else unloaded it is not worth it."""
    with FakeVllm(truth) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            await engine.load(8, folder)
            (member,) = engine._fleet.members
            greeted = len(server.asked("greet"))
            server.adapters.pop(NAME)
            await until(lambda: len(server.asked("load")) == 3 and member.held == {0, 7, 8})
            assert len(server.asked("greet")) == greeted
            server.adapters.clear()
            await until(lambda: len(server.asked("load")) == 5 and member.held == {0, 7, 8})
            assert len(server.asked("greet")) > greeted


async def test_one_that_was_only_slow_is_not_greeted_and_checked_again(
    endless: LocalEngine, folder: Path
) -> None:
    """It still lists what it was brought, so it is the one that it was; and it has enough to do."""
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            (member,) = engine._fleet.members
            engine._fleet._tasks[0].cancel()
            asked = len(server.said)
            server.hangs = True
            for _ in range(members.AWAY_AFTER):
                await member.look()
            assert not member.well
            server.hangs = False
            await member.look()
            assert (member.well, len(server.said)) == (True, asked)
            assert await reply(engine, 7)
            server.health = 503  # one that refuses may be starting anew
            for _ in range(members.AWAY_AFTER):
                await member.look()
            server.health = 200
            await member.look()
            await until(lambda: member.well)
            assert member.held == {0, 7}
            assert len(server.asked("greet")) > 3


async def test_one_that_is_stopping_but_well_to_all_questions_is_not_asked(endless: LocalEngine) -> None:
    """A server that drains answers its health with 200 and ends every request before it has begun."""
    with FakeVllm(endless) as steady, FakeVllm(endless) as stopping:
        async with over(steady, stopping) as engine:
            (_, member) = engine._fleet.members
            expected = [i for delta in await reply(engine) for i in delta.token_ids]
            stopping.drains = True
            for _ in range(4):
                assert [i for delta in await reply(engine) for i in delta.token_ids] == expected
            await until(lambda: not member.well)
            assert "before the first token" in engine._fleet.detail
            drawn = len(stopping.asked("draw"))
            for _ in range(4):
                await reply(engine)
            assert len(stopping.asked("draw")) == drawn
            stopping.drains = False
            await until(lambda: member.well and not member.doubted)


async def test_a_load_that_was_given_up_leaves_no_name_behind(endless: LocalEngine, folder: Path) -> None:
    """The server goes on reading, whoever has left."""
    with FakeVllm(endless) as server:
        async with over(server) as engine:
            server.load_hangs = True
            loading = asyncio.create_task(engine.load(7, folder))
            await until(lambda: server.asked("load"))
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await asyncio.sleep(0.1)
            server.load_hangs = False
            await until(lambda: server.asked("unload") == [NAME])
            assert not server.adapters


@pytest.mark.parametrize(("release", "is_well"), [("0.25.4", False), ("0.1.dev9+gabc", True), (None, True)])
async def test_a_release_that_mixes_adapters_up_is_not_used(
    endless: LocalEngine, release: str | None, is_well: bool
) -> None:
    server = FakeVllm(endless)
    server.release = release
    with server:
        async with over(server) as engine:
            assert (engine._fleet.well == 1) is is_well
            assert ("0.26" in engine._fleet.detail) is not is_well
