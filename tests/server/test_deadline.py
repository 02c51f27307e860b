"""A reply that takes too long ends as an error, and what was written of it is kept."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.decoding import fit
from server.engine import Served
from server.engine.base import BaseIdentity, Prompt, Sampling
from server.engine.local import LocalEngine
from server.store import conversations
from tests.fakes import tiny_llama
from tests.server.live import LiveServer, ask, wait_until
from tests.server.publishing import publish
from tests.server.test_chat import ScriptedEngine, comparison_state, replies
from tests.server.test_stopping import Talk, served


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def own(tmp_path: Path, engine: ScriptedEngine) -> Iterator[LiveServer]:
    with LiveServer(tmp_path, served=served(engine), reply_seconds=0.6) as server:
        yield server


def test_a_whole_answer_is_504_and_the_partial_is_kept(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.words = 1000
    late = Talk(own).ended()
    assert (late.status, late.answer["error"]["code"]) == (504, "deadline_exceeded")
    assert late.answer["error"]["type"] == "server_error"
    (row,) = replies(own)
    assert (row.state, row.finish_reason) == ("interrupted", None)
    assert row.text.startswith("w0s0 w1s0 ")
    assert engine.closed_early == 1


def test_a_stream_is_told_before_done_and_takes_no_pick(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.words = 1000
    late = Talk(own, stream=True, candidates=2).ended()
    assert late.status == 200
    assert late.error["code"] == "deadline_exceeded"
    assert {row.state for row in replies(own)} == {"interrupted"}
    assert late.text.count("s0 ") == replies(own)[0].text.count(" ")
    assert comparison_state(own) == "void"


def test_a_stream_without_a_word_is_504(tmp_path: Path, engine: ScriptedEngine) -> None:
    engine.pace = 5
    with LiveServer(tmp_path, served=served(engine), reply_seconds=0.05) as server:
        late = Talk(server, stream=True).ended()
    assert (late.status, late.answer["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("stream", [True, False])
def test_the_time_that_opening_takes_counts_too(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """A version that is loaded for one request held it for as long as its server said nothing."""

    async def silent(*_: Any) -> None:
        await asyncio.sleep(600)

    monkeypatch.setattr(engine, "load", silent)
    version = publish(own.store, own.settings)
    began = time.monotonic()
    late = Talk(own, model=f"default@{version}", stream=stream).ended()
    assert time.monotonic() - began < 5
    assert (late.status, late.answer["error"]["code"]) == (504, "deadline_exceeded")
    assert replies(own) == []
    engine.words = 3
    assert Talk(own).ended().status == 200


def test_a_turn_that_the_record_opens_too_late_does_not_seem_to_go_on(
    own: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.keeping.AGAIN_SECONDS", 0.02)
    real = conversations.open_turn

    def slow(*args: Any, **values: Any) -> Any:
        time.sleep(0.9)
        return real(*args, **values)

    monkeypatch.setattr("server.store.conversations.open_turn", slow)
    late = Talk(own).ended()
    assert (late.status, late.answer["error"]["code"]) == (504, "deadline_exceeded")
    wait_until(lambda: [row.state for row in replies(own)] == ["interrupted"])


def test_a_reply_in_time_hears_nothing_of_it(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.words = 3
    assert Talk(own).ended().status == 200
    assert Talk(own, stream=True).ended().events[-1] == "[DONE]"
    assert {row.state for row in replies(own)} == {"done"}


def test_zero_sets_no_limit(tmp_path: Path, engine: ScriptedEngine) -> None:
    engine.words, engine.pace = 10, 0.1
    with LiveServer(tmp_path, served=served(engine), reply_seconds=0) as server:
        assert Talk(server).ended().status == 200


def test_the_time_that_a_request_waits_counts_and_its_place_comes_free(tmp_path: Path) -> None:
    base = tiny_llama(context=8192)
    base.renderer.stop_ids = frozenset()
    engine = LocalEngine(fit(lambda: base), max_running=1, max_waiting=1)
    identity = BaseIdentity("tiny", "tiny", base.renderer.template_hash)
    with LiveServer(tmp_path, served=Served(engine, base.renderer, identity), reply_seconds=0.5) as server:
        with the_only_place(engine):
            waited = Talk(server, max_tokens=5).ended()
            assert (waited.status, waited.answer["error"]["code"]) == (504, "deadline_exceeded")
            wait_until(lambda: not engine._decoder.waiting)
            engine.must_admit(1)
        written = Talk(server, stream=True, max_tokens=8000).ended()
        assert written.error["code"] == "deadline_exceeded"
        wait_until(lambda: engine._decoder.idle)
        rows = sorted((row.state, len(row.token_ids or ()) > 0) for row in replies(server))
        assert rows == [("interrupted", False), ("interrupted", True)]
        with server.client() as client:
            assert client.post("/v1/chat/completions", json=ask(max_tokens=5)).status_code == 200
    asyncio.run(engine.close())


@contextmanager
def the_only_place(engine: LocalEngine) -> Iterator[None]:
    """Taken by a reply that no deadline ends."""
    begun, enough = threading.Event(), threading.Event()

    async def hold() -> None:
        async for _ in engine.generate(Prompt((1, 2, 3)), Sampling(max_tokens=8000), 0):
            begun.set()
            if enough.is_set():
                return

    holder = threading.Thread(target=lambda: asyncio.run(hold()))
    holder.start()
    assert begun.wait(10)
    try:
        yield
    finally:
        enough.set()
        holder.join(10)
