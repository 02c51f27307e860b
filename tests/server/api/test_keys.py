"""Keys and the audit."""

import time

import httpx

from tests.server.live import LiveServer, ask, wait_until


def made(admin: httpx.Client, *scopes: str, **more: object) -> dict[str, str]:
    body = {"client": "shop", "name": "till", "scopes": list(scopes), **more}
    row: dict[str, str] = admin.post("/v1/keys", json=body).raise_for_status().json()
    return row


def test_a_key_works_at_once_and_its_secret_is_shown_once(admin: httpx.Client, live: LiveServer) -> None:
    key = made(admin, "chat")
    assert key["token"].startswith("hone_sk_")
    with live.client(key["token"]) as client:
        assert client.post("/v1/chat/completions", json=ask()).status_code == 200
    rows = admin.get("/v1/keys").json()["data"]
    (row,) = [row for row in rows if row["id"] == key["id"]]
    assert row["client"] == "shop"
    secret = key["token"].rpartition("_")[2]
    assert secret not in admin.get("/v1/keys").text
    assert secret not in admin.get("/v1/audit").text


def test_a_revoked_key_ends_within_two_seconds(admin: httpx.Client, live: LiveServer) -> None:
    key = made(admin, "chat")
    with live.client(key["token"]) as client:
        assert client.get("/v1/models").status_code == 200
        assert admin.delete(f"/v1/keys/{key['id']}").json()["revoked_at"]
        began = time.monotonic()
        wait_until(lambda: client.get("/v1/models").status_code == 401)
        assert time.monotonic() - began < 2.2
    assert admin.delete("/v1/keys/key_nothing").status_code == 404


def test_a_key_past_its_day_is_unknown(admin: httpx.Client, live: LiveServer) -> None:
    key = made(admin, "chat", expires_at="2020-01-01T00:00:00Z")
    with live.client(key["token"]) as client:
        assert client.get("/v1/models").status_code == 401


def test_moves_of_operators_stand_in_the_audit(admin: httpx.Client) -> None:
    key = made(admin, "chat")
    newest = admin.get("/v1/audit", params={"limit": 1}).json()["data"][0]
    assert newest["action"] == "key.create"
    assert newest["target"] == key["id"]
    assert newest["actor"].startswith("admin")


def test_a_key_with_a_scope_that_does_not_exist_is_refused(admin: httpx.Client) -> None:
    body = {"client": "shop", "name": "till", "scopes": ["root"]}
    assert admin.post("/v1/keys", json=body).status_code == 422
