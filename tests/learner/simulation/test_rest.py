"""The client waits as it is told, gives up when patience ends, and repeats the server's words."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from learner.simulation import rest
from learner.simulation.rest import Answered, Hone, Shown, in_parallel
from server.errors import Conflict, HoneError, Invalid, NotFound, Unauthenticated, Unavailable
from tests.learner.simulation.fake_hone import FakeHone, refusal


def ask(transport: httpx.AsyncBaseTransport, *, patience: float = 5.0) -> Answered:
    async def run() -> Answered:
        async with Hone("http://hone.test/", "key", patience=patience, transport=transport) as hone:
            return await hone.chat(
                [{"role": "user", "content": "hi"}], model="default", seed=1, candidates=1, user=None
            )

    return asyncio.run(run())


def after(*troubles: Any) -> tuple[httpx.MockTransport, FakeHone]:
    """A Hone that answers only when all `troubles` have happened."""
    left = list(troubles)

    def trouble(request: httpx.Request) -> httpx.Response | None:
        if not left:
            return None
        one = left.pop(0)
        if isinstance(one, type):
            raise one("away", request=request)
        assert isinstance(one, httpx.Response)
        return one

    fake = FakeHone(lambda messages, version, seed: "hello")
    fake.trouble = trouble
    return httpx.MockTransport(fake.answer), fake


def test_the_key_is_sent_and_fields_that_are_none_are_not() -> None:
    transport, fake = after()
    assert ask(transport) == Answered("conv_1", None, (Shown("rep_1_0", "hello"),), 1)
    assert "user" not in fake.chats[0]


def test_retry_after_is_honoured() -> None:
    transport, _ = after(refusal(429, "engine_busy", headers={"Retry-After": "0.3"}))
    began = time.monotonic()
    ask(transport)
    assert 0.3 <= time.monotonic() - began < 2


@pytest.mark.parametrize("retry_after", ["-5", "nan", "inf", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_strange_retry_after_is_survived(retry_after: str) -> None:
    transport, _ = after(refusal(503, "storage_full", headers={"Retry-After": retry_after}))
    ask(transport)


def test_a_server_that_restarts_is_waited_for() -> None:
    transport, _ = after(
        httpx.ConnectError, httpx.RemoteProtocolError, httpx.Response(502, text="<html>proxy</html>")
    )
    assert ask(transport).replies[0].text == "hello"


def test_patience_ends_and_says_why() -> None:
    transport, _ = after(*[httpx.ConnectError] * 50)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no server answers at http://hone\.test \(ConnectError"):
        ask(transport, patience=0.6)
    assert time.monotonic() - began < 3


def test_who_has_answered_once_is_waited_for_longer_than_who_never_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong address was asked for two minutes without a word."""
    monkeypatch.setattr(rest, "_FIRST_PATIENCE", 0.5)
    stranger, _ = after(*[httpx.ConnectError, httpx.Response(502)] * 50)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"no server answers at http://hone\.test .*hone serve"):
        ask(stranger, patience=60)
    assert time.monotonic() - began < 3
    known, _ = after(refusal(503, "starting", headers={"Retry-After": "0"}), *[httpx.ConnectError] * 3)
    assert ask(known, patience=60).replies[0].text == "hello"
    lost, _ = after(refusal(503, "starting", headers={"Retry-After": "0"}), *[httpx.ConnectError] * 50)
    with pytest.raises(Unavailable, match=r"hone\.test does not answer: ConnectError"):
        ask(lost, patience=0.6)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "localhost:8000", "ftp://x", "http://", "http://[::1", "http://x:99999", "http://\0"],
)
def test_what_can_be_no_address_is_said_at_once(url: str) -> None:
    """Without its scheme an address was asked for two minutes."""
    with pytest.raises(Invalid, match="is not an address"):
        Hone(url, "key")


@pytest.mark.parametrize("key", ["schlüssel", "", " ", "two\nlines"])
def test_what_can_be_no_key_is_said_at_once(key: str) -> None:
    """It ended in a traceback of the encoder's."""
    with pytest.raises(Unauthenticated, match="not one of Hone's"):
        Hone("http://hone.test", key)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthenticated), (404, NotFound), (409, Conflict), (422, HoneError), (500, HoneError)],
)
def test_a_refusal_is_raised_at_once_with_its_code(status: int, kind: type[HoneError]) -> None:
    transport, _ = after(refusal(status, "some_code"))
    with pytest.raises(kind, match="some_code") as caught:
        ask(transport)
    assert caught.value.code == "some_code"


@pytest.mark.parametrize(
    "response",
    [httpx.Response(200, text="<html>"), httpx.Response(200, json=[1]), httpx.Response(418, json=["x"])],
)
def test_somebody_who_is_not_hone_is_recognised(response: httpx.Response) -> None:
    transport, _ = after(response)
    with pytest.raises(HoneError, match=r"hone\.test"):
        ask(transport)


def test_the_champion_of_an_unknown_segment_is_not_found() -> None:
    async def run() -> None:
        async with FakeHone(lambda *_: "", champion=7).client() as hone:
            assert await hone.champion("default") == 7
            await hone.champion("nobody")

    with pytest.raises(NotFound, match="nobody"):
        asyncio.run(run())


def test_work_in_parallel_keeps_order_and_stops_at_the_first_error() -> None:
    async def double(x: int) -> int:
        await asyncio.sleep(0.001 * (5 - x % 5))
        return 2 * x

    assert asyncio.run(in_parallel(double, range(20), width=4)) == [2 * x for x in range(20)]
    seen: list[int] = []

    async def break_at_three(x: int) -> None:
        seen.append(x)
        await asyncio.sleep(0)
        if x == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        asyncio.run(in_parallel(break_at_three, range(1000), width=2))
    assert len(seen) < 10
