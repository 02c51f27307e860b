"""The echo engine keeps the engine's contract without a model."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.base import Delta, FinishReason, Prompt, Sampling
from server.engine.echo import EchoEngine, echo_renderer
from server.errors import AdapterRejected, Busy, NotFound, Unavailable

pytestmark = pytest.mark.anyio

PROMPT = Prompt(echo_renderer().render([{"role": "user", "content": "leeks, é and 🙂 tonight"}]).token_ids)


async def reply(
    engine: EchoEngine, *, seed: int = 0, version: int = 0, sampling: Sampling | None = None
) -> list[Delta]:
    return [d async for d in engine.generate(PROMPT, sampling or Sampling(seed=seed), version)]


def text(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas)


async def test_an_answer_repeats_and_differs_by_seed_and_version(tmp_path: Path) -> None:
    engine = EchoEngine()
    (tmp_path / "manifest.json").write_text("{}")
    await engine.load(3, tmp_path)
    assert text(await reply(engine)) == text(await reply(engine))
    assert len({text(await reply(engine, seed=s, version=v)) for s in (0, 1) for v in (0, 3)}) == 4
    assert "leeks" in text(await reply(engine))


async def test_logprobs_agree_with_generation_and_tell_versions_apart(tmp_path: Path) -> None:
    engine = EchoEngine()
    (tmp_path / "manifest.json").write_text("{}")
    await engine.load(1, tmp_path)
    deltas = await reply(engine, version=1)
    ids = tuple(i for d in deltas for i in d.token_ids)
    reported = tuple(p for d in deltas for p in d.logprobs)
    assert await engine.logprobs(1, PROMPT, ids) == reported
    assert await engine.logprobs(0, PROMPT, ids) != reported
    assert all(-2 <= p < 0 for p in reported)


async def test_the_text_is_what_the_ids_say_and_ends_once() -> None:
    deltas = await reply(EchoEngine())
    ids = [i for d in deltas for i in d.token_ids]
    assert echo_renderer().decode(ids) == text(deltas)
    assert [d.finish_reason for d in deltas if d.finish_reason] == [FinishReason.STOP]


async def test_limits_and_stop_strings_hold() -> None:
    engine = EchoEngine()
    short = await reply(engine, sampling=Sampling(max_tokens=10))
    assert sum(len(d.token_ids) for d in short) == 10
    assert short[-1].finish_reason is FinishReason.LENGTH
    cut = await reply(engine, sampling=Sampling(stop=("leeks",)))
    assert "leeks" not in text(cut)
    assert cut[-1].finish_reason is FinishReason.STOP


async def test_refusals_follow_the_contract(tmp_path: Path) -> None:
    engine = EchoEngine(max_open=0)
    with pytest.raises(Busy):
        await reply(engine)
    with pytest.raises(NotFound):
        await reply(engine, version=9)
    with pytest.raises(AdapterRejected):
        await engine.load(1, tmp_path)
    await engine.close()
    with pytest.raises(Unavailable):
        await reply(engine)


def test_it_starts_without_the_model_libraries() -> None:
    code = (
        "import sys; from server.engine import make_engine; from server.settings import Settings;"
        "make_engine(Settings(engine='echo')); print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
