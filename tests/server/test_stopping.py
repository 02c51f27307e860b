"""A server that was asked to end: what runs goes on, nothing new begins, nothing is lost."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from server.engine import Served
from server.engine.base import BaseIdentity
from server.engine.echo import echo_renderer
from server.errors import Unavailable
from server.store import conversations
from server.store.tables import FeedbackEvent, Reply
from tests.server.live import LiveServer, ask, wait_until
from tests.server.publishing import publish
from tests.server.test_chat import ScriptedEngine, comparison_state, replies


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def patient(tmp_path: Path, engine: ScriptedEngine) -> Iterator[LiveServer]:
    """A server that lets replies go on for as long as any test takes."""
    with LiveServer(tmp_path, served=served(engine), grace_seconds=30) as server:
        yield server


def served(engine: ScriptedEngine) -> Served:
    renderer = echo_renderer()
    return Served(engine, renderer, BaseIdentity("echo", "echo", renderer.template_hash))


class Talk:
    """One request in a thread of its own, and what came of it."""

    def __init__(self, server: LiveServer, **body: Any) -> None:
        self.server, self.body = server, ask(**body)
        self.status = 0
        self.answer: dict[str, Any] = {}
        self.events: list[str] = []
        self.headers: dict[str, str] = {}
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with (
            self.server.client() as client,
            client.stream("POST", "/v1/chat/completions", json=self.body) as response,
        ):
            self.status, self.headers = response.status_code, dict(response.headers)
            if "event-stream" in response.headers["content-type"]:
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line[6:])
            else:
                response.read()
                self.answer = response.json()

    def ended(self) -> "Talk":
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self

    @property
    def text(self) -> str:
        parts = [json.loads(event) for event in self.events if event != "[DONE]"]
        return "".join(
            part["choices"][0]["delta"].get("content", "") for part in parts if part.get("choices")
        )

    @property
    def error(self) -> dict[str, Any]:
        """The error that the stream told before its end."""
        assert self.events[-1] == "[DONE]"
        found: dict[str, Any] = json.loads(self.events[-2])["error"]
        return found


def wait_for_words(*talks: Talk) -> None:
    wait_until(lambda: all(len(talk.events) > 2 for talk in talks))


def test_what_runs_goes_on_to_its_end(patient: LiveServer, engine: ScriptedEngine) -> None:
    engine.words, engine.pace = 20, 0.05
    stream, whole = Talk(patient, stream=True, candidates=2), Talk(patient)
    wait_for_words(stream)
    wait_until(lambda: len(replies(patient)) == 3)
    patient.stop()
    assert stream.ended().events[-1] == "[DONE]"
    assert not any('"error"' in event for event in stream.events)
    assert whole.ended().status == 200
    assert {reply.state for reply in replies(patient)} == {"done"}
    assert comparison_state(patient) == "open"


def test_new_chat_is_refused_at_once_and_a_vote_is_still_stored(
    patient: LiveServer, engine: ScriptedEngine
) -> None:
    engine.words, engine.pace = 3, 0.01
    with patient.client() as client:
        rated = client.post("/v1/chat/completions", json=ask()).json()["choices"][0]["reply_id"]
        engine.words, engine.pace = 30, 0.05
        running = Talk(patient, stream=True)
        wait_for_words(running)
        patient.signal()
        for stream in (False, True):
            refused = client.post("/v1/chat/completions", json=ask(stream=stream))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.headers["Connection"] == "close"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        assert ready.json()["error"]["code"] == "stopping"
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/v1/models").status_code == 200
        vote = client.post("/v1/feedback", json={"kind": "thumb", "reply_id": rated, "value": "up"})
        assert vote.status_code == 201
    assert running.thread.is_alive()
    running.ended()
    patient.stop()
    votes = patient.store.read(lambda session: list(session.exec(select(FeedbackEvent.id))))
    assert votes == [vote.json()["id"]]
    assert {reply.state for reply in replies(patient)} == {"done"}
    assert len(replies(patient)) == 2


def test_a_vote_on_a_reply_that_is_still_written_is_stored_too(
    patient: LiveServer, engine: ScriptedEngine
) -> None:
    """It waits for the end of its reply, and the server for it."""
    engine.words, engine.pace = 20, 0.05
    running = Talk(patient, stream=True, candidates=2)
    wait_for_words(running)
    patient.signal()
    comparison_id = json.loads(running.events[0])["hone"]["comparison_id"]
    with patient.client() as client:
        pick = {"kind": "pick", "comparison_id": comparison_id, "value": "second"}
        assert client.post("/v1/feedback", json=pick).status_code == 201
    assert running.ended().events[-1] == "[DONE]"


def test_what_is_cut_at_the_limit_is_kept_and_its_readers_are_told(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.words = 1000
    with LiveServer(tmp_path, served=served(engine), grace_seconds=0.3) as server:
        stream, whole, pair = Talk(server, stream=True), Talk(server), Talk(server, stream=True, candidates=2)
        wait_for_words(stream, pair)
        wait_until(lambda: len(replies(server)) == 4)
        server.stop()
        for told in (stream.ended().error, pair.ended().error, whole.ended().answer["error"]):
            assert told["code"] == "stopping"
        assert whole.status == 503
        assert whole.headers["retry-after"]
        assert {(row.state, row.finish_reason) for row in replies(server)} == {("cancelled", "cancelled")}
        assert stream.text.startswith("w0s0 w1s0 ")
        assert stream.text in {row.text for row in replies(server)}
        assert all(len(row.token_ids) == row.text.count(" ") > 0 for row in replies(server))
        assert comparison_state(server) == "void"


def test_asked_twice_it_ends_at_once(patient: LiveServer, engine: ScriptedEngine) -> None:
    engine.words = 1000
    running = Talk(patient, stream=True)
    wait_for_words(running)
    patient.signal()
    time.sleep(0.3)
    assert running.thread.is_alive()
    began = time.monotonic()
    patient.signal()
    assert running.ended().error["code"] == "stopping"
    patient.thread.join(10)
    assert time.monotonic() - began < 5
    assert [(row.state, row.text) for row in replies(patient)] == [("cancelled", running.text)]


def test_a_server_with_nothing_to_do_ends_at_once(tmp_path: Path) -> None:
    with LiveServer(tmp_path, grace_seconds=30) as server:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3


def test_a_request_that_was_let_in_before_is_answered(
    patient: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had its place and no task yet: a drain that looks at tasks alone would close the door on it."""
    rendering = slow_rendering(patient, monkeypatch, seconds=0.7)
    late = Talk(patient)
    assert rendering.wait(5)
    patient.stop()
    assert late.ended().status == 200
    assert [row.state for row in replies(patient)] == ["done"]


def test_a_request_that_is_let_in_and_not_begun_by_the_limit_is_refused_and_leaves_nothing(
    tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveServer(tmp_path, served=served(engine), grace_seconds=0.1) as server:
        rendering = slow_rendering(server, monkeypatch, seconds=0.7)
        late = Talk(server)
        assert rendering.wait(5)
        server.stop()
        assert (late.ended().status, late.answer["error"]["code"]) == (503, "stopping")
        assert replies(server) == []


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_falls_silent_while_it_loads_does_not_keep_the_server(
    tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Neither by the load itself nor by taking back what may have been loaded: it kept it for minutes."""
    loading = threading.Event()

    async def silent(*_: Any) -> None:
        loading.set()
        await asyncio.sleep(600)

    monkeypatch.setattr(engine, "load", silent)
    monkeypatch.setattr(engine, "unload", silent)
    with LiveServer(tmp_path, served=served(engine), grace_seconds=0.2) as server:
        version = publish(server.store, server.settings)
        late = Talk(server, model=f"default@{version}", stream=stream)
        assert loading.wait(5)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
        assert (late.ended().status, late.answer["error"]["code"]) == (503, "stopping")
        assert replies(server) == []


def test_a_turn_that_is_given_up_while_its_rows_are_written_leaves_none_that_seems_to_go_on(
    tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, writing = conversations.open_turn, threading.Event()

    def slow(*args: Any, **values: Any) -> Any:
        writing.set()
        time.sleep(0.7)
        return real(*args, **values)

    monkeypatch.setattr("server.store.conversations.open_turn", slow)
    with LiveServer(tmp_path, served=served(engine), grace_seconds=0.1) as server:
        late = Talk(server, candidates=2, stream=True)
        assert writing.wait(5)
        server.stop()
        assert (late.ended().status, late.answer["error"]["code"]) == (503, "stopping")
        assert [row.state for row in replies(server)] == ["interrupted"] * 2
        assert comparison_state(server) == "void"


def slow_rendering(server: LiveServer, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> threading.Event:
    """Rendering takes its time; set once it has begun."""
    begun, real = threading.Event(), server.served.renderer.render

    def render(*args: Any, **options: Any) -> Any:
        begun.set()
        time.sleep(seconds)
        return real(*args, **options)

    monkeypatch.setattr(server.served.renderer, "render", render)
    return begun


def test_a_reply_that_waits_for_the_record_is_offered_once_more_at_the_end(
    tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dropped in its pause between two tries, though the record had come back meanwhile."""
    monkeypatch.setattr("server.keeping.AGAIN_SECONDS", 3600.0)
    engine.words = 3
    real, offers = conversations.finish_reply, []

    def away(session: Any, **values: Any) -> None:
        offers.append(values["reply_id"])
        if len(offers) == 1:
            raise Unavailable("The database cannot be reached.", code="database_unavailable")
        real(session, **values)

    monkeypatch.setattr("server.store.conversations.finish_reply", away)
    with LiveServer(tmp_path, served=served(engine), grace_seconds=0.2) as server:
        with server.client() as client:
            assert client.post("/v1/chat/completions", json=ask()).status_code == 503
        (before,) = replies(server)
        server.stop()
        (after,) = replies(server)
    assert (before.state, after.state, after.text) == ("streaming", "done", "w0s0 w1s0 w2s0 ")


def away(session: Any, **values: Any) -> None:
    raise Unavailable("The database cannot be reached.", code="database_unavailable")


def test_an_end_that_the_record_never_takes_is_logged_and_uses_up_no_grace(
    patient: LiveServer,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("server.store.conversations.finish_reply", away)
    engine.words = 3
    with patient.client() as client:
        refused = client.post("/v1/chat/completions", json=ask())
    assert refused.status_code == 503
    began = time.monotonic()
    patient.stop()
    assert time.monotonic() - began < 5
    (lost,) = [record for record in caplog.records if "lost" in record.message]
    (row,) = replies(patient)
    assert (lost.levelname, lost.__dict__["turn"]) == ("ERROR", row.turn_id)


def test_a_reply_is_offered_for_as_long_as_others_are_written(
    patient: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that comes back during the drain finds it; giving it up as the drain begins would lose it."""
    monkeypatch.setattr("server.keeping.AGAIN_SECONDS", 0.05)
    real, is_back = conversations.finish_reply, threading.Event()

    def sometimes(session: Any, **values: Any) -> None:
        (real if is_back.is_set() else away)(session, **values)

    monkeypatch.setattr("server.store.conversations.finish_reply", sometimes)
    with patient.client() as client:
        engine.words = 3
        assert client.post("/v1/chat/completions", json=ask()).status_code == 503
    engine.words, engine.pace = 30, 0.05
    running = Talk(patient, stream=True)
    wait_for_words(running)
    patient.signal()
    time.sleep(0.3)
    is_back.set()
    wait_until(lambda: sorted(row.state for row in replies(patient)) == ["done", "streaming"])
    assert running.thread.is_alive()
    running.ended()
    patient.stop()
    assert [row.state for row in replies(patient)] == ["done"] * 2


def test_a_signal_after_the_cut_ends_the_process_whatever_still_goes_on(
    tmp_path: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ending = conversations.finish_reply, threading.Event()

    def slow(session: Any, **values: Any) -> None:
        ending.set()
        time.sleep(1)
        real(session, **values)

    monkeypatch.setattr("server.store.conversations.finish_reply", slow)
    insisted: list[int] = []
    engine.words = 1000
    with LiveServer(tmp_path, served=served(engine), grace_seconds=30) as server:
        server.server.on_insist = insisted.append
        wait_for_words(Talk(server, stream=True))
        server.signal()
        server.signal()
        assert ending.wait(5)
        assert insisted == []
        server.signal()
        assert insisted == [signal.SIGTERM]


def test_the_learner_is_told_at_the_first_word_and_hurried_at_the_second(
    patient: LiveServer, engine: ScriptedEngine
) -> None:
    heard: list[str] = []
    patient.server.on_stop = lambda: heard.append("stop")
    patient.server.on_hurry = lambda: heard.append("hurry")
    engine.words = 1000
    running = Talk(patient, stream=True)
    wait_for_words(running)
    patient.signal()
    wait_until(lambda: heard)
    assert heard == ["stop"]
    assert running.thread.is_alive()
    patient.signal()
    wait_until(lambda: "hurry" in heard)
    running.ended()


def test_rows_tell_a_cut_from_a_crash(tmp_path: Path, engine: ScriptedEngine) -> None:
    engine.words = 1000
    with LiveServer(tmp_path, served=served(engine), grace_seconds=0.1) as server:
        running = Talk(server, stream=True)
        wait_for_words(running)
        server.stop()
    with LiveServer(tmp_path) as again:
        states = again.store.read(lambda session: list(session.exec(select(Reply.state))))
    assert states == ["cancelled"]
