"""Sessions: one end user's browser, and nothing more."""

import time

import httpx
import jwt
import pytest

from tests.server.live import LiveServer, ask, wait_until


def opened(client: httpx.Client, user: str = "ada", **more: object) -> str:
    token: str = client.post("/v1/sessions", json={"user": user, **more}).raise_for_status().json()["token"]
    return token


def test_a_session_talks_and_rates_as_its_user(admin: httpx.Client, live: LiveServer) -> None:
    with live.client(opened(admin)) as browser:
        answer = browser.post("/v1/chat/completions", json=ask()).raise_for_status().json()
        body = {"kind": "thumb", "reply_id": answer["choices"][0]["reply_id"], "value": "up"}
        given = browser.post("/v1/feedback", json=body)
        assert given.status_code == 201
        assert browser.get(f"/v1/feedback/{given.json()['id']}").status_code == 200
        assert browser.get("/v1/models").status_code == 200
    # The same user by the client's own key: one and the same owner.
    assert admin.post("/v1/feedback", json=body | {"user": "ada"}).status_code == 201


def test_a_session_speaks_for_nobody_else(admin: httpx.Client, live: LiveServer) -> None:
    with live.client(opened(admin)) as browser:
        refused = browser.post("/v1/chat/completions", json=ask(user="bob"))
        assert refused.status_code == 403
        assert browser.post("/v1/chat/completions", json=ask(user="ada")).status_code == 200


def test_a_session_cannot_rate_another_users_reply(admin: httpx.Client, live: LiveServer) -> None:
    answer = admin.post("/v1/chat/completions", json=ask(user="bob")).json()
    body = {"kind": "thumb", "reply_id": answer["choices"][0]["reply_id"], "value": "up"}
    given = admin.post("/v1/feedback", json=body).json()["id"]
    with live.client(opened(admin)) as browser:
        assert browser.post("/v1/feedback", json=body).status_code == 404
        assert browser.get(f"/v1/feedback/{given}").status_code == 404
        assert browser.delete(f"/v1/feedback/{given}").status_code == 404
        conversation = answer["hone"]["conversation_id"]
        refused = browser.post("/v1/chat/completions", json=ask(conversation_id=conversation))
        assert refused.status_code == 404


def test_a_session_reaches_no_operator(admin: httpx.Client, live: LiveServer) -> None:
    with live.client(opened(admin)) as browser:
        for path in ("/v1/adapters", "/v1/segments", "/v1/learner", "/v1/keys", "/v1/audit", "/v1/feedback"):
            assert browser.get(path).status_code == 403
        assert browser.post("/v1/sessions", json={"user": "bob"}).status_code == 403


def test_a_session_ends_when_its_time_is_up_or_its_key_is_revoked(
    live: LiveServer, admin: httpx.Client
) -> None:
    made = admin.post(
        "/v1/keys", json={"client": "brief", "name": "k", "scopes": ["chat", "feedback"]}
    ).json()
    with live.client(made["token"]) as frontend:
        token = opened(frontend)
    with live.client(token) as browser:
        assert browser.get("/v1/models").status_code == 200
        admin.delete(f"/v1/keys/{made['id']}").raise_for_status()
        began = time.monotonic()
        wait_until(lambda: browser.get("/v1/models").status_code == 401)
        assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("ttl", [0, 9, 86_401])
def test_a_session_lasts_a_sensible_time(admin: httpx.Client, ttl: int) -> None:
    assert admin.post("/v1/sessions", json={"user": "ada", "ttl_s": ttl}).status_code == 422


def test_a_token_signed_by_somebody_else_is_unknown(admin: httpx.Client, live: LiveServer) -> None:
    real = opened(admin)
    header = jwt.get_unverified_header(real)
    claims = jwt.decode(real, options={"verify_signature": False})
    forged = [
        jwt.encode(claims, "x" * 64, algorithm="HS256", headers={"kid": header["kid"]}),
        jwt.encode(claims, None, algorithm="none", headers={"kid": header["kid"]}),
        jwt.encode(claims, "x" * 64, algorithm="HS256", headers={"kid": "other"}),
        jwt.encode(claims, "x" * 64, algorithm="HS256"),
        real[:-4] + "AAAA",
    ]
    for token in forged:
        with live.client(token) as browser:
            assert browser.get("/v1/models").status_code == 401


def test_a_session_may_belong_to_a_segment(admin: httpx.Client, live: LiveServer) -> None:
    admin.put("/v1/segments/lane", json={}).raise_for_status()
    assert admin.post("/v1/sessions", json={"user": "ada", "segment": "nowhere"}).status_code == 404
    with live.client(opened(admin, segment="lane")) as browser:
        assert browser.post("/v1/chat/completions", json=ask()).json()["hone"]["segment"] == "lane"
        admin.put("/v1/segments/other", json={}).raise_for_status()
        refused = browser.post("/v1/chat/completions", json=ask() | {"model": "other"})
        assert refused.status_code == 403


def test_the_page_of_this_machine_gets_a_session(live: LiveServer) -> None:
    with live.client("") as page:
        made = page.post("/v1/sessions/local", headers={"Origin": live.url})
        assert made.status_code == 201
        made_without = page.post("/v1/sessions/local")
        assert made_without.status_code == 201
    with live.client(made.json()["token"]) as browser:
        assert browser.post("/v1/chat/completions", json=ask()).status_code == 200
        assert browser.get("/v1/segments").status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "hone.example"},
        {"Host": "127.0.0.1.example:8000"},
        {"Host": "[::1"},
        {"Origin": "http://[::1"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
    ],
)
def test_strangers_get_no_local_session(live: LiveServer, headers: dict[str, str]) -> None:
    with live.client("") as page:
        refused = page.post("/v1/sessions/local", headers=headers)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "not_local"
