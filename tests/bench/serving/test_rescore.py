"""Stored replies are found in the record and scored by their own version."""

import asyncio
from pathlib import Path

import pytest
from sqlmodel import Session

from server.decoding import fit
from server.engine.base import Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.machine import local_engine
from server.settings import Settings
from server.store import adapters, conversations, migrate
from server.store.keys import ensure_client
from server.store.session import open_store
from tests.bench.serving import rescore
from tests.bench.serving.rescore import Written
from tests.fakes import random_adapter, save_model, tiny_llama
from tests.planting import plant

PROMPT = (5, 9, 2, 77)


async def written_by(engine: LocalEngine, *, version: int, count: int) -> list[Written]:
    found = []
    for seed in range(count):
        sampling = Sampling(temperature=1, max_tokens=8, seed=seed)
        deltas = [delta async for delta in engine.generate(Prompt(PROMPT), sampling, version)]
        ids = tuple(i for delta in deltas for i in delta.token_ids)
        found.append(Written(version, (Prompt(PROMPT), ids), [p for d in deltas for p in d.logprobs]))
    return found


def test_replies_score_as_stored_under_their_own_version_and_under_no_other(tmp_path: Path) -> None:
    folder = random_adapter(tiny_llama(), tmp_path / "a", seed=1)

    async def story() -> None:
        engine = LocalEngine(fit(tiny_llama), max_running=4, max_waiting=8)
        await engine.load(7, folder)
        true = [*await written_by(engine, version=0, count=3), *await written_by(engine, version=7, count=3)]
        good = await rescore.compared(engine, true)
        assert (good["rescored_replies"], good["rescored_versions"]) == (6, 2)
        assert good["rescore_mean"] <= good["rescore_max"] < 1e-3
        assert good["other_version_mean"] > 0.02
        swapped = [*true[:5], true[5]._replace(version=0)]
        assert (await rescore.compared(engine, swapped))["rescore_max"] > 0.02
        await engine.close()

    asyncio.run(story())


def test_the_record_of_an_installation_is_scored_by_its_own_adapters(tmp_path: Path) -> None:
    """Written by hand as a server would: prompt, ids and numbers of an engine that held the planted version."""
    model, data = save_model(tmp_path / "model", context=256), tmp_path / "data"
    data.mkdir()
    migrate.upgrade(Settings(data_dir=data).resolved_database_url)
    store = open_store(Settings(data_dir=data).resolved_database_url)
    store.write(lambda session: adapters.ensure_segment(session, "default").name)
    plant(data, count=1, model=str(model))

    async def write() -> list[Written]:
        settings = Settings(data_dir=data, model=str(model), dtype="float32", threads=1)
        engine = local_engine(settings).engine
        assert isinstance(engine, LocalEngine)
        await engine.load(1, data / "adapters" / "default" / "v000001")
        made = [await written_by(engine, version=version, count=2) for version in (0, 1)]
        await engine.close()
        return [one for mine in made for one in mine]

    client = store.write(lambda session: ensure_client(session, "c").id)
    for one in asyncio.run(write()):
        store.write(lambda session, one=one: keep(session, client, one))
    store.close()
    found = rescore.rescored(data, model=model, dtype="float32")
    assert (found["rescored_replies"], found["rescored_versions"]) == (4, 2)
    assert found["rescore_max"] == pytest.approx(0, abs=1e-3)


def keep(session: Session, client: str, one: Written) -> None:
    opened = conversations.open_turn(
        session,
        client_id=client,
        user="ada",
        segment="default",
        conversation_id=None,
        messages=[],
        prompt_token_ids=list(one.item[0].token_ids),
        template_hash="x",
        truncated=False,
        train=False,
        replies=[conversations.PlannedReply(version=one.version, seed=1, sampling={}, purpose="single")],
    )
    conversations.finish_reply(
        session,
        reply_id=opened.reply_ids[0],
        text="",
        token_ids=list(one.item[1]),
        logprobs=list(one.logprobs),
        state="done",
        finish_reason="length",
        seed=1,
    )
