"""Every error leaves in the same envelope."""

import httpx
import pytest

from server import errors
from server.api import envelope
from tests.server.live import ask


def assert_envelope(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["code"] == code
    assert error["message"]


def test_what_the_framework_refuses_looks_like_everything_else(admin: httpx.Client) -> None:
    assert_envelope(admin.get("/v2/nothing"), 404, "unknown_route")
    assert_envelope(admin.get("/web/nothing.js"), 404, "unknown_route")
    assert_envelope(admin.put("/v1/models"), 405, "method_not_allowed")
    assert_envelope(admin.get("/v1/adapters/thirteen"), 422, "invalid_value")


def test_malformed_bodies_are_400_and_wrong_fields_422(admin: httpx.Client) -> None:
    json_type = {"Content-Type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/feedback"):
        for content in (b"", b"{", b"[]", b'"x"', b"\xff\xfe"):
            response = admin.post(path, content=content, headers=json_type)
            assert response.status_code in {400, 422}, (path, content, response.text)
            assert response.json()["error"]["code"]
    assert_envelope(
        admin.post("/v1/chat/completions", content=b"{", headers=json_type), 400, "malformed_request"
    )
    for content in (b'{"messages": "\xff"}', b"[" * 50_000, b'{"seed": ' + b"9" * 6000 + b"}"):
        response = admin.post("/v1/chat/completions", content=content, headers=json_type)
        assert_envelope(response, 400, "malformed_request")
    assert_envelope(admin.post("/v1/chat/completions", data={"a": "b"}), 400, "malformed_request")
    assert_envelope(admin.post("/v1/chat/completions", json={}), 422, "missing_field")
    assert_envelope(admin.post("/v1/sessions", json={"user": "a", "x": 1}), 422, "unknown_field")


def test_a_field_is_named_whatever_its_name(admin: httpx.Client) -> None:
    """Fields called like a part of a request lost that name, or all of it."""
    for name in ("query", "path", "header", "body"):
        refused = admin.post("/v1/sessions", json={"user": "ada", name: 1})
        assert_envelope(refused, 422, "unknown_field")
        assert refused.json()["error"]["param"] == name
    assert admin.get("/v1/promotions?limit=0").json()["error"]["param"] == "limit"


def test_bodies_take_jsons_own_types(admin: httpx.Client) -> None:
    """Text was read as a number and true as 1, so that a mistake became another version."""
    pin, promote = "/v1/segments/default/pin", "/v1/segments/default/promote"
    for path, body in (
        (promote, {"version": "1"}),
        (promote, {"version": True}),
        (promote, {"version": 1.0}),
        (pin, {"expecting": "0"}),
        ("/v1/learner/cycles", {"dry_run": "no"}),
        ("/v1/sessions", {"user": "ada", "ttl_s": "60"}),
    ):
        assert_envelope(admin.post(path, json=body), 422, "invalid_value")
    assert_envelope(
        admin.put("/v1/segments/default", json={"pairing": {"share": "0.5"}}), 422, "invalid_value"
    )
    key = {"client": "shop", "name": "till", "scopes": ["chat"], "expires_at": "2100-01-01T00:00:00Z"}
    assert admin.post("/v1/keys", json=key).status_code == 201


def test_an_address_with_a_slash_too_many_is_unknown_and_sends_nobody_elsewhere(admin: httpx.Client) -> None:
    """It was redirected to the host that the request named, and a client's POST with it."""
    assert_envelope(admin.get("/v1/models/"), 404, "unknown_route")
    assert_envelope(admin.post("/v1/feedback/", json={}), 404, "unknown_route")


def test_numbers_and_moments_beyond_every_database_are_422(admin: httpx.Client) -> None:
    """They reached the driver once, which knows no such number: 500."""
    many, last_day = "9" * 5000, "9999-12-31T23:59:59-12:00"
    for path in (
        "/v1/adapters/99999999999",
        "/v1/adapters/99999999999/files/samples.md",
        f"/v1/feedback?cursor={many}",
        "/v1/feedback?cursor=9999999999999999999",
        f"/v1/feedback?since={last_day}",
        f"/v1/promotions?cursor={last_day}~prm_x",
    ):
        assert_envelope(admin.get(path), 422, "invalid_value")
    promote = "/v1/segments/default/promote"
    assert_envelope(admin.post(promote, json={"version": 10**20}), 422, "invalid_value")
    stale = {"If-Match": many}
    assert_envelope(admin.post(promote, json={"version": 0}, headers=stale), 422, "invalid_value")
    key = {"client": "shop", "name": "till", "scopes": ["chat"], "expires_at": last_day}
    assert_envelope(admin.post("/v1/keys", json=key), 422, "invalid_value")


def test_a_nul_in_an_address_is_malformed(admin: httpx.Client) -> None:
    """PostgreSQL's driver refuses it, which was answered 500."""
    for path in ("/v1/turns/a%00b", "/v1/feedback?user=%00", "/v1/promotions?segment=a%00"):
        assert_envelope(admin.get(path), 400, "malformed_request")


def test_a_body_without_a_content_type_is_read_as_json(admin: httpx.Client) -> None:
    response = admin.post("/v1/sessions", content=b'{"user": "ada"}')
    assert response.status_code == 201


def test_too_large_is_413_whether_or_not_its_length_is_declared(admin: httpx.Client) -> None:
    text = "x" * 1_100_000
    assert_envelope(admin.post("/v1/chat/completions", json=ask(text)), 413, "too_large")

    def pieces():  # type: ignore[no-untyped-def]
        for _ in range(20):
            yield b"x" * 100_000

    headers = {"Content-Type": "application/json"}
    assert_envelope(admin.post("/v1/chat/completions", content=pieces(), headers=headers), 413, "too_large")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Malformed("x"), 400),
        (errors.Invalid("x", code="prompt_too_long"), 400),
        (errors.Unauthenticated("x"), 401),
        (errors.Forbidden("x"), 403),
        (errors.NotFound("x"), 404),
        (errors.Conflict("x"), 409),
        (errors.AdapterRejected("x"), 409),
        (errors.TooLarge("x"), 413),
        (errors.Invalid("x"), 422),
        (errors.Busy("x"), 429),
        (errors.Unavailable("x", code="storage_full"), 503),
        (errors.HoneError("x"), 500),
    ],
)
def test_the_table_of_statuses(error: errors.HoneError, status: int) -> None:
    response = envelope.respond(error)
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status in {429, 503})


def test_every_error_of_the_tree_has_its_status() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.HoneError)
    ]
    assert {kind for kind in kinds if kind not in envelope.STATUS} == {errors.HoneError}


def test_what_nobody_meant_is_not_described_to_callers() -> None:
    assert "secret" not in str(envelope.of(RuntimeError("secret")))


def test_waiting_time_is_rounded_up_to_whole_seconds() -> None:
    assert envelope.respond(errors.Busy("x", retry_after=1.2)).headers["retry-after"] == "2"
