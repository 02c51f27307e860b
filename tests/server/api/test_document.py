"""The description of the API that other programs read."""

import httpx
import pytest

from tests.server.live import LiveServer


@pytest.fixture
def document(live: LiveServer) -> dict:  # type: ignore[type-arg]
    with live.client("") as anybody:
        found: dict = anybody.get("/openapi.json").raise_for_status().json()  # type: ignore[type-arg]
    return found


def test_every_route_documents_the_envelope_and_no_other_error(document: dict) -> None:  # type: ignore[type-arg]
    """The framework's own error body was documented, which no route ever answers."""
    assert "HTTPValidationError" not in str(document)
    schemas = document["components"]["schemas"]
    assert schemas["ErrorAnswer"]["properties"].keys() == {"error"}
    assert schemas["Problem"]["properties"].keys() == {"message", "type", "code", "param"}
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            for status in ("4XX", "5XX"):
                said = operation["responses"][status]["content"]["application/json"]["schema"]
                assert said == {"$ref": "#/components/schemas/ErrorAnswer"}, (verb, path)


def test_what_goes_beyond_openais_sampling_is_described(document: dict) -> None:  # type: ignore[type-arg]
    top_k = document["components"]["schemas"]["ChatBody"]["properties"]["top_k"]
    number = next(kind for kind in top_k["anyOf"] if kind.get("type") == "integer")
    assert "likeliest" in (number | top_k)["description"]


def test_routes_that_want_a_token_say_so(document: dict, live: LiveServer) -> None:  # type: ignore[type-arg]
    """No token was documented, so that clients made from the document could not call anything."""
    ((name, scheme),) = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["security"] == [{name: []}]
    is_open = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if operation.get("security") == []
    }
    assert is_open == {"/healthz", "/readyz", "/metrics", "/v1/sessions/local"}
    with live.client("") as anybody:
        for path, operations in document["paths"].items():
            if path in is_open:
                continue
            for verb in operations:
                refused: httpx.Response = anybody.request(verb.upper(), path, json={})
                assert refused.status_code == 401, (verb, path, refused.text)
