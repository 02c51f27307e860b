"""The doctor at vLLM servers: each ailment is caused, and the way out is named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.decoding import fit
from server.doctor import Finding, Level, examine
from server.doctor_vllm import check_vllm
from server.engine.local import LocalEngine
from server.settings import Settings
from server.store import adapters, migrate
from server.store.session import open_store
from tests.fakes import tiny_llama
from tests.server.publishing import publish
from tests.vllm_fake import FakeVllm


@pytest.fixture(scope="module")
def truth() -> Iterator[LocalEngine]:
    engine = LocalEngine(fit(tiny_llama), max_running=2, max_waiting=2)
    yield engine
    asyncio.run(engine.close())


def look(*urls: str, **options: Any) -> list[Finding]:
    settings = Settings(engine="vllm", vllm_url=",".join(urls), **{"model": "/srv/tiny", **options})
    return list(check_vllm(settings))


def test_servers_that_are_well(truth: LocalEngine) -> None:
    with FakeVllm(truth) as first, FakeVllm(truth, key="k") as second:
        assert [f.level for f in look(first.url)] == [Level.OK, Level.OK]
        assert "128 tokens" in look(first.url)[0].says
        findings = look(first.url, second.url + "/v1", vllm_key="k")
        assert [f.level for f in findings] == [Level.OK] * 4
        assert first.said == second.said == []


def test_none_is_named() -> None:
    (finding,) = look()
    assert (finding.level, "--vllm-url" in finding.mend) == (Level.FAIL, True)


def test_one_does_not_answer(truth: LocalEngine) -> None:
    with FakeVllm(truth) as away:
        away.kill()
        (finding,) = look(away.url.replace("http://", "http://me:pass@"))
    assert finding.level is Level.FAIL
    assert f"127.0.0.1:{away.port} does not answer" in finding.says
    assert "pass" not in finding.says
    (finding,) = look("me:pass@gpu1:8000")
    assert finding.level is Level.FAIL
    assert "pass" not in finding.says + finding.mend


@pytest.mark.parametrize(
    ("options", "spoil", "says"),
    [
        ({}, {"health": 503}, "not well (503)"),
        ({"key": "other"}, {}, "refuses the key"),
        ({}, {"is_vllm": False}, "is it vLLM?"),
        ({"takes_adapters": False}, {}, "takes no adapters at run time"),
        ({"has_lora": False}, {}, "started without adapters"),
        ({}, {"release": "0.25.1"}, "is vLLM 0.25"),
    ],
)
def test_each_ailment_is_told_apart(
    truth: LocalEngine, options: dict[str, Any], spoil: dict[str, Any], says: str
) -> None:
    with FakeVllm(truth, **options) as server:
        for name, value in spoil.items():
            setattr(server, name, value)
        findings = look(server.url, vllm_key="k")
    found = [finding for finding in findings if finding.level is Level.FAIL]
    assert len(found) == 1
    assert says in found[0].says
    assert found[0].mend


def test_room_for_too_few_adapters_is_pointed_at(truth: LocalEngine, tmp_path: Path) -> None:
    """Those that stay loaded, each segment's champion, and the one that is on its way."""
    settings = Settings(data_dir=tmp_path)
    migrate.upgrade(settings.resolved_database_url)
    store = open_store(settings.resolved_database_url)
    store.write(lambda session: adapters.ensure_segment(session, "default").name)
    for segment in ("night", "idle"):
        store.write(lambda session, name=segment: adapters.ensure_segment(session, name).name)
    publish(store, settings)
    for segment in ("default", "night"):
        store.write(
            lambda s, name=segment: adapters.promote(s, segment=name, version=1, by="test", reason="").seq
        )
    store.close()
    with FakeVllm(truth) as server:
        server.max_loras = 5
        (finding,) = [f for f in look(server.url, data_dir=tmp_path) if f.check == "vllm adapters"]
        assert (finding.level, "--max-loras 6" in finding.mend) == (Level.WARN, True)
        server.max_loras = 6
        assert {f.level for f in look(server.url, data_dir=tmp_path)} == {Level.OK}


def test_another_base_is_pointed_at(truth: LocalEngine) -> None:
    with FakeVllm(truth) as server:
        finding = look(server.url, model="/srv/another")[0]
    assert finding.level is Level.WARN
    assert "here the base is another" in finding.says


def test_examine_asks_the_servers_only_of_an_installation_that_uses_them(
    truth: LocalEngine, tmp_path: Path
) -> None:
    with FakeVllm(truth) as server:
        options: dict[str, Any] = {"data_dir": tmp_path, "port": 0, "vllm_url": server.url}
        checks = {finding.check for finding in examine(Settings(engine="vllm", **options))}
        assert {"engine", "learner", "model", "vllm", "vllm adapters"} <= checks
        assert "vllm" not in {finding.check for finding in examine(Settings(engine="echo", **options))}
