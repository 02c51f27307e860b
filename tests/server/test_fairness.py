"""One user who asks for much delays nobody else for long, from the door to the engine's own queue."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.decoding import fit
from server.engine import Served
from server.engine.base import BaseIdentity
from server.engine.local import LocalEngine
from tests.fakes import tiny_llama
from tests.server.live import LiveServer, ask, wait_until

MakeServer = Callable[..., LiveServer]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """A server with one place, whose replies end by length alone."""
    made: list[tuple[LiveServer, LocalEngine]] = []

    def make(*, max_waiting: int) -> LiveServer:
        base = tiny_llama()
        base.renderer.stop_ids = frozenset()
        engine = LocalEngine(fit(lambda: base), max_running=1, max_waiting=max_waiting)
        identity = BaseIdentity("tiny", "tiny", base.renderer.template_hash)
        server = LiveServer(tmp_path, served=Served(engine, base.renderer, identity))
        made.append((server.__enter__(), engine))
        return server

    yield make
    for server, engine in made:
        server.__exit__()
        asyncio.run(engine.close())


class Crowd:
    """Requests at once, each in a thread of its own."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.ended: list[tuple[str, httpx.Response]] = []
        self.threads: list[threading.Thread] = []

    def asks(self, user: str, *, times: int = 1, **body: Any) -> None:
        def talk() -> None:
            with self.server.client() as client:
                answer = client.post("/v1/chat/completions", json=ask("hi", user=user, **body))
            self.ended.append((user, answer))

        new = [threading.Thread(target=talk) for _ in range(times)]
        self.threads += new
        for thread in new:
            thread.start()

    def waiting(self) -> int:
        with self.server.client() as client:
            return int(client.get("/readyz").json()["engine"]["waiting"])

    def wait(self) -> list[str]:
        """Whose replies ended, in order."""
        for thread in self.threads:
            thread.join(60)
        return [user for user, _ in self.ended]


def test_a_flood_of_one_user_does_not_delay_another_by_more_than_a_few_replies(
    make_server: MakeServer,
) -> None:
    """First come first served, Ada was the twenty-first: she waited for every one of somebody else's twenty."""
    server = make_server(max_waiting=64)
    crowd = Crowd(server)
    crowd.asks("flood", times=20, max_tokens=100)
    wait_until(lambda: crowd.waiting() >= 15)
    before = len(crowd.ended)
    crowd.asks("ada", max_tokens=5)
    order = crowd.wait()
    assert len(order) == 21
    assert {answer.status_code for _, answer in crowd.ended} == {200}
    # While she asks one or two may end; then one that runs, and one that has its turn before her.
    assert order.index("ada") - before <= 5, order


def test_one_user_is_429_while_others_are_let_in(make_server: MakeServer) -> None:
    server = make_server(max_waiting=8)
    crowd = Crowd(server)
    crowd.asks("flood", times=5, max_tokens=100)
    wait_until(lambda: crowd.waiting() == 4)
    with server.client() as client:
        refused = client.post("/v1/chat/completions", json=ask("hi", user="flood"))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_waiting"
        assert "others are still admitted" in refused.json()["error"]["message"]
        assert int(refused.headers["Retry-After"]) >= 1
    crowd.asks("ada", max_tokens=5)
    crowd.wait()
    assert {answer.status_code for _, answer in crowd.ended} == {200}
