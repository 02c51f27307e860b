"""One vLLM server's words: what each refusal and each way to end a stream means."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from server.engine.local import LocalEngine
from server.engine.refusals import Lost
from server.engine.replica import Replica, release_of
from server.errors import AdapterRejected, Busy, HoneError, Invalid, Unavailable
from tests.vllm_fake import ABORTED, FakeVllm, failure, until

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {
    "model": "/models/tiny", "prompt": [1, 2, 3], "max_tokens": 12, "seed": 1, "temperature": 1.0, "top_p": 1.0,
    "stop_token_ids": [256], "logprobs": 0,
}  # fmt: skip


@pytest.fixture
def server(endless: LocalEngine) -> Iterator[FakeVllm]:
    with FakeVllm(endless) as running:
        yield running


@pytest.fixture
async def replica(server: FakeVllm) -> AsyncIterator[Replica]:
    made = Replica(server.url)
    yield made
    await made.close()


async def drawn(replica: Replica) -> list[int]:
    return [i async for piece in replica.complete(BODY) for i in piece.token_ids]


# --- loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "mend"),
    [
        ("LoRA rank 32 is greater than max_lora_rank 16.", "--max-lora-rank"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "--gpu-memory-utilization"),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory", "--max-cpu-loras"),
        ("No free lora slots", "--max-loras"),
        ("lora_path is outside of the allowed prefixes", "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES"),
        (
            "Set VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES to load from a path",
            "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES",
        ),
        ("lora_path must exist and be accessible", "HONE_VLLM_ADAPTERS"),
        ("LoRA is not enabled. Use --enable-lora to enable LoRA.", "--enable-lora"),
        ("Engine core proc died unexpectedly", "died unexpectedly"),
    ],
)
async def test_what_the_server_is_to_blame_for_rejects_no_adapter(
    server: FakeVllm, replica: Replica, says: str, mend: str
) -> None:
    server.load_refusal = f"Call to add_lora method failed: {says}"
    for status in (500, 400):
        server.load_status = status
        with pytest.raises(Unavailable, match=mend):
            await replica.load("hone-v000001", "/adapters/v000001")


@pytest.mark.parametrize(
    "says",
    [
        "While loading /a, expected target modules in {'q_proj'} but received ['wte']. Please verify it.",
        "base_model.model.lm_head.weight is unsupported LoRA weight",
        "vLLM does not yet support DoRA.",
    ],
)
async def test_what_no_server_could_take_is_rejected(server: FakeVllm, replica: Replica, says: str) -> None:
    server.load_refusal = f"Call to add_lora method failed: {says}"
    with pytest.raises(AdapterRejected):
        await replica.load("hone-v000001", "/adapters/v000001")
    server.health = 503  # an engine that has died answers with whatever it died of
    with pytest.raises(Lost):
        await replica.load("hone-v000001", "/adapters/v000001")


# --- scores and numbers ------------------------------------------------------------------------------------


async def test_what_a_score_leaves_behind_serves_no_reply(server: FakeVllm, replica: Replica) -> None:
    """vLLM keeps prompts by an adapter's name and path, and a bad copy of it may be mended in place."""
    await replica.score("/models/tiny", [1, 2, 3])
    await drawn(replica)
    scored, written = [body for kind, body in server.said if kind in ("greet", "draw")]
    assert scored["cache_salt"]
    assert "cache_salt" not in written


async def test_a_score_that_never_comes_is_given_up(
    server: FakeVllm, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine may have died silently while the rest of it is well."""
    monkeypatch.setattr("server.engine.replica.LOAD_SECONDS", 0.1)
    server.adapters["hone-v000001"] = "/adapters/v000001"
    server.score_hangs = True
    with pytest.raises(Lost) as caught:
        await replica.score("hone-v000001", [1, 2, 3])
    assert caught.value.reached
    await replica.health()
    server.score_hangs = False


async def test_what_it_writes_for_anybody_is_counted(server: FakeVllm, replica: Replica) -> None:
    server.others = 7
    assert await replica.load_of_all() == 7


def test_a_release_is_read_and_a_build_between_releases_is_not() -> None:
    assert release_of('{"version":"0.26.1"}') == (0, 26)
    assert release_of('{"version": "0.32.0+cpu"}') == (0, 32)
    assert release_of('{"version":"0.1.dev1+g0b7c6f7"}') is None
    assert release_of("what?") is None


# --- streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (failure(400, "BadRequestError"), Invalid),
        (failure(400), Lost),
        (failure(500), Lost),
        (failure(503), Busy),
        (ABORTED, Lost),
        (b"data: {\n\n", Lost),
    ],
)
async def test_a_stream_may_end_in_words_under_a_status_of_200(
    server: FakeVllm, replica: Replica, after: int, last: bytes, expected: type[HoneError]
) -> None:
    server.ends_after = after, last
    seen: list[int] = []

    async def read() -> None:
        async for piece in replica.complete(BODY):
            seen.extend(piece.token_ids)

    with pytest.raises(expected) as caught:
        await read()
    assert len(seen) == after
    assert not isinstance(caught.value, Lost) or caught.value.reached
    server.ends_after = None
    assert len(await drawn(replica)) == 12


async def test_usage_and_several_tokens_at_once_are_read(server: FakeVllm, replica: Replica) -> None:
    one_by_one = await drawn(replica)
    server.burst, server.counts_tokens = 5, True
    pieces = [piece async for piece in replica.complete(BODY)]
    assert [len(piece.token_ids) for piece in pieces] == [5, 5, 2]
    assert [i for piece in pieces for i in piece.token_ids] == one_by_one


@pytest.mark.parametrize("status", [429, 503])
async def test_a_full_queue_is_busy_and_not_broken(server: FakeVllm, replica: Replica, status: int) -> None:
    server.full = status
    with pytest.raises(Busy) as caught:
        await drawn(replica)
    assert caught.value.retry_after


async def test_a_stream_that_is_left_is_closed_to_its_last_generator(
    server: FakeVllm, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not whenever it is collected: by then the event loop may be gone."""
    closed: list[str] = []
    events, close = Replica._events, httpx.Response.aclose

    async def watched(self: Replica, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for event in events(self, response):
                yield event
        finally:
            closed.append("events")

    async def close_too(self: httpx.Response) -> None:
        closed.append("response")
        await close(self)

    monkeypatch.setattr(Replica, "_events", watched)
    monkeypatch.setattr(httpx.Response, "aclose", close_too)
    server.pause = 0.01
    stream = replica.complete(BODY)
    await anext(stream)
    await stream.aclose()
    assert closed[0] == "events"


# --- the way there -----------------------------------------------------------------------------------------


async def test_silence_is_told_from_refusal(
    server: FakeVllm, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.replica.ANSWER_SECONDS", 0.1)

    async def lost() -> tuple[bool, bool]:
        with pytest.raises(Lost) as caught:
            await replica.health()
        return caught.value.reached, caught.value.silent

    server.hangs = True
    assert await lost() == (True, True)
    server.hangs, server.health = False, 503
    assert await lost() == (True, False)
    server.kill()
    assert await lost() == (False, False)


async def test_no_proxy_of_the_environment_gets_between(
    server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    replica = Replica(server.url)
    await replica.health()
    await replica.close()


async def test_an_idle_connection_is_left_before_the_server_closes_it(replica: Replica) -> None:
    """vLLM does after five seconds, and what is sent in that very moment is lost."""
    pool: Any = replica._client._transport
    assert pool._pool._keepalive_expiry == 2.5
    await replica.health()
    (connection,) = pool._pool.connections
    told = connection._connection._network_stream.get_extra_info("socket")
    assert told.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_closing_while_connections_are_made_leaves_none(server: FakeVllm) -> None:
    for turns in range(30):
        replica = Replica(server.url)
        reading = [asyncio.create_task(drawn(replica)) for _ in range(4)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await replica.close()
        ends = await asyncio.gather(*reading, return_exceptions=True)
        assert [type(end) for end in ends] == [Lost] * 4
    assert server.server
    connections = server.server.server_state.connections
    await until(lambda: not connections)
