"""What every engine keeps, whatever it is made of."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.decoding import fit
from server.engine.base import Delta, Engine, FinishReason, Prompt, Sampling
from server.engine.echo import EchoEngine
from server.engine.local import LocalEngine
from server.errors import Busy, NotFound, Unavailable
from server.modeling import Base
from tests.fakes import random_adapter, tiny_llama
from tests.vllm_fake import FakeVllm, engine_over

pytestmark = pytest.mark.anyio

PROMPT = Prompt(tuple(b"what shall we cook"))
SAMPLING = Sampling(temperature=1, max_tokens=16, seed=2)


def endless() -> Base:
    """Nothing but `max_tokens` and whoever cancels it ends a reply, and there is room for a long one."""
    base = tiny_llama(context=8192)
    base.renderer.stop_ids = frozenset()
    return base


@pytest.fixture(params=["echo", "local", "vllm"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    with ExitStack() as stack:
        if request.param == "echo":
            made: Engine = EchoEngine(max_open=12)
        elif request.param == "local":
            made = LocalEngine(fit(endless), max_running=4, max_waiting=8)
        else:
            truth = LocalEngine(fit(endless), max_running=16, max_waiting=16)
            fake = stack.enter_context(FakeVllm(truth))
            made = engine_over(fake, max_running=4, max_waiting=8)
            made.renderer.stop_ids = frozenset()
            await made.status()
        yield made
        await made.close()
    if request.param == "vllm":
        await truth.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_adapter(tiny_llama(), tmp_path / "adapter", seed=1)


def ids(deltas: list[Delta], index: int = 0) -> tuple[int, ...]:
    return tuple(i for d in deltas if d.index == index for i in d.token_ids)


async def replies(engine: Engine, *, version: int = 0, n: int = 1) -> list[Delta]:
    return [delta async for delta in engine.generate(PROMPT, SAMPLING, version, n)]


async def test_each_reply_ends_exactly_once_with_its_last_delta(engine: Engine) -> None:
    deltas = await replies(engine, n=3)
    for index in range(3):
        ends = [d.finish_reason is not None for d in deltas if d.index == index]
        assert ends == [False] * (len(ends) - 1) + [True]


async def test_reply_i_draws_with_the_next_seed(engine: Engine) -> None:
    both = await replies(engine, n=2)
    assert ids(both, 0) != ids(both, 1)
    assert ids(both, 0) == ids(await replies(engine))


async def test_every_id_has_a_logprob_that_scoring_confirms(engine: Engine, folder: Path) -> None:
    await engine.load(7, folder)
    deltas = await replies(engine, version=7)
    reported = [p for d in deltas for p in d.logprobs]
    scored = await engine.logprobs(7, PROMPT, ids(deltas))
    assert scored == pytest.approx(reported, abs=1e-3)
    assert await engine.logprobs(0, PROMPT, ids(deltas)) != pytest.approx(reported, abs=1e-3)


async def test_many_responses_are_scored_as_each_alone(engine: Engine, folder: Path) -> None:
    await engine.load(7, folder)
    items = [(Prompt(PROMPT.token_ids[:length]), tuple(range(2, 3 * length))) for length in (1, 6, 17)]
    alone = [await engine.logprobs(7, *item) for item in items]
    together = await engine.score_many(7, items)
    assert [len(row) for row in together] == [len(response) for _, response in items]
    for row, expected in zip(together, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-3)
    assert await engine.score_many(7, []) == []


async def test_versions_come_and_go(engine: Engine, folder: Path) -> None:
    assert (await engine.status()).versions == (0,)
    await engine.load(7, folder)
    await engine.load(7, folder)
    assert (await engine.status()).versions == (0, 7)
    await engine.unload(7)
    await engine.unload(0)
    assert (await engine.status()).versions == (0,)
    for call in (replies(engine, version=7), engine.logprobs(7, PROMPT, (1,))):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.code == "unknown_version"


async def test_leaving_gives_the_place_back(engine: Engine) -> None:
    stream = engine.generate(PROMPT, SAMPLING, 0, 2)
    await anext(stream)
    assert (await engine.status()).running == 2
    await stream.aclose()  # type: ignore[attr-defined]
    assert (await engine.status()).running == 0


async def test_what_would_find_no_place_is_known_before_it_is_asked_for(engine: Engine) -> None:
    engine.must_admit(12)
    with pytest.raises(Busy) as full:
        engine.must_admit(13)
    assert full.value.retry_after
    stream = engine.generate(PROMPT, Sampling(temperature=1, max_tokens=100), 0, 2)
    await anext(stream)
    with pytest.raises(Busy):
        engine.must_admit(11)
    await stream.aclose()  # type: ignore[attr-defined]
    engine.must_admit(12)
    await engine.close()
    with pytest.raises(Unavailable):
        engine.must_admit(1)


async def test_places_that_were_promised_are_not_given_away(engine: Engine) -> None:
    engine.must_admit(4, who="ada", promised={"bob": 8})
    with pytest.raises(Busy):
        engine.must_admit(4, who="ada", promised={"bob": 5, "eve": 4})


async def test_whose_request_it_is_changes_no_reply(engine: Engine) -> None:
    named = [delta async for delta in engine.generate(PROMPT, SAMPLING, 0, who="ada")]
    assert ids(named) == ids(await replies(engine))


async def test_a_closed_engine_cancels_and_then_refuses(engine: Engine) -> None:
    stream = engine.generate(PROMPT, Sampling(temperature=1, max_tokens=8000), 0)
    await anext(stream)
    await engine.close()
    *before, last = [delta async for delta in stream]
    assert last.finish_reason is FinishReason.CANCELLED
    assert not any(delta.finish_reason for delta in before)
    assert not (await engine.status()).ready
    with pytest.raises(Unavailable):
        await replies(engine)
