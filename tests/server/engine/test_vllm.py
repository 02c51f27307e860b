"""Replies over vLLM are the replies of the local engine: ids, log probabilities and text."""

import asyncio
import logging
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from server.engine.base import Delta, Engine, FinishReason, Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.vllm import AdaptersSeen, vllm_engine
from server.errors import Busy, HoneError, Invalid, SetupError, Unavailable
from server.modeling import load_base
from server.settings import Settings
from tests.fakes import save_model
from tests.vllm_fake import ABORTED, FakeVllm, failure, over, until

pytestmark = pytest.mark.anyio

PROMPT = Prompt(tuple(b"what shall we cook"))
WARM = Sampling(temperature=1, max_tokens=40, seed=3)
LONG = Sampling(temperature=1, max_tokens=100, seed=8)


async def reply(
    engine: Engine, sampling: Sampling = WARM, *, n: int = 1, prompt: Prompt = PROMPT
) -> list[Delta]:
    return [delta async for delta in engine.generate(prompt, sampling, 0, n)]


def one(deltas: list[Delta], index: int = 0) -> tuple[str, tuple[int, ...], FinishReason | None]:
    """Text, ids and end of one reply."""
    own = [delta for delta in deltas if delta.index == index]
    return "".join(d.text for d in own), tuple(i for d in own for i in d.token_ids), own[-1].finish_reason


def logprobs(deltas: list[Delta]) -> list[float]:
    return [value for delta in deltas for value in delta.logprobs]


# --- what is said ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_tokens=30),
        *(Sampling(temperature=1, max_tokens=40, seed=seed) for seed in range(4)),
        Sampling(temperature=1.2, max_tokens=40, top_p=0.7, top_k=20, seed=2**53),
        Sampling(temperature=1, max_tokens=12, seed=5, top_logprobs=3),
    ],
)
async def test_a_reply_is_the_local_engines_reply(truth: LocalEngine, sampling: Sampling) -> None:
    """A tiny random model over bytes: its replies are full of halves of characters and of wrong bytes."""
    with FakeVllm(truth) as fake:
        async with over(fake) as engine:
            for prompt in (PROMPT, Prompt((7,)), Prompt(tuple(range(1, 60)))):
                there = await reply(engine, sampling, prompt=prompt)
                here = await reply(truth, sampling, prompt=prompt)
                assert one(there) == one(here)
                assert logprobs(there) == pytest.approx(logprobs(here))
                assert [d.top_logprobs for d in there] == [d.top_logprobs for d in here]


async def test_two_replies_are_one_request_with_neighbouring_seeds(endless: LocalEngine) -> None:
    with FakeVllm(endless) as fake:
        async with over(fake) as engine:
            both = await reply(engine, n=2)
            assert [body["n"] for body in fake.asked("draw")] == [2]
            alone = [await reply(engine, replace(WARM, seed=WARM.seed + i)) for i in range(2)]
    assert [one(both, i) for i in range(2)] == [one(deltas) for deltas in alone]
    assert one(both, 0) != one(both, 1)


async def test_greedy_replies_are_drawn_once_and_told_as_often_as_asked(truth: LocalEngine) -> None:
    """vLLM refuses `n` above 1 at temperature 0."""
    greedy = Sampling(temperature=0, max_tokens=12)
    with FakeVllm(truth) as fake:
        async with over(fake) as engine:
            three = await reply(engine, greedy, n=3)
            assert [body["n"] for body in fake.asked("draw")] == [1]
            assert engine._places.taken == 0
    assert {one(three, i) for i in range(3)} == {one(await reply(truth, greedy))}


async def test_a_stop_string_ends_the_reply_and_the_stream_behind_it(endless: LocalEngine) -> None:
    whole, ids, _ = one(await reply(endless, LONG))
    stop = whole[len(whole) // 3 :][:2]
    sampling = replace(LONG, stop=(stop,))
    here = one(await reply(endless, sampling))
    with FakeVllm(endless) as fake:
        fake.pause = 0.002
        async with over(fake) as engine:
            there = one(await reply(engine, sampling))
            await until(lambda: fake.cancelled == 1)
    assert there == here
    assert there[2] is FinishReason.STOP
    assert stop not in there[0]
    assert len(there[1]) < len(ids)


async def test_a_stop_string_of_one_reply_leaves_its_sibling_alone(endless: LocalEngine) -> None:
    texts = [one(await reply(endless, replace(WARM, seed=s)))[0] for s in (3, 4)]
    stop = next(
        texts[0][at : at + 3]
        for at in range(3, len(texts[0]))
        if len(texts[0][at : at + 3].encode()) >= 3 and texts[0][at : at + 3] not in texts[1]
    )
    with FakeVllm(endless) as fake:
        async with over(fake) as engine:
            both = await reply(engine, replace(WARM, stop=(stop,)), n=2)
    assert one(both, 0)[2] is FinishReason.STOP
    assert one(both, 1)[0] == texts[1]
    assert one(both, 1)[2] is FinishReason.LENGTH


async def test_the_blank_before_a_reply_is_dropped_and_the_templates_own_stop_strings_hold(
    endless: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one(await reply(endless))[0]
    first, stop = whole[0], whole[6:8]
    with FakeVllm(endless) as fake:
        async with over(fake) as engine:
            for renderer in (engine.renderer, endless.base.renderer):
                monkeypatch.setattr(renderer, "reply_prefix", first)
                monkeypatch.setattr(renderer, "stop_strings", (stop,))
            assert one(await reply(engine)) == one(await reply(endless))
            assert one(await reply(engine))[0] == whole[1:6]


async def test_a_reply_ends_where_the_context_does(endless: LocalEngine) -> None:
    with FakeVllm(endless) as fake:
        async with over(fake) as engine:
            assert engine.renderer.context == 127
            prompt = Prompt(tuple(range(1, 121)))
            _, ids, reason = one(await reply(engine, LONG, prompt=prompt))
            assert (len(ids), reason) == (7, FinishReason.LENGTH)
            with pytest.raises(Invalid) as caught:
                await reply(engine, prompt=Prompt((1,) * 127))
            assert caught.value.code == "prompt_too_long"


async def test_scoring_says_what_the_local_engine_says(truth: LocalEngine) -> None:
    response = tuple(range(20, 60))
    with FakeVllm(truth) as fake:
        async with over(fake) as engine:
            there = await engine.logprobs(0, PROMPT, response)
            assert there == pytest.approx(await truth.logprobs(0, PROMPT, response), abs=1e-4)
            assert await engine.logprobs(0, PROMPT, ()) == ()
            full = engine.renderer.context - len(PROMPT.token_ids)
            assert len(await engine.logprobs(0, PROMPT, (9,) * full)) == full
            with pytest.raises(Invalid):
                await engine.logprobs(0, PROMPT, (9,) * (full + 1))


async def test_many_are_scored_a_few_at_a_time_and_in_their_order(truth: LocalEngine) -> None:
    responses = [tuple(range(20 + n, 24 + 2 * n)) for n in range(11)]
    with FakeVllm(truth) as fake:
        fake.pause = 0.02
        async with over(fake) as engine:
            there = await engine.score_many(0, [(PROMPT, response) for response in responses])
            here = [await truth.logprobs(0, PROMPT, response) for response in responses]
            assert [pytest.approx(row, abs=1e-4) for row in there] == here
            assert fake.most_scoring == 4
            with pytest.raises(Invalid):
                await engine.score_many(0, [(PROMPT, (1,)), (PROMPT, (9,) * 500), (PROMPT, (2,))])
            assert (fake.scoring, sum(member.running for member in engine._fleet.members)) == (0, 0)
            assert await engine.score_many(0, []) == []


async def test_what_ends_a_reply_and_what_truncates_it_is_sent(endless: LocalEngine) -> None:
    """vLLM stops at the ids that it is told, not at those that are looked for here."""
    _, ids, _ = one(await reply(endless))
    stop = ids[6]
    with FakeVllm(endless) as fake:
        fake.pause = 0.002
        async with over(fake) as engine:
            engine.renderer.stop_ids = frozenset({stop, 250})
            _, there, reason = one(await reply(engine, replace(WARM, top_k=20)))
            assert there == one(await reply(endless, replace(WARM, top_k=20)))[1][: len(there)]
            _, there, reason = one(await reply(engine))
            assert (there, reason) == (ids[: ids.index(stop) + 1], FinishReason.STOP)
            assert fake.cancelled == 0
            first, second = fake.asked("draw")
            assert (first["top_k"], second["top_k"]) == (20, 0)
            assert second["stop_token_ids"] == sorted({stop, 250})


async def test_several_tokens_at_once_and_a_count_at_the_end_change_nothing(truth: LocalEngine) -> None:
    with FakeVllm(truth) as fake:
        fake.burst, fake.counts_tokens = 3, True
        async with over(fake) as engine:
            for seed in range(3):
                sampling = replace(WARM, seed=seed, top_logprobs=2)
                there, here = await reply(engine, sampling, n=2), await reply(truth, sampling, n=2)
                assert [one(there, i) for i in range(2)] == [one(here, i) for i in range(2)]


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (failure(400, "BadRequestError"), Invalid),
        (failure(500), Unavailable),
        (ABORTED, Unavailable),
        (b"", Unavailable),
    ],
)
async def test_a_stream_that_ends_before_its_time(
    endless: LocalEngine, after: int, last: bytes, expected: type[HoneError]
) -> None:
    """The request's own fault is nobody else's; any other is another server's turn, until a token was seen."""
    with FakeVllm(endless) as odd, FakeVllm(endless) as other:
        async with over(odd, other) as engine:
            engine._fleet.members[1].chosen = 1  # the odd one's turn
            odd.ends_after = after, last
            seen: list[Delta] = []

            async def read() -> None:
                async for delta in engine.generate(PROMPT, WARM, 0):
                    seen.append(delta)  # noqa: PERF401 what came before the error is the point

            if expected is Unavailable and not after:
                await read()
                assert len(other.asked("draw")) == 1
            else:
                with pytest.raises(expected):
                    await read()
                assert sum(len(delta.token_ids) for delta in seen) == after
                assert other.asked("draw") == []
            assert len(odd.asked("draw")) == 1
            assert (engine._fleet.well, engine._places.taken) == (2, 0)


# --- places ------------------------------------------------------------------------------------------------


async def test_leaving_cancels_the_stream_upstream(endless: LocalEngine) -> None:
    with FakeVllm(endless) as fake:
        fake.pause = 0.005
        async with over(fake) as engine:
            async with aclosing(cast(Any, engine.generate(PROMPT, LONG, 0))) as stream:
                await anext(stream)
            await until(lambda: fake.cancelled == 1)
            task = asyncio.create_task(reply(engine, LONG))
            await until(lambda: len(fake.asked("draw")) == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: fake.cancelled == 2)
            assert (await engine.status()).running == 0
            assert await reply(engine, replace(LONG, max_tokens=3))


async def test_connections_are_used_again_once_a_stream_was_read_to_its_end(truth: LocalEngine) -> None:
    with FakeVllm(truth) as fake:
        async with over(fake) as engine:
            for seed in range(5):
                await reply(engine, replace(WARM, seed=seed))
            assert fake.server is not None
            assert len(fake.server.server_state.connections) <= 2


async def test_a_full_house_is_busy_and_says_when_to_come_back(endless: LocalEngine) -> None:
    with FakeVllm(endless) as fake:
        async with over(fake, max_running=1, max_waiting=1) as engine:
            await reply(engine)
            fake.pause = 0.002
            tasks = [asyncio.create_task(reply(engine, LONG)) for _ in range(2)]
            await until(lambda: engine._places.taken == 2)
            status = await engine.status()
            assert (status.running, status.waiting) == (1, 1)
            with pytest.raises(Busy) as caught:
                await reply(engine)
            assert caught.value.retry_after is not None
            assert caught.value.retry_after >= 1
            await asyncio.gather(*tasks)
            assert await reply(engine)


async def test_users_take_turns_at_a_server_that_is_full(endless: LocalEngine) -> None:
    """vLLM's own queue would serve all of one first."""
    with FakeVllm(endless) as fake:
        async with over(fake, max_running=1) as engine:

            async def ask(who: str, seed: int) -> None:
                async for _ in engine.generate(PROMPT, Sampling(max_tokens=4, seed=seed), 0, who=who):
                    assert engine._fleet.members[0].running == 1

            asked = [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 5), ("c", 6)]
            tasks = [asyncio.create_task(ask(who, seed)) for who, seed in asked]
            await until(lambda: engine._places.taken == 6)
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [body["seed"] for body in fake.asked("draw")] == [1, 3, 5, 6, 4]
            assert (engine._places.taken, engine._turns._taken) == (0, 0)


async def test_a_reply_that_waits_for_its_turn_ends_as_cancelled_when_all_is_closed(
    endless: LocalEngine,
) -> None:
    with FakeVllm(endless) as fake:
        fake.pause = 0.01
        async with over(fake, max_running=1) as engine:
            tasks = [asyncio.create_task(reply(engine, LONG)) for _ in range(2)]
            await until(lambda: fake.asked("draw") and engine._places.taken == 2)
            await engine.close()
            ends = [one(deltas)[2] for deltas in await asyncio.gather(*tasks)]
            assert ends == [FinishReason.CANCELLED] * 2


async def test_closing_ends_running_replies_as_cancelled(endless: LocalEngine) -> None:
    with FakeVllm(endless) as fake:
        fake.pause = 0.01
        async with over(fake) as engine:
            task = asyncio.create_task(reply(engine, LONG, n=2))
            await until(lambda: fake.asked("draw"))
            await asyncio.sleep(0.05)
            await engine.close()
            deltas = await task
            assert [one(deltas, i)[2] for i in range(2)] == [FinishReason.CANCELLED] * 2
            assert not (await engine.status()).ready
            with pytest.raises(Unavailable):
                engine.must_admit(1)
            await until(lambda: fake.cancelled == 1)


# --- the key, the base, the settings -----------------------------------------------------------------------


async def test_the_key_is_sent_and_never_logged(truth: LocalEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeVllm(truth, key="s3cret-of-the-gpu") as fake:
        async with over(fake, key="s3cret-of-the-gpu") as engine:
            assert (await engine.status()).ready
            assert await reply(engine)
        async with over(fake, key="s3cret-of-yesterday") as engine:
            status = await engine.status()
            assert not status.ready
            assert "HONE_VLLM_KEY" in status.detail
            with pytest.raises(Unavailable):
                await reply(engine)
    settings = Settings(vllm_key="s3cret-of-the-gpu")  # type: ignore[arg-type]
    assert settings.environment()["HONE_VLLM_KEY"] == "s3cret-of-the-gpu"
    said = "\n".join([*(record.getMessage() for record in caplog.records), repr(settings), status.detail])
    assert "s3cret" not in said


async def test_the_base_is_known_by_the_same_names_as_in_the_local_engine(
    truth: LocalEngine, tmp_path: Path
) -> None:
    """An adapter is bound to them: what the learner trained beside one engine must be taken by the other."""
    folder = save_model(tmp_path / "tiny")
    base = load_base(str(folder))
    with FakeVllm(truth) as fake:
        served = vllm_engine(Settings(model=str(folder), vllm_url=f" {fake.url}/v1/ ,", data_dir=tmp_path))
        assert (served.base.base_id, served.base.base_hash) == (base.base_id, base.base_hash)
        assert served.base.template_hash == base.renderer.template_hash == served.renderer.template_hash
        assert served.base.dtype == "bfloat16"
        assert (await served.engine.status()).name == "vllm:tiny"
        prompt = served.renderer.render([{"role": "user", "content": "hello"}])
        assert await reply(served.engine, prompt=Prompt(prompt.token_ids))
        await served.engine.close()


async def test_settings_that_cannot_stand_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--vllm-url"):
        vllm_engine(Settings(engine="vllm"))
    with pytest.raises(SetupError, match="http://host:port") as caught:
        vllm_engine(Settings(engine="vllm", vllm_url="me:pass@gpu1:8000"))
    assert "pass" not in caught.value.message
    with pytest.raises(SetupError):
        vllm_engine(Settings(engine="vllm", vllm_url="http://gpu1:8000", model=str(tmp_path / "nothing")))


def test_a_folder_is_named_as_vllm_sees_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", vllm_adapters="/mnt/adapters/")
    seen = AdaptersSeen(settings.adapters_dir, settings.vllm_adapters)
    here = tmp_path / "data" / "adapters" / "default" / "v000013"
    assert seen.path(here) == "/mnt/adapters/default/v000013"
    assert AdaptersSeen(settings.adapters_dir, "").path(here) == str(here)
    with pytest.raises(Unavailable):
        seen.path(tmp_path / "elsewhere")
    bucket = Settings(data_dir=tmp_path, artifacts_url="s3://bucket/prefix")
    assert bucket.adapters_dir == tmp_path / "fetched" / "adapters"
    assert Settings(artifacts_url=f"file://{tmp_path}").adapters_dir == tmp_path / "adapters"


def test_it_starts_without_the_tensor_library() -> None:
    code = (
        "import sys; import server.engine.vllm, server.checkpoint;"
        "print({'torch', 'transformers', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
