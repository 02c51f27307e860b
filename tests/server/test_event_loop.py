"""What is slow is waited for elsewhere: the server goes on answering.

`LiveServer` also fails every call to the store or the tokenizer on the event loop's own thread, in all its tests.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.store.session import READERS
from tests.server.live import LiveServer, ask, wait_until

VOTE = {"kind": "thumb", "reply_id": "rep_nothing", "value": "up"}
READING = [
    ("GET", "/readyz", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/turns", None),
    ("GET", "/v1/feedback", None),
    ("GET", "/v1/segments", None),
    ("GET", "/v1/adapters", None),
    ("GET", "/v1/promotions", None),
    ("GET", "/v1/learner", None),
    ("GET", "/v1/learner/cycles", None),
    ("GET", "/v1/keys", None),
    ("GET", "/v1/audit", None),
    ("POST", "/v1/chat/completions", ask() | {"model": "default@7"}),
]
WRITING = [
    ("POST", "/v1/chat/completions", ask()),
    ("POST", "/v1/chat/completions", ask(stream=True)),
    ("POST", "/v1/feedback", VOTE),
    ("POST", "/v1/sessions", {"user": "ada"}),
    ("POST", "/v1/keys", {"client": "shop", "name": "till", "scopes": ["chat"]}),
]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(tmp_path) as server:
        yield server


@contextmanager
def all_at_once(
    server: LiveServer, requests: list[tuple[str, str, Any]], *, then: threading.Event
) -> Iterator[list[int]]:
    """Ask everything, and `then` let it go on; what has been answered so far."""
    answered: list[int] = []

    def run(method: str, path: str, body: Any) -> None:
        with server.client() as client:
            answered.append(client.request(method, path, json=body).status_code)

    threads = [threading.Thread(target=run, args=request) for request in requests]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        then.set()
    for thread in threads:
        thread.join(20)
    assert len(answered) == len(requests)


def answers_quickly(server: LiveServer) -> bool:
    with httpx.Client(base_url=server.url, timeout=2) as client:
        return all(client.get("/healthz").status_code == 200 for _ in range(5))


def test_a_database_that_does_not_answer_reads_does_not_silence_the_server(
    own: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, stuck, real = threading.Event(), threading.Semaphore(0), own.store.read

    def read(work: Any) -> Any:
        stuck.release()
        assert free.wait(20)
        return real(work)

    with own.client() as client:
        client.get("/v1/models")  # the key is known from here on: not all wait for one and the same reading
    monkeypatch.setattr(own.store, "read", read)
    with all_at_once(own, READING, then=free) as answered:
        for _ in range(READERS):
            assert stuck.acquire(timeout=5)
        assert answers_quickly(own)
        assert answered == []


def test_a_database_that_takes_no_writes_does_not_silence_the_server(own: LiveServer) -> None:
    free, stuck = threading.Event(), threading.Event()

    def hold(session: Any) -> None:
        stuck.set()
        assert free.wait(20)

    holder = threading.Thread(target=own.store.write, args=(hold,))
    holder.start()
    assert stuck.wait(5)
    with all_at_once(own, WRITING, then=free) as answered:
        time.sleep(0.3)
        assert answers_quickly(own)
        assert answered == []
    holder.join()


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_tokenizer_does_not_silence_the_server(
    own: LiveServer, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Log probabilities name every token and its alternatives; each was decoded between two answers to others."""
    free, stuck, real = threading.Event(), threading.Event(), own.served.renderer.spelling

    def spelling(token_id: int) -> Any:
        stuck.set()
        assert free.wait(20)
        return real(token_id)

    monkeypatch.setattr(own.served.renderer, "spelling", spelling)
    body = ask(logprobs=True, top_logprobs=3, stream=stream)
    with all_at_once(own, [("POST", "/v1/chat/completions", body)], then=free) as answered:
        assert stuck.wait(5)
        assert answers_quickly(own)
    assert answered == [200]


def test_a_call_on_the_loop_would_be_caught(own: LiveServer) -> None:
    """The watch itself: without it every other test here could pass by luck."""
    import asyncio

    async def on_the_loop() -> None:
        own.store.read(lambda session: None)

    with pytest.raises(AssertionError, match="on the event loop"):
        asyncio.run(on_the_loop())
    own.store.read(lambda session: None)
    wait_until(lambda: answers_quickly(own))
