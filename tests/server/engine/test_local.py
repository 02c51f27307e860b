"""The local engine under concurrent callers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch

from server.decoding import Decoder, fit
from server.engine import local, make_engine
from server.engine.base import Delta, FinishReason, Prompt, Sampling
from server.engine.local import LocalEngine
from server.errors import AdapterRejected, Busy, Conflict, Invalid, NotFound, SetupError, Unavailable
from server.settings import Settings
from tests.fakes import random_adapter, save_model, tiny_llama

pytestmark = pytest.mark.anyio

PROMPT = Prompt((5, 6, 7, 8))
GREEDY = Sampling(temperature=0, max_tokens=24)
WARM = Sampling(temperature=1, max_tokens=24, seed=3)
LONG = Sampling(temperature=1, max_tokens=110, seed=8)


def engine_of(*, context: int = 128, max_running: int = 8, max_waiting: int = 64) -> LocalEngine:
    torch.set_num_threads(1)
    return LocalEngine(
        fit(lambda: tiny_llama(context=context)), max_running=max_running, max_waiting=max_waiting
    )


async def reply(
    engine: LocalEngine, sampling: Sampling = WARM, *, version: int = 0, prompt: Prompt = PROMPT
) -> list[Delta]:
    return [delta async for delta in engine.generate(prompt, sampling, version)]


async def count(engine: LocalEngine, *, who: str) -> int:
    """How many deltas a reply of `who` has."""
    return len([delta async for delta in engine.generate(PROMPT, WARM, 0, who=who)])


def ids(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(i for delta in deltas for i in delta.token_ids)


def never_ends(engine: LocalEngine) -> None:
    """No id ends a reply, so that only `max_tokens` and cancellation do."""
    engine.base.renderer.stop_ids = frozenset()


async def settle(engine: LocalEngine, *, running: int) -> None:
    deadline = time.monotonic() + 5
    while (await engine.status()).running != running:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_reply_ends_once_and_its_logprobs_can_be_scored_again() -> None:
    engine = engine_of()
    deltas = await reply(engine)
    assert [d.finish_reason is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
    scored = await engine.logprobs(0, PROMPT, ids(deltas))
    reported = [p for d in deltas for p in d.logprobs]
    assert scored == pytest.approx(reported, abs=1e-3)
    await engine.close()


async def test_several_replies_are_told_apart_and_use_neighbouring_seeds() -> None:
    engine = engine_of()
    never_ends(engine)
    both: dict[int, list[Delta]] = {0: [], 1: []}
    async for delta in engine.generate(PROMPT, WARM, 0, n=2):
        both[delta.index].append(delta)
    alone = [await reply(engine, Sampling(temperature=1, max_tokens=24, seed=3 + i)) for i in range(2)]
    assert [ids(both[i]) for i in range(2)] == [ids(a) for a in alone]
    assert ids(both[0]) != ids(both[1])
    await engine.close()


async def test_thirty_callers_get_what_each_would_get_alone() -> None:
    engine = engine_of()
    prompts = [Prompt(tuple(range(1, 3 + i % 11))) for i in range(30)]
    crowd = await asyncio.gather(
        *(
            reply(engine, Sampling(temperature=1.1, max_tokens=20, seed=i), prompt=p)
            for i, p in enumerate(prompts)
        )
    )
    for i in (0, 7, 29):
        lonely = await reply(engine, Sampling(temperature=1.1, max_tokens=20, seed=i), prompt=prompts[i])
        assert ids(lonely) == ids(crowd[i])
        assert "".join(d.text for d in lonely) == "".join(d.text for d in crowd[i])
    await engine.close()


async def test_loading_does_not_touch_replies_in_flight(tmp_path: Path) -> None:
    engine = engine_of(context=1024)
    never_ends(engine)
    folder = random_adapter(engine.base, tmp_path / "a", seed=1)
    sampling = Sampling(
        temperature=1, max_tokens=700, seed=2
    )  # long enough to be there while the other loads
    expected = ids(await reply(engine, sampling))
    running = asyncio.create_task(reply(engine, sampling))
    await settle(engine, running=1)
    await engine.load(4, folder)
    assert not running.done()
    new = await reply(engine, sampling, version=4)
    assert ids(await running) == expected
    assert ids(new) != expected
    assert (await engine.status()).versions == (0, 4)
    await engine.close()


async def test_a_version_in_use_is_not_pulled_away(tmp_path: Path) -> None:
    engine = engine_of(context=1024)
    never_ends(engine)
    await engine.load(1, random_adapter(engine.base, tmp_path / "a", seed=1))
    running = asyncio.create_task(reply(engine, Sampling(max_tokens=700, seed=2), version=1))
    await settle(engine, running=1)
    with pytest.raises(Conflict):
        await engine.unload(1)
    await running
    await engine.unload(1)
    with pytest.raises(NotFound) as caught:
        await reply(engine, version=1)
    assert caught.value.code == "unknown_version"
    await engine.close()


async def test_a_folder_that_does_not_fit_is_rejected_and_nothing_changes(tmp_path: Path) -> None:
    engine = engine_of()
    with pytest.raises(AdapterRejected):
        await engine.load(1, tmp_path)
    assert (await engine.status()).versions == (0,)
    assert await reply(engine)
    await engine.close()


async def test_a_full_queue_is_busy_and_says_when_to_come_back() -> None:
    engine = engine_of(max_running=1, max_waiting=1)
    never_ends(engine)
    await reply(engine)
    tasks = [asyncio.create_task(reply(engine, LONG)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Busy) as caught:
        await reply(engine)
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    status = await engine.status()
    assert (status.running, status.waiting) == (1, 1)
    await asyncio.gather(*tasks)
    assert await reply(engine)
    await engine.close()


async def test_a_flood_of_one_user_delays_nobody_else_by_more_than_a_turn() -> None:
    """First come first served: whoever asked twenty at once was served twenty before the next."""
    engine = engine_of(max_running=1, max_waiting=64)
    never_ends(engine)
    order: list[str] = []

    async def ask(who: str) -> None:
        async for _ in engine.generate(PROMPT, Sampling(temperature=1, max_tokens=6, seed=1), 0, who=who):
            pass
        order.append(who)

    flood = [asyncio.create_task(ask("flood")) for _ in range(20)]
    await asyncio.sleep(0)  # all twenty have asked before the others do
    await asyncio.gather(ask("ada"), ask("bob"), *flood)
    assert len(order) == 22
    # One of the flood runs, one more may have its turn before each of the others.
    assert {"ada", "bob"} <= set(order[:5]), order
    await engine.close()


async def test_one_user_is_sent_away_while_others_are_still_admitted() -> None:
    engine = engine_of(max_running=1, max_waiting=4)
    never_ends(engine)
    running = asyncio.create_task(reply(engine, LONG))
    await settle(engine, running=1)
    waiting = [asyncio.create_task(count(engine, who="flood")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Busy) as caught:
        engine.must_admit(1, who="flood")
    assert caught.value.code == "too_many_waiting"
    assert caught.value.retry_after
    engine.must_admit(2, who="ada")
    await asyncio.gather(running, *waiting)
    engine.must_admit(5, who="flood")
    await engine.close()


async def test_one_that_leaves_while_it_waits_gives_its_place_back() -> None:
    engine = engine_of(max_running=1, max_waiting=1)
    never_ends(engine)
    running = asyncio.create_task(reply(engine, LONG))
    await settle(engine, running=1)
    waiting = asyncio.create_task(count(engine, who="ada"))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        engine.must_admit(1, who="bob")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    engine.must_admit(1, who="bob")
    assert (await engine.status()).waiting == 0
    await running
    await engine.close()


async def test_a_caller_who_leaves_frees_the_place_at_once() -> None:
    engine = engine_of(max_running=1, max_waiting=8)
    never_ends(engine)
    async with aclosing(engine.generate(PROMPT, LONG, 0)) as stream:  # type: ignore[type-var]
        await anext(stream)
    assert (await engine.status()).running == 0
    assert await reply(engine)
    await engine.close()


async def test_a_cancelled_task_frees_its_place() -> None:
    engine = engine_of(max_running=1, max_waiting=0)
    never_ends(engine)
    task = asyncio.create_task(reply(engine, LONG))
    await settle(engine, running=1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await engine.status()).running == 0
    assert await reply(engine)
    await engine.close()


async def test_a_slow_reader_holds_nobody_up() -> None:
    engine = engine_of()
    never_ends(engine)
    stream: AsyncIterator[Delta] = engine.generate(PROMPT, LONG, 0)
    first = await anext(stream)
    assert await reply(engine)
    rest = [delta async for delta in stream]
    assert len(ids([first, *rest])) == 110
    await engine.close()


async def test_a_failing_step_ends_its_replies_and_the_engine_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of()
    never_ends(engine)
    real = engine._decoder.step
    calls = 0

    def step() -> list[object]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return real()  # type: ignore[return-value]

    monkeypatch.setattr(engine._decoder, "step", step)
    with pytest.raises(Unavailable):
        await reply(engine)
    assert (await engine.status()).ready
    assert len(ids(await reply(engine))) == 24
    await engine.close()


async def test_an_engine_that_cannot_heal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()

    def broken(*_: object) -> None:
        raise SetupError("the weights are gone")

    monkeypatch.setattr(engine._decoder, "step", broken)
    monkeypatch.setattr(local, "check", broken)
    with pytest.raises(Unavailable):
        await reply(engine)
    status = await engine.status()
    assert not status.ready
    assert "the weights are gone" in status.detail
    with pytest.raises(Unavailable):
        await reply(engine)
    await engine.close()


async def test_closing_ends_running_replies_as_cancelled() -> None:
    engine = engine_of(context=1024)
    never_ends(engine)
    task = asyncio.create_task(reply(engine, Sampling(max_tokens=1000)))
    await settle(engine, running=1)
    await engine.close()
    assert (await task)[-1].finish_reason is FinishReason.CANCELLED
    assert not (await engine.status()).ready
    with pytest.raises(Unavailable):
        await reply(engine)


async def test_a_prompt_beyond_the_context_is_invalid() -> None:
    engine = engine_of()
    with pytest.raises(Invalid):
        await reply(engine, prompt=Prompt(tuple([1] * 128)))
    with pytest.raises(Invalid):
        await engine.logprobs(0, Prompt((1,) * 100), (2,) * 60)
    await engine.close()


async def test_the_settings_name_the_model(tmp_path: Path) -> None:
    made = make_engine(Settings(model=str(save_model(tmp_path / "tiny")), threads=1))
    prompt = made.renderer.render([{"role": "user", "content": "hello"}])
    deltas = [d async for d in made.engine.generate(Prompt(prompt.token_ids), GREEDY, 0)]
    assert deltas[-1].finish_reason
    assert made.base.template_hash == made.renderer.template_hash
    await made.engine.close()
    with pytest.raises(SetupError):
        make_engine(Settings(model=str(tmp_path / "nothing")))


async def test_the_status_never_reads_what_the_engine_thread_is_changing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Decoder.held_bytes.fget
    assert counted

    def by_its_own_thread(decoder: Decoder) -> int:
        assert threading.current_thread().name == "hone-engine"
        return int(counted(decoder))

    monkeypatch.setattr(Decoder, "held_bytes", property(by_its_own_thread))
    engine = engine_of()
    never_ends(engine)
    replies = asyncio.gather(*(reply(engine, LONG) for _ in range(3)))
    most = 0
    while not replies.done():
        status = await engine.status()
        most = max(most, status.rows)
        await asyncio.sleep(0)
    await replies
    assert most == 3
    deadline = time.monotonic() + 5
    while (await engine.status()).rows:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert (await engine.status()).held_bytes == 0
    await engine.close()
