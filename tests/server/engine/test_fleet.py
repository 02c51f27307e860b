"""Several vLLM servers: what each holds before it is asked, and what becomes of replies when one goes away."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from server.engine.base import Delta, FinishReason, Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.vllm import AdaptersSeen, VllmEngine
from server.errors import AdapterRejected, Busy, Conflict, NotFound, Unavailable
from tests.fakes import random_adapter
from tests.vllm_fake import FakeVllm, over, until

pytestmark = pytest.mark.anyio

PROMPT = Prompt(tuple(b"what shall we cook"))
WARM = Sampling(temperature=1, max_tokens=20, seed=3)
LONG = Sampling(temperature=1, max_tokens=100, seed=8)
NAME = "hone-v000007"


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.fleet.LOOK_SECONDS", 0.05)


@pytest.fixture
def two(endless: LocalEngine) -> AsyncIterator[tuple[FakeVllm, FakeVllm]]:
    with ExitStack() as stack:
        yield stack.enter_context(FakeVllm(endless)), stack.enter_context(FakeVllm(endless))  # type: ignore[misc]


@pytest.fixture
def folder(truth: LocalEngine, tmp_path: Path) -> Path:
    return random_adapter(truth.base, tmp_path / "adapters" / "v000007", seed=1)


async def reply(engine: VllmEngine, version: int = 0, sampling: Sampling = WARM) -> list[Delta]:
    return [delta async for delta in engine.generate(PROMPT, sampling, version)]


def ids(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(i for delta in deltas for i in delta.token_ids)


def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a request finds out, the watch cannot have found out before."""
    monkeypatch.setattr("server.engine.fleet.LOOK_SECONDS", 600)


# --- adapters ----------------------------------------------------------------------------------------------


async def test_a_version_is_on_every_server_before_load_returns(
    two: tuple[FakeVllm, FakeVllm], folder: Path, tmp_path: Path
) -> None:
    async with over(*two, adapters=AdaptersSeen(tmp_path, str(tmp_path))) as engine:
        await engine.load(7, folder)
        assert [server.adapters for server in two] == [{NAME: str(folder)}] * 2
        assert engine._fleet.versions == (0, 7)
        both = await asyncio.gather(*(reply(engine, 7) for _ in range(2)))
        assert ids(both[0]) == ids(both[1]) != ids(await reply(engine))
        assert [len(server.asked("draw")) >= 1 for server in two] == [True, True]
        await engine.load(7, folder)
        await engine.unload(7)
        assert [server.adapters for server in two] == [{}, {}]
        await engine.unload(7)
        assert [server.asked("load") for server in two] == [[NAME], [NAME]]
        with pytest.raises(NotFound):
            await reply(engine, 7)


async def test_a_server_that_comes_later_is_brought_the_adapters_before_it_is_asked(
    endless: LocalEngine, folder: Path
) -> None:
    late = FakeVllm(endless)
    with FakeVllm(endless) as early:
        async with over(early, late) as engine:
            assert "is away" in engine._fleet.detail
            await engine.load(7, folder)
            with late.start():
                running = [asyncio.create_task(reply(engine, 7)) for _ in range(30)]
                await until(lambda: engine._fleet.well == 2)
                await asyncio.gather(*running, *(reply(engine, 7) for _ in range(10)))
                said = [kind for kind, _ in late.said]
                assert said.index("load") < said.index("draw")
                assert (late.unknown, engine._fleet.detail) == (0, "")


async def test_a_server_that_was_restarted_gets_its_adapters_back(
    two: tuple[FakeVllm, FakeVllm], folder: Path
) -> None:
    second = two[1]
    async with over(*two) as engine:
        await engine.load(7, folder)
        expected = ids(await reply(engine, 7))
        second.kill()
        assert {ids(await reply(engine, 7)) for _ in range(6)} == {expected}
        await until(lambda: engine._fleet.well == 1)
        assert f"127.0.0.1:{second.port} is away" in (await engine.status()).detail
        second.start()
        assert second.adapters == {}
        await until(lambda: engine._fleet.well == 2)
        assert second.adapters == {NAME: str(folder)}
        before = len(second.asked("draw"))
        assert {ids(await reply(engine, 7)) for _ in range(6)} == {expected}
        assert len(second.asked("draw")) > before


async def test_a_name_that_somebody_else_unloaded_is_brought_back_within_the_request(
    truth: LocalEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_looks(monkeypatch)
    with FakeVllm(truth) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            expected = ids(await reply(engine, 7))
            server.adapters.clear()
            assert ids(await reply(engine, 7)) == expected
            server.adapters.clear()
            assert len(await engine.logprobs(7, PROMPT, expected)) == len(expected)
            assert server.unknown == 2


async def test_a_name_is_taken_as_loaded_only_when_it_was_read_from_the_right_path(
    truth: LocalEngine, folder: Path
) -> None:
    with FakeVllm(truth) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
        async with over(server) as restarted:
            await restarted.load(7, folder)
            assert await reply(restarted, 7)
            await restarted.unload(7)
        server.adapters[NAME] = "/srv/another/hone/v000007"
        async with over(server) as stranger:
            with pytest.raises(Unavailable, match="is taken there, by /srv/another"):
                await stranger.load(7, folder)
            assert stranger._fleet.versions == (0,)
        assert server.adapters == {NAME: "/srv/another/hone/v000007"}


async def test_names_that_this_process_did_not_bring_are_left_alone(truth: LocalEngine, folder: Path) -> None:
    with FakeVllm(truth) as server:
        server.adapters["hone-v000099"] = "/adapters/v000099"
        async with over(server) as engine:
            await engine.load(7, folder)
            await engine.unload(7)
            await asyncio.sleep(0.2)
        assert server.asked("unload") == [NAME]
        assert "hone-v000099" in server.adapters


async def test_what_could_not_be_unloaded_is_unloaded_when_the_server_is_back(
    two: tuple[FakeVllm, FakeVllm], folder: Path
) -> None:
    async with over(*two) as engine:
        await engine.load(7, folder)
        two[1].health = 503
        await until(lambda: engine._fleet.well == 1)
        await engine.unload(7)
        assert [NAME in server.adapters for server in two] == [False, True]
        two[1].health = 200
        await until(lambda: not two[1].adapters)


async def test_a_version_in_use_is_not_pulled_away(endless: LocalEngine, folder: Path) -> None:
    with FakeVllm(endless) as server:
        server.pause = 0.002
        async with over(server) as engine:
            await engine.load(7, folder)
            running = asyncio.create_task(reply(engine, 7, LONG))
            await until(lambda: server.asked("draw"))
            with pytest.raises(Conflict) as caught:
                await engine.unload(7)
            assert caught.value.code == "version_in_use"
            await running
            await engine.unload(7)
            assert not server.adapters


UNFIT = "Call to add_lora method failed: While loading v7, expected target modules in {'q_proj'} but received ['x']"


async def test_an_adapter_that_no_server_can_take_is_rejected(
    two: tuple[FakeVllm, FakeVllm], folder: Path
) -> None:
    two[0].load_refusal = two[1].load_refusal = UNFIT
    async with over(*two) as engine:
        with pytest.raises(AdapterRejected, match="expected target modules"):
            await engine.load(7, folder)
        assert engine._fleet.versions == (0,)
        assert await reply(engine)


async def test_an_adapter_is_not_rejected_while_a_server_is_away(
    two: tuple[FakeVllm, FakeVllm], folder: Path
) -> None:
    two[0].load_refusal = UNFIT
    two[1].health = 503
    async with over(*two) as engine:
        with pytest.raises(Unavailable, match="expected target modules"):
            await engine.load(7, folder)
        two[1].health = 200
        await until(lambda: engine._fleet.well == 2)
        await engine.load(7, folder)
        assert await reply(engine, 7)


async def test_an_adapter_is_not_rejected_while_a_server_blames_something_else(
    two: tuple[FakeVllm, FakeVllm], folder: Path
) -> None:
    two[0].load_refusal, two[1].load_refusal = UNFIT, "Call to add_lora method failed: bad file descriptor"
    async with over(*two) as engine:
        with pytest.raises(Unavailable, match="bad file descriptor"):
            await engine.load(7, folder)
        two[1].load_refusal = ""
        await engine.load(7, folder)
        assert "expected target modules" in (await engine.status()).detail
        assert await reply(engine, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"takes_adapters": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({"has_lora": False}, "--enable-lora"),
        ({"max_rank": 2}, "--max-lora-rank"),
        ({}, "HONE_VLLM_ADAPTERS"),
    ],
)
async def test_what_is_the_servers_fault_can_be_mended_and_tried_again(
    truth: LocalEngine, folder: Path, options: dict[str, Any], words: str
) -> None:
    """Not a rejection, which would keep the version from ever being served."""
    there = "" if options else "/nowhere"
    with FakeVllm(truth, **options) as server:
        async with over(server, adapters=AdaptersSeen(folder.parent, there)) as engine:
            with pytest.raises(Unavailable) as caught:
                await engine.load(7, folder)
            assert words in caught.value.message


async def test_one_server_that_does_not_take_a_version_is_not_asked_for_it(
    endless: LocalEngine, folder: Path
) -> None:
    with FakeVllm(endless) as able, FakeVllm(endless, has_lora=False) as unable:
        async with over(able, unable) as engine:
            await engine.load(7, folder)
            assert "--enable-lora" in (await engine.status()).detail
            for _ in range(4):
                await reply(engine, 7)
                await reply(engine)
            models = [body["model"] for body in unable.asked("draw")]
            assert models
            assert set(models) == {"/models/tiny"}


async def test_what_a_server_could_not_take_is_not_tried_with_every_request(
    truth: LocalEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_looks(monkeypatch)
    with FakeVllm(truth) as server:
        async with over(server) as engine:
            await engine.load(7, folder)
            server.adapters.clear()
            server.load_refusal = "Call to add_lora method failed: out of memory"
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await reply(engine, 7)
            assert len(server.asked("load")) == 2
            assert "no memory" in (await engine.status()).detail


async def test_those_that_hold_a_version_share_its_replies(endless: LocalEngine, folder: Path) -> None:
    with FakeVllm(endless) as a, FakeVllm(endless, max_rank=2) as unable, FakeVllm(endless) as b:
        async with over(a, unable, b) as engine:
            await engine.load(7, folder)
            a.pause = b.pause = 0.01
            busy = [asyncio.create_task(reply(engine, 7, LONG)) for _ in range(6)]
            await until(lambda: len(a.asked("draw")) + len(b.asked("draw")) == 6)
            assert [len(server.asked("draw")) for server in (a, unable, b)] == [3, 0, 3]
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)


# --- do all of them hold the same? -------------------------------------------------------------------------


async def test_a_server_that_differs_is_set_apart_and_tried_again(
    endless: LocalEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.member.BRING_AGAIN_SECONDS", 0.1)
    with FakeVllm(endless) as a, FakeVllm(endless) as odd, FakeVllm(endless) as b:
        odd.off_by = 0.2
        async with over(a, odd, b) as engine:
            await engine.load(7, folder)
            assert "0.2 nats a token off the others'" in (await engine.status()).detail
            for _ in range(6):
                await reply(engine, 7)
            assert [len(server.asked("draw")) for server in (a, odd, b)] == [3, 0, 3]
            await until(lambda: len(odd.asked("unload")) >= 2)  # each try reads it from disk again
            odd.off_by = 0.0
            await until(lambda: not engine._fleet.detail)
            for _ in range(6):
                await reply(engine, 7)
            assert len(odd.asked("draw")) == 2


async def test_half_against_half_is_not_served(two: tuple[FakeVllm, FakeVllm], folder: Path) -> None:
    two[1].off_by = 0.2
    async with over(*two) as engine:
        with pytest.raises(Unavailable, match="do not agree on v7"):
            await engine.load(7, folder)
        assert engine._fleet.versions == (0,)
        await until(lambda: not any(server.adapters for server in two))
        two[1].off_by = 0.01
        await engine.load(7, folder)
        assert (await engine.status()).detail == ""


async def measure(truth: LocalEngine, folder: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Write the adapter's probe; its response and what the learner measured of it."""
    await truth.load(1, folder)
    response = tuple(b"soup and bread")
    measured, of_base = [await truth.logprobs(version, PROMPT, response) for version in (1, 0)]
    await truth.unload(1)
    row = {
        "prompt_ids": PROMPT.token_ids,
        "response_ids": response,
        "logprobs": measured,
        "base_logprobs": of_base,
    }
    (folder / "probe.json").write_text(json.dumps({"prompts": [row], "dtype": "float32"}))
    return response, measured


async def test_what_the_learner_measured_tells_which_half_is_right(
    two: tuple[FakeVllm, FakeVllm], truth: LocalEngine, folder: Path
) -> None:
    response, measured = await measure(truth, folder)
    two[0].off_by = -0.2
    async with over(*two) as engine:
        await engine.load(7, folder)
        assert [NAME in server.adapters for server in two] == [False, True]
        assert [body["prompt"] for body in two[1].asked("score")] == [[*PROMPT.token_ids, *response]]
        assert await engine.logprobs(7, PROMPT, response) == pytest.approx(measured, abs=1e-4)


async def test_what_nobody_scores_as_it_was_measured_is_tried_again(
    two: tuple[FakeVllm, FakeVllm], truth: LocalEngine, folder: Path
) -> None:
    """The one server that is well may have been started over another checkpoint: no fault of the adapter's."""
    await measure(truth, folder)
    two[0].off_by = 0.3
    two[1].health = 503
    async with over(*two) as engine:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{two[0].port} by 0.3"):
            await engine.load(7, folder)
        assert engine._fleet.versions == (0,)
        two[1].health = 200
        await until(lambda: engine._fleet.well == 2)
        await engine.load(7, folder)
        assert [NAME in server.adapters for server in two] == [False, True]


async def test_a_server_with_another_base_does_not_answer_without_an_adapter_either(
    endless: LocalEngine,
) -> None:
    late = FakeVllm(endless)
    late.base_off_by = 0.2
    with FakeVllm(endless) as early:
        async with over(early, late) as engine:
            with late.start():
                await until(lambda: engine._fleet.well == 2)
                for _ in range(4):
                    await reply(engine)
                assert late.asked("draw") == []
                assert "without adapters its log probabilities are 0.2 nats" in (await engine.status()).detail


async def test_the_base_that_goes_with_what_was_measured_counts_and_not_the_first_one(
    endless: LocalEngine, folder: Path
) -> None:
    await measure(endless, folder)
    late = FakeVllm(endless)
    with FakeVllm(endless) as early:
        early.base_off_by = early.off_by = 0.2
        async with over(early, late) as engine:
            with late.start():
                await until(lambda: engine._fleet.well == 2)
                await reply(engine)
                assert len(early.asked("draw")) == 1
                await engine.load(7, folder)
                for _ in range(4):
                    await reply(engine)
                await until(lambda: "without adapters" in engine._fleet.detail)
                assert (len(early.asked("draw")), len(late.asked("draw"))) == (1, 4)


async def test_a_slow_server_holds_up_no_promotion_and_is_compared_when_it_comes(
    two: tuple[FakeVllm, FakeVllm], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.fleet.TOGETHER_SECONDS", 0.1)
    slow = two[1]
    async with over(*two) as engine:
        slow.load_hangs = True
        await asyncio.wait_for(engine.load(7, folder), 5)
        for _ in range(3):
            assert await reply(engine, 7)
        assert slow.asked("draw") == []
        slow.off_by = 0.2
        slow.load_hangs = False
        await until(lambda: "off the others'" in engine._fleet.detail)
        monkeypatch.setattr("server.engine.member.BRING_AGAIN_SECONDS", 0.0)
        slow.off_by = 0.0
        engine._fleet.members[1].refused.clear()
        await until(lambda: engine._fleet.members[1].holds(7))


async def test_a_server_that_comes_later_is_held_against_what_was_agreed(
    endless: LocalEngine, folder: Path
) -> None:
    late = FakeVllm(endless)
    late.off_by = 0.2
    with FakeVllm(endless) as early:
        async with over(early, late) as engine:
            await engine.load(7, folder)
            with late.start():
                await until(lambda: engine._fleet.well == 2)
                for _ in range(4):
                    await reply(engine, 7)
                assert late.asked("draw") == []
                assert "off the others'" in (await engine.status()).detail


# --- choice and failures -----------------------------------------------------------------------------------


async def test_replies_go_where_fewest_are_written_and_else_by_turns(two: tuple[FakeVllm, FakeVllm]) -> None:
    async with over(*two) as engine:
        for _ in range(4):
            await reply(engine)
        assert [len(server.asked("draw")) for server in two] == [2, 2]
        two[0].pause = two[1].pause = 0.01
        busy = [asyncio.create_task(reply(engine, sampling=LONG)) for _ in range(6)]
        await until(lambda: sum(len(server.asked("draw")) for server in two) == 10)
        assert [len(server.asked("draw")) for server in two] == [5, 5]
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        assert [member.running for member in engine._fleet.members] == [0, 0]


async def test_what_a_server_writes_for_others_counts(two: tuple[FakeVllm, FakeVllm]) -> None:
    """Another Hone, or anybody else, may use the same servers."""
    two[0].others = 5
    async with over(*two) as engine:
        await until(lambda: engine._fleet.members[0].others == 5)
        for _ in range(4):
            await reply(engine)
        assert [len(server.asked("draw")) for server in two] == [0, 4]
        two[0].others = 0
        await until(lambda: engine._fleet.members[0].others == 0)
        await reply(engine)
        assert len(two[0].asked("draw")) == 1


async def test_before_its_first_token_a_reply_moves_to_another_server(
    two: tuple[FakeVllm, FakeVllm], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_looks(monkeypatch)
    async with over(*two) as engine:
        expected = ids(await reply(engine))
        two[1].failures = [500] * 20
        assert {ids(await reply(engine)) for _ in range(4)} == {expected}
        assert len(two[1].failures) < 20
        two[1].failures = []
        two[1].cut_after = 0
        assert {ids(await reply(engine)) for _ in range(4)} == {expected}
        two[1].kill()
        assert {ids(await reply(engine)) for _ in range(4)} == {expected}
        assert len(await engine.logprobs(0, PROMPT, expected)) == len(expected)
        two[0].kill()
        with pytest.raises(Unavailable) as caught:
            await reply(engine)
        assert caught.value.retry_after
        assert not (await engine.status()).ready


async def test_after_its_first_token_a_reply_ends_with_an_error(
    two: tuple[FakeVllm, FakeVllm], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="uvicorn.error")
    two[0].cut_after = two[1].cut_after = 3
    async with over(*two) as engine:
        seen: list[Delta] = []

        async def read() -> None:
            async for delta in engine.generate(PROMPT, WARM, 0):
                seen.append(delta)  # noqa: PERF401 what came before the error is the point

        with pytest.raises(Unavailable) as caught:
            await read()
        assert caught.value.code == "engine_failed"
        assert len(ids(seen)) == 3
        assert sum(len(server.asked("draw")) for server in two) == 1
        assert engine._places.taken == 0


async def test_a_killed_server_ends_the_replies_it_was_writing_and_no_others(
    two: tuple[FakeVllm, FakeVllm],
) -> None:
    two[0].pause = two[1].pause = 0.01
    async with over(*two) as engine:
        running = [asyncio.create_task(reply(engine, sampling=LONG)) for _ in range(4)]
        await until(lambda: sum(len(server.asked("draw")) for server in two) == 4)
        await asyncio.sleep(0.1)
        two[1].kill()
        ended = await asyncio.gather(*running, return_exceptions=True)
        assert sorted(type(end).__name__ for end in ended) == ["Unavailable", "Unavailable", "list", "list"]


async def test_a_request_that_has_broken_two_servers_is_not_shown_to_a_third(endless: LocalEngine) -> None:
    with FakeVllm(endless) as a, FakeVllm(endless) as b, FakeVllm(endless) as c:
        async with over(a, b, c) as engine:
            for server in (a, b, c):
                server.failures = [500]
            with pytest.raises(Unavailable):
                await reply(engine)
            assert sum(len(server.asked("draw")) for server in (a, b, c)) == 2


async def test_a_full_server_is_passed_over_and_not_taken_for_broken(
    two: tuple[FakeVllm, FakeVllm], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_looks(monkeypatch)
    async with over(*two) as engine:
        await engine.load(7, folder)
        expected = ids(await reply(engine, 7))
        for status in (503, 429):
            two[1].full = status
            assert {ids(await reply(engine, 7)) for _ in range(4)} == {expected}
            for _ in range(2):
                assert len(await engine.logprobs(7, PROMPT, expected)) == len(expected)
        two[0].full = 503
        for refused in (reply(engine, 7), engine.logprobs(7, PROMPT, expected)):
            with pytest.raises(Busy) as caught:
                await refused
            assert caught.value.retry_after
        assert (engine._fleet.well, engine._fleet.detail, engine._places.taken) == (2, "", 0)
        two[1].full = 0
        assert ids(await reply(engine, 7)) == expected


async def test_a_score_that_was_lost_is_not_shown_to_another_server(
    two: tuple[FakeVllm, FakeVllm], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have cost the first one its life: what is scored needs memory that vLLM has not set aside."""
    no_looks(monkeypatch)
    async with over(*two) as engine:
        await engine.load(7, folder)
        before = sum(len(server.asked("score")) for server in two)
        two[0].failures, two[1].failures = [500], [500]
        with pytest.raises(Unavailable):
            await engine.logprobs(7, PROMPT, (1, 2, 3))
        assert sum(len(server.asked("score")) for server in two) == before + 1
        two[0].failures, two[1].failures = [], []
        two[0].kill()
        for _ in range(2):  # one that refuses the connection has not seen it
            assert len(await engine.logprobs(7, PROMPT, (1, 2, 3))) == 3


async def test_an_unreachable_server_holds_up_no_load(
    two: tuple[FakeVllm, FakeVllm], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.replica.ANSWER_SECONDS", 0.1)
    async with over(*two) as engine:
        two[1].load_hangs = True
        loading = asyncio.create_task(engine.load(7, folder))
        await until(lambda: two[1].asked("load"))
        assert 7 not in engine._fleet.versions
        two[1].hangs = True
        await loading
        assert await reply(engine, 7)
        two[1].hangs = two[1].load_hangs = False
        await until(lambda: engine._fleet.members[1].holds(7))


# --- who may stand in the fleet ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["processed_logprobs", "raw_logits"])
async def test_log_probabilities_that_are_not_the_raw_policys_are_found_out(
    truth: LocalEngine, mode: str
) -> None:
    with FakeVllm(truth, logprobs=mode) as server:
        async with over(server) as engine:
            status = await engine.status()
            assert not status.ready
            assert "--logprobs-mode raw_logprobs" in status.detail


async def test_the_context_is_the_servers_when_it_is_shorter(endless: LocalEngine) -> None:
    with FakeVllm(endless, context=64) as short:
        async with over(short) as engine:
            assert engine.renderer.context == 63
            assert engine.renderer.reply_room <= 16
            last = (await reply(engine, sampling=LONG))[-1]
            assert last.finish_reason is FinishReason.LENGTH


async def test_a_server_with_a_shorter_context_than_the_others_is_not_used(endless: LocalEngine) -> None:
    late = FakeVllm(endless, context=64)
    with FakeVllm(endless) as server:
        async with over(server, late) as engine:
            with late.start():
                await until(lambda: "--max-model-len" in engine._fleet.detail)
                for _ in range(3):
                    await reply(engine)
                assert late.asked("draw") == []


async def test_what_is_no_vllm_is_said_and_asked_nothing(endless: LocalEngine) -> None:
    with FakeVllm(endless) as server:
        server.is_vllm = False
        async with over(server) as engine:
            assert "is it vLLM?" in (await engine.status()).detail
            with pytest.raises(Unavailable):
                engine.must_admit(1)
