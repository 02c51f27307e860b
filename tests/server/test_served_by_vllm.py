"""The whole server over two vLLM servers: chat, pairs, promotion, a server that dies, a full house."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from server.app import create_app
from server.decoding import fit
from server.engine.local import LocalEngine
from server.modeling import load_base
from server.settings import Settings
from server.store import migrate
from tests.fakes import save_model
from tests.planting import plant
from tests.server.live import off_the_loop
from tests.vllm_fake import FakeVllm

ASK = {
    "model": "default",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 12,
    "temperature": 1,
}


class House:
    """An installation over two servers of one tiny base."""

    def __init__(self, folder: Path, servers: list[FakeVllm]) -> None:
        self.settings = Settings(
            data_dir=folder / "data",
            engine="vllm",
            model=str(folder / "tiny"),
            dtype="float32",
            vllm_url=",".join(server.url for server in servers),
            follow_seconds=0.05,
            max_running=2,
            max_waiting=0,
        )
        self.servers = servers
        self.settings.data_dir.mkdir()
        migrate.upgrade(self.settings.resolved_database_url)

    @contextmanager
    def client(self) -> Iterator[TestClient]:
        with TestClient(create_app(self.settings), base_url="http://127.0.0.1") as client:
            client.headers["Authorization"] = f"Bearer {self.settings.admin_key_path.read_text().strip()}"
            yield client


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr("server.engine.fleet.LOOK_SECONDS", 0.05)
    torch.set_num_threads(1)
    truth = LocalEngine(
        fit(lambda: load_base(str(save_model(tmp_path / "tiny")))), max_running=8, max_waiting=64
    )
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeVllm(truth)) for _ in range(2)]
        yield House(tmp_path, servers)
    asyncio.run(truth.close())


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def writer_of(client: TestClient, answer: dict[str, Any]) -> tuple[int, int]:
    """Version and seed of the first reply, from the record."""
    (reply, *_) = client.get(f"/v1/turns/{answer['hone']['turn_id']}").json()["replies"]
    return reply["version"], reply["seed"]


def chat(client: TestClient, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json=ASK | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_version_is_swapped_in_and_survives_a_server(house: House) -> None:
    plant(house.settings.data_dir, count=1, model=house.settings.model, strength=0.3)
    with house.client() as client:
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        before = chat(client, seed=5)
        assert writer_of(client, before) == (0, 5)
        pair = chat(client, candidates=2, seed=6)
        assert pair["hone"]["comparison_id"]
        assert [body["n"] for server in house.servers for body in server.asked("draw")].count(2) == 1

        done = client.post("/v1/segments/default/promote", json={"version": 1, "reason": "test"}).json()
        assert done["serving"]
        assert [list(server.adapters) for server in house.servers] == [["hone-v000001"]] * 2
        after = chat(client, seed=5)
        assert writer_of(client, after) == (1, 5)
        assert after["choices"][0]["message"]["content"] != before["choices"][0]["message"]["content"]

        house.servers[0].kill()
        again = [chat(client, seed=5) for _ in range(4)]
        texts = {answer["choices"][0]["message"]["content"] for answer in (after, *again)}
        assert len(texts) == 1
        until(lambda: "is away" in client.get("/readyz").json()["engine"]["detail"])
        assert client.get("/readyz").json()["status"] == "ready"

        house.servers[1].kill()
        away = client.post("/v1/chat/completions", json=ASK)
        assert away.status_code == 503
        assert int(away.headers["retry-after"]) >= 1
        assert "127.0.0.1" not in away.text
        until(lambda: client.get("/readyz").status_code == 503)

        house.servers[0].start()
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        assert writer_of(client, chat(client, seed=5)) == (1, 5)


def test_no_tokenizer_holds_up_the_event_loop(house: House) -> None:
    """Whoever else is answered waits for the same loop."""
    plant(house.settings.data_dir, count=1, model=house.settings.model, strength=0.3)
    with house.client() as client:
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        renderer = client.app_state["parts"].engine.renderer
        off_the_loop(renderer, "render", "decode", "encode_text")
        assert chat(client)["choices"][0]["finish_reason"]
        house.servers[0].kill()
        house.servers[0].start()  # and is greeted again
        assert client.post("/v1/segments/default/promote", json={"version": 1, "reason": "test"}).json()[
            "serving"
        ]
        assert writer_of(client, chat(client, candidates=2))[0] == 1
        until(lambda: not client.get("/readyz").json()["engine"]["detail"])


def test_a_full_house_is_429_with_a_time_to_come_back(house: House) -> None:
    with house.client() as client:
        until(lambda: client.get("/readyz").json()["status"] == "ready")
        until(lambda: not client.get("/readyz").json()["engine"]["detail"])
        chat(client, n=4)
        house.servers[0].kill()
        until(lambda: client.get("/readyz").json()["engine"]["detail"])
        full = client.post("/v1/chat/completions", json=ASK | {"n": 3})
        assert full.status_code == 429
        assert full.json()["error"]["code"] == "engine_busy"
        assert int(full.headers["retry-after"]) >= 1
