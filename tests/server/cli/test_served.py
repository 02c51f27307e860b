"""Verbs over REST repeat what the server said, follow its pages, and never show a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from server.cli.served import Served
from server.errors import HoneError, Unavailable


def served(handler: Callable[[httpx.Request], httpx.Response]) -> Served:
    return Served("http://hone.test/", "hone_sk_x", transport=httpx.MockTransport(handler))


def test_lists_are_followed_to_their_end_or_to_the_limit() -> None:
    asked: list[dict[str, str]] = []

    def pages(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        start = int(request.url.params.get("cursor", 0))
        size = int(request.url.params.get("limit", 100))
        following = str(start + size) if start + size < 450 else None
        rows = [{"seq": n} for n in range(start, min(start + size, 450))]
        return httpx.Response(200, json={"data": rows, "next_cursor": following})

    assert [row["seq"] for row in served(pages).feedback(limit=250, filters={"kind": "pick"})] == list(
        range(250)
    )
    assert [one["limit"] for one in asked] == ["200", "50"]
    assert all(one["kind"] == "pick" for one in asked)
    assert len(served(pages).keys()) == 450


def test_moves_carry_body_and_key_and_quote_the_segment() -> None:
    def check(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer hone_sk_x"
        assert request.url.raw_path == b"/v1/segments/a%2Fb/promote"
        return httpx.Response(200, json=json.loads(request.content) | {"serving": True})

    assert served(check).move("promote", segment="a/b", body={"version": 3, "reason": "r"}) == {
        "version": 3,
        "reason": "r",
        "serving": True,
    }


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (
            httpx.Response(409, json={"error": {"message": "v3 serves", "code": "version_conflict"}}),
            r"v3 serves \(version_conflict\)",
        ),
        (httpx.Response(502, text="<html>bad gateway</html>"), "answered 502"),
        (httpx.Response(500, json=["?"]), "answered 500"),
    ],
)
def test_a_refusal_is_one_sentence(response: httpx.Response, words: str) -> None:
    with pytest.raises(HoneError, match=words):
        served(lambda _: response).adapter(3)


def test_a_server_that_went_away_is_said_so() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(Unavailable, match=r"hone\.test does not answer"):
        served(gone).revoke_key("key_1")
