"""A turn when things go wrong: clients that leave, engines that break, votes that come early."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import col, select

from server.engine import Served
from server.engine.base import BaseIdentity, Delta, FinishReason, Prompt, Sampling
from server.engine.echo import EchoEngine, echo_renderer
from server.errors import Busy, Unavailable
from server.store import conversations
from server.store.tables import Comparison, Reply
from tests.server.live import LiveServer, ask, events, wait_until


class ScriptedEngine(EchoEngine):
    """Says `one two three …`, a word each `pace` seconds; breaks after `breaks_after` words, if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.pace = 0.02
        self.words = 10
        self.breaks_after: int | None = None
        self.closed_early = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        ended = False
        try:
            for i in range(self.words):
                await asyncio.sleep(self.pace)
                if i == self.breaks_after:
                    raise RuntimeError("the engine broke, and its secrets are 1234")
                for index in range(n):
                    last = FinishReason.STOP if i == self.words - 1 else None
                    yield Delta(f"w{i}s{index} ", (i,), (-1.0,), last, index)
            ended = True
        finally:
            self.closed_early += not ended


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def own(tmp_path: Path, engine: ScriptedEngine) -> Iterator[LiveServer]:
    renderer = echo_renderer()
    served = Served(engine, renderer, BaseIdentity("echo", "echo", renderer.template_hash))
    with LiveServer(tmp_path, served=served) as server:
        yield server


def replies(own: LiveServer) -> list[Reply]:
    def work(session: Any) -> list[Reply]:
        return list(session.exec(select(Reply).order_by(col(Reply.position))))

    return own.store.read(work)


def comparison_state(own: LiveServer) -> str:
    state: str = own.store.read(lambda session: session.exec(select(Comparison.state)).one())
    return state


def leave_early(
    own: LiveServer,
    body: dict[str, Any],
    *,
    after: float,
    path: str = "/v1/chat/completions",
    missing: int = 0,
) -> None:
    """Ask over a bare socket and hang up, with so many bytes of the body never sent."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {own.admin_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content) + missing}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", own.socket.getsockname()[1])) as line:
        line.sendall(head.encode() + content)
        time.sleep(after)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_anything_was_sent_cancels_the_reply(
    own: LiveServer, engine: ScriptedEngine, stream: bool
) -> None:
    engine.words, engine.pace = 100, 0.1
    leave_early(own, ask(stream=stream), after=0.0)
    (reply,) = wait_until(lambda: [r for r in replies(own) if r.state != "streaming"])
    assert reply.state == "cancelled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_the_reply_and_the_partial_is_kept(
    own: LiveServer, engine: ScriptedEngine, stream: bool
) -> None:
    engine.words = 1000
    leave_early(own, ask(stream=stream), after=0.5)
    (reply,) = wait_until(lambda: [r for r in replies(own) if r.state != "streaming"])
    assert reply.state == "cancelled"
    assert reply.finish_reason == "cancelled"
    assert reply.text.startswith("w0s0 w1s0 ")
    assert len(reply.token_ids) == len(reply.logprobs) == reply.text.count(" ")
    assert len(reply.token_ids) < 100
    assert engine.closed_early == 1


def test_clients_that_leave_are_no_failures_of_the_server(
    own: LiveServer, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """They were 500 with a traceback in mid-body and 503 in mid-answer: alarms about people who closed a lid."""
    engine.words = 1000
    leave_early(own, ask(), after=0.3)
    leave_early(own, ask(), after=0.1, missing=10)
    leave_early(own, {"kind": "thumb"}, after=0.1, path="/v1/feedback", missing=10)
    with own.client() as client:
        counted = [f'route="/v1/{route}",status="499"}} 1.0' for route in ("chat/completions", "feedback")]
        page = wait_until(
            lambda: all(line in (text := client.get("/metrics").text) for line in counted) and text
        )
    assert 'status="5' not in page
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_a_pair_that_was_cut_short_takes_no_pick(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.words = 1000
    leave_early(own, ask(stream=True, candidates=2), after=0.3)
    wait_until(lambda: all(reply.state == "cancelled" for reply in replies(own)) and replies(own))
    wait_until(lambda: comparison_state(own) == "void")


def test_an_engine_that_breaks_in_mid_stream_is_an_event_before_done(
    own: LiveServer, engine: ScriptedEngine
) -> None:
    engine.breaks_after, engine.pace = 20, 0.02
    engine.words = 40
    with (
        own.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response,
    ):
        got = events(response)
    assert response.status_code == 200
    assert got[-1] == "[DONE]"
    error = json.loads(got[-2])["error"]
    assert error["code"] == "engine_failed"
    assert "1234" not in got[-2]
    (reply,) = replies(own)
    assert reply.state == "interrupted"
    assert len(reply.token_ids) == 20


def test_an_engine_that_breaks_at_once_is_a_plain_error(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.breaks_after = 0
    with own.client() as client:
        for stream in (True, False):
            assert client.post("/v1/chat/completions", json=ask(stream=stream)).status_code == 503
    assert {reply.state for reply in replies(own)} == {"interrupted"}


def test_a_disk_that_fills_while_a_reply_streams_is_said_before_done(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.words = 20
    real = own.store.write_async
    with (
        own.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response,
    ):
        lines = response.iter_lines()
        next(lines)

        async def full(work: object) -> None:
            raise Unavailable("The disk is full.", code="storage_full", retry_after=30)

        monkeypatch.setattr(own.store, "write_async", full)
        got = [line[6:] for line in lines if line.startswith("data: ")]
        monkeypatch.setattr(own.store, "write_async", real)
        assert got[-1] == "[DONE]"
        assert json.loads(got[-2])["error"]["code"] == "storage_full"
        assert not any('"finish_reason":"stop"' in part for part in got)
        # The server goes on, and so does the version that wrote it.
        assert client.post("/v1/chat/completions", json=ask()).status_code == 200


def test_an_answer_that_could_not_be_stored_is_not_given(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of our own in storing must not look like success: the record would lack what the user read."""

    def broken(session: object, **values: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("server.store.conversations.finish_reply", broken)
    with own.client() as client:
        refused = client.post("/v1/chat/completions", json=ask())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_stored")
        with client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response:
            got = events(response)
    assert '"error"' in got[-2]
    assert not any('"finish_reason":"stop"' in part for part in got)


@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_that_was_written_while_the_database_was_away_is_kept_once_it_is_back(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """It stayed `streaming` until the next start."""
    monkeypatch.setattr("server.keeping.AGAIN_SECONDS", 0.02)
    engine.words = 3
    real, offers = conversations.finish_reply, []

    def away(session: Any, **values: Any) -> None:
        offers.append(values["reply_id"])
        if len(offers) <= 4:
            raise Unavailable("The database cannot be reached.", code="database_unavailable")
        real(session, **values)

    monkeypatch.setattr("server.store.conversations.finish_reply", away)
    with own.client() as client:
        response = client.post("/v1/chat/completions", json=ask(stream=stream))
    assert "database_unavailable" in response.text
    (reply,) = wait_until(lambda: [r for r in replies(own) if r.state != "streaming"])
    assert (reply.state, reply.text, len(offers)) == ("done", "w0s0 w1s0 w2s0 ", 5)


def test_a_reply_that_the_record_never_takes_ends_as_interrupted_and_its_pair_takes_no_pick(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.keeping.AGAIN_SECONDS", 0.02)

    def broken(session: object, **values: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("server.store.conversations.finish_reply", broken)
    with own.client() as client:
        assert client.post("/v1/chat/completions", json=ask(candidates=2)).status_code == 503
    wait_until(lambda: {reply.state for reply in replies(own)} == {"interrupted"})
    assert comparison_state(own) == "void"


def test_a_client_that_leaves_while_its_reply_is_stored_does_not_lose_what_the_record_refused(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving skipped the second offer: the row seemed to be written until the next start."""
    monkeypatch.setattr("server.keeping.AGAIN_SECONDS", 0.02)
    engine.words, engine.pace = 3, 0.0
    real, offers = conversations.finish_reply, []

    def slow(session: Any, **values: Any) -> None:
        offers.append(values["reply_id"])
        if len(offers) == 1:
            time.sleep(0.6)
            raise Unavailable("The database cannot be reached.", code="database_unavailable")
        real(session, **values)

    monkeypatch.setattr("server.store.conversations.finish_reply", slow)
    leave_early(own, ask(), after=0.3)
    (reply,) = wait_until(lambda: [r for r in replies(own) if r.state != "streaming"])
    assert (reply.state, reply.text, len(offers)) == ("done", "w0s0 w1s0 w2s0 ", 2)


class RepeatingEngine(ScriptedEngine):
    """Both sides of a pair say the same; a throw after that says something else, or fails with `refusal`."""

    refusal: Exception | None = None
    throws = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        self.throws += 1
        async for delta in super().generate(prompt, sampling, version, n, who=who):
            if n == 1 and self.refusal and delta.token_ids == (1,):
                raise self.refusal
            said = delta.text.partition("s")[0] + (" " if n > 1 else "! ")
            yield replace(delta, text=said)


@pytest.mark.parametrize("refusal", [None, Busy("all places are taken"), Unavailable("the engine is away")])
def test_an_equal_pair_that_cannot_be_thrown_again_shows_one_reply(
    tmp_path: Path, refusal: Exception | None
) -> None:
    """The second text was wiped before its place was asked for, and a turn that was written was answered 429."""
    engine = RepeatingEngine()
    engine.words, engine.refusal = 3, refusal
    renderer = echo_renderer()
    served = Served(engine, renderer, BaseIdentity("echo", "echo", renderer.template_hash))
    with LiveServer(tmp_path, served=served) as own, own.client() as client:
        answer = client.post("/v1/chat/completions", json=ask(candidates=2, seed=5))
        assert answer.status_code == 200
        said = [choice["message"]["content"] for choice in answer.json()["choices"]]
        first, second = replies(own)
        assert engine.throws == 2
        assert (first.text, first.seed, first.state, second.state) == ("w0 w1 w2 ", 5, "done", "done")
        if refusal:
            assert said == ["w0 w1 w2 "]
            assert answer.json()["hone"]["comparison_id"] is None
            assert comparison_state(own) == "void"
            assert (second.text, second.seed, len(second.token_ids)) == (first.text, 6, 3)
        else:
            assert said == ["w0 w1 w2 ", "w0! w1! w2! "]
            assert comparison_state(own) == "open"
            assert (second.text, second.seed) == ("w0! w1! w2! ", 7)


def test_a_deadline_during_the_second_throw_shows_one_reply(tmp_path: Path) -> None:
    """Both replies were whole by then."""
    engine = RepeatingEngine()
    engine.words, engine.pace = 3, 0.15
    renderer = echo_renderer()
    served = Served(engine, renderer, BaseIdentity("echo", "echo", renderer.template_hash))
    with LiveServer(tmp_path, served=served, reply_seconds=0.7) as own, own.client() as client:
        answer = client.post("/v1/chat/completions", json=ask(candidates=2))
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 1


def test_reply_rows_stand_before_the_first_chunk(own: LiveServer, engine: ScriptedEngine) -> None:
    with (
        own.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response,
    ):
        lines = response.iter_lines()
        first = json.loads(next(lines)[6:])
        (reply,) = replies(own)
        assert reply.id == first["choices"][0]["reply_id"]
        assert reply.state == "streaming"
        for _ in lines:
            pass
    (reply,) = replies(own)
    assert reply.state == "done"


def test_everything_is_stored_by_the_time_done_is_sent(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.pace, engine.words = 0.0, 3
    with own.client() as client:
        for _ in range(20):
            with client.stream(
                "POST", "/v1/chat/completions", json=ask(stream=True, candidates=2)
            ) as response:
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        assert {reply.state for reply in replies(own)} == {"done"}


def test_a_vote_that_races_the_end_of_its_reply_waits_and_counts(
    own: LiveServer, engine: ScriptedEngine
) -> None:
    engine.pace = 0.05
    with (
        own.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ask(stream=True, candidates=2)) as response,
    ):
        lines = response.iter_lines()
        first = json.loads(next(lines)[6:])
        results: list[httpx.Response] = []

        def vote() -> None:
            body = {"kind": "pick", "comparison_id": first["hone"]["comparison_id"], "value": "second"}
            with own.client() as other:
                results.append(other.post("/v1/feedback", json=body))

        voter = threading.Thread(target=vote)
        voter.start()
        for _ in lines:
            pass
        voter.join()
    assert results[0].status_code == 201
    assert comparison_state(own) == "open"


def test_a_vote_on_a_reply_that_goes_on_for_long_is_taken_after_a_moment(
    own: LiveServer, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.chat.VOTE_SECONDS", 0.2)
    engine.words = 200
    with (
        own.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as response,
    ):
        lines = response.iter_lines()
        reply_id = json.loads(next(lines)[6:])["choices"][0]["reply_id"]
        with own.client() as other:
            body = {"kind": "thumb", "reply_id": reply_id, "value": "up"}
            assert other.post("/v1/feedback", json=body).status_code == 201
        assert [reply.state for reply in replies(own)] == ["streaming"]


def test_leases_are_given_back_however_a_turn_ends(own: LiveServer, engine: ScriptedEngine) -> None:
    engine.words = 1000
    leave_early(own, ask(stream=True), after=0.2)
    wait_until(lambda: [reply.state for reply in replies(own)] == ["cancelled"])
    engine.breaks_after = 0
    with own.client() as client:
        client.post("/v1/chat/completions", json=ask())
        engine.breaks_after, engine.words = None, 2
        client.post("/v1/chat/completions", json=ask())
        wait_until(lambda: 'state="cancelled"' in client.get("/metrics").text)
    # No reply is left that could hold a version: all ended.
    assert sorted(reply.state for reply in replies(own)) == ["cancelled", "done", "interrupted"]
