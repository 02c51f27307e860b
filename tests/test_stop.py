"""The end of a real server, as a service manager or a person at the terminal brings it about."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from server.settings import Settings
from server.store.session import open_store
from server.store.tables import FeedbackEvent, Reply
from tests.running import RunningHone

WORDS = "tell me about the rain in the hills"
QUICK_SECONDS = 12
"""An end that waits for nobody, on a machine that does other things as well; far below the graces given here."""


class Talk:
    """One request in a thread of its own."""

    def __init__(self, server: RunningHone, *, stream: bool) -> None:
        self.body = {"messages": [{"role": "user", "content": WORDS}], "stream": stream}
        self.url, self.key = server.url, server.key
        self.status = 0
        self.lines: list[dict[str, Any]] = []
        self.is_done = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.stream(
            "POST", f"{self.url}/v1/chat/completions", json=self.body, headers=headers, timeout=60
        ) as response:
            self.status = response.status_code
            if not self.body["stream"] or self.status != 200:
                self.lines.append(json.loads(response.read()))
                return
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    self.is_done = True
                elif line.startswith("data: "):
                    self.lines.append(json.loads(line[6:]))

    def ended(self) -> Talk:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self

    @property
    def text(self) -> str:
        return "".join(
            line["choices"][0]["delta"].get("content", "") for line in self.lines if line.get("choices")
        )


def wait_for(claim: Any, *, patience: float = 20) -> None:
    deadline = time.monotonic() + patience
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def send(server: RunningHone, how: signal.Signals) -> None:
    assert server.process is not None
    server.process.send_signal(how)


def exit_code(server: RunningHone, *, within: float) -> int:
    assert server.process is not None
    return server.process.wait(within)


def record(data_dir: Path) -> tuple[list[Reply], list[FeedbackEvent]]:
    store = open_store(Settings(data_dir=data_dir).resolved_database_url)
    try:
        return store.read(
            lambda session: (list(session.exec(select(Reply))), list(session.exec(select(FeedbackEvent))))
        )
    finally:
        store.close()


def test_sigterm_lets_replies_end_refuses_new_ones_and_stores_votes(tmp_path: Path) -> None:
    with RunningHone(tmp_path / "data", "--engine", "echo", delay=0.25, HONE_GRACE_SECONDS="60") as server:
        first = Talk(server, stream=True).ended()
        stream, whole = Talk(server, stream=True), Talk(server, stream=False)
        wait_for(lambda: len(stream.lines) > 2)
        with server.client() as client:
            send(server, signal.SIGTERM)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert client.get("/readyz").json()["status"] == "stopping"
            assert client.get("/healthz").json() == {"status": "ok"}
            refused = client.post("/v1/chat/completions", json=stream.body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            assert int(refused.headers["Retry-After"]) >= 1
            for rated in (first, stream):  # one that has ended, one that is being written
                reply_id = rated.lines[0]["choices"][0]["reply_id"]
                vote = {"kind": "thumb", "reply_id": reply_id, "value": "up"}
                assert client.post("/v1/feedback", json=vote).status_code == 201
        assert stream.ended().is_done
        assert not any("error" in line for line in stream.lines)
        assert whole.ended().status == 200
        assert exit_code(server, within=20) == 0
        assert "Traceback" not in server.log()
    replies, votes = record(tmp_path / "data")
    assert [reply.state for reply in replies] == ["done"] * 3
    said = whole.lines[0]["choices"][0]["message"]["content"]
    assert {reply.text for reply in replies} == {first.text, stream.text, said}
    assert len(votes) == 2


def test_what_the_grace_cuts_off_is_kept_and_its_readers_are_told(tmp_path: Path) -> None:
    with RunningHone(tmp_path / "data", "--engine", "echo", delay=1.0, HONE_GRACE_SECONDS="0.5") as server:
        stream, whole = Talk(server, stream=True), Talk(server, stream=False)
        wait_for(lambda: stream.text)
        send(server, signal.SIGTERM)
        assert exit_code(server, within=QUICK_SECONDS) == 0
        assert "Traceback" not in server.log()
    assert stream.ended().is_done
    assert stream.lines[-1]["error"]["code"] == "stopping"
    assert (whole.ended().status, whole.lines[0]["error"]["code"]) == (503, "stopping")
    replies, _ = record(tmp_path / "data")
    assert {(reply.state, reply.finish_reason) for reply in replies} == {("cancelled", "cancelled")}
    assert stream.text in {reply.text for reply in replies}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_keeps_the_partial(how: signal.Signals, tmp_path: Path) -> None:
    with RunningHone(tmp_path / "data", "--engine", "echo", delay=1.0, HONE_GRACE_SECONDS="60") as server:
        stream = Talk(server, stream=True)
        wait_for(lambda: stream.text)
        with server.client() as client:
            send(server, how)
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert stream.thread.is_alive()
        send(server, how)
        assert exit_code(server, within=QUICK_SECONDS) == 0
        assert "Traceback" not in server.log()
    assert stream.ended().is_done
    assert stream.lines[-1]["error"]["code"] == "stopping"
    ((reply,), _) = record(tmp_path / "data")
    assert (reply.state, reply.finish_reason, reply.text) == ("cancelled", "cancelled", stream.text)


STUCK = """
import asyncio
from server.__main__ import main
from server.keeping import Keeping

async def never(self, turn, replies, *, over):
    await asyncio.sleep(3600)

Keeping._keep = never
main()
"""
"""`hone` whose record neither takes a reply nor refuses it."""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_cut_ends_what_nothing_else_would(how: signal.Signals, tmp_path: Path) -> None:
    server = RunningHone(tmp_path / "data", "--engine", "echo", HONE_GRACE_SECONDS="0.2")
    server.program = ["-c", STUCK]
    with server:
        with server.client(timeout=1) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": WORDS}]})
        send(server, how)
        with pytest.raises(subprocess.TimeoutExpired):
            exit_code(server, within=2)
        send(server, how)
        assert exit_code(server, within=2) == -how


def test_a_reply_that_takes_too_long_is_cut_in_a_real_server_too(tmp_path: Path) -> None:
    with RunningHone(tmp_path / "data", "--engine", "echo", delay=0.4, HONE_REPLY_SECONDS="1.5") as server:
        stream, whole = Talk(server, stream=True), Talk(server, stream=False)
        assert (whole.ended().status, whole.lines[0]["error"]["code"]) == (504, "deadline_exceeded")
        assert stream.ended().is_done
        assert stream.lines[-1]["error"]["code"] == "deadline_exceeded"
        assert stream.text
    replies, _ = record(tmp_path / "data")
    assert {reply.state for reply in replies} == {"interrupted"}
    assert stream.text in {reply.text for reply in replies}
