"""Who reaches what: every route, every kind of token."""

from collections.abc import Iterator

import pytest

from tests.server.live import LiveServer

OPEN = {"/healthz", "/readyz", "/metrics", "/", "/v1/sessions/local"}
SCOPES = ("chat", "feedback", "operator", "admin")
NEEDED = {
    ("POST", "/v1/chat/completions"): {"chat"},
    ("GET", "/v1/models"): set(SCOPES),
    ("GET", "/v1/models/{name}"): set(SCOPES),
    ("GET", "/v1/turns"): {"operator"},
    ("GET", "/v1/turns/{turn_id}"): {"operator"},
    ("POST", "/v1/sessions"): {"chat"},
    ("POST", "/v1/feedback"): {"feedback"},
    ("GET", "/v1/feedback"): {"operator"},
    ("GET", "/v1/feedback/{feedback_id}"): {"feedback"},
    ("DELETE", "/v1/feedback/{feedback_id}"): {"feedback"},
    ("GET", "/v1/adapters"): {"operator"},
    ("GET", "/v1/adapters/{version}"): {"operator"},
    ("GET", "/v1/adapters/{version}/files/{name:path}"): {"operator"},
    ("GET", "/v1/segments"): {"operator"},
    ("PUT", "/v1/segments/{name}"): {"operator"},
    ("POST", "/v1/segments/{name}/promote"): {"operator"},
    ("POST", "/v1/segments/{name}/rollback"): {"operator"},
    ("POST", "/v1/segments/{name}/rollforward"): {"operator"},
    ("POST", "/v1/segments/{name}/pin"): {"operator"},
    ("POST", "/v1/segments/{name}/unpin"): {"operator"},
    ("GET", "/v1/promotions"): {"operator"},
    ("GET", "/v1/learner"): {"operator"},
    ("POST", "/v1/learner/cycles"): {"operator"},
    ("GET", "/v1/learner/cycles"): {"operator"},
    ("GET", "/v1/learner/cycles/{cycle_id}"): {"operator"},
    ("POST", "/v1/learner/cycles/{cycle_id}/cancel"): {"operator"},
    ("GET", "/v1/keys"): {"admin"},
    ("POST", "/v1/keys"): {"admin"},
    ("DELETE", "/v1/keys/{key_id}"): {"admin"},
    ("GET", "/v1/audit"): {"admin"},
}


def routes(live: LiveServer) -> Iterator[tuple[str, str]]:
    for path, methods in live.app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


def call(live: LiveServer, token: str, method: str, path: str) -> int:
    """A harmless call: nothing exists under these names, and bodies are empty."""
    for name in ("turn_id", "feedback_id", "cycle_id", "key_id", "name"):
        path = path.replace(f"{{{name}}}", "nothing").replace("{name:path}", "nothing")
    path = path.replace("{version}", "999").replace("{name}", "nothing")
    with live.client(token) as client:
        body = {} if method in {"POST", "PUT"} else None
        return client.request(method, path, json=body).status_code


def normal(path: str) -> str:
    return path.replace("{name:path}", "{name}")


@pytest.fixture(scope="module")
def tokens(live: LiveServer) -> dict[str, str]:
    made = {scope: live.key(scope, client=f"only-{scope}") for scope in SCOPES}
    with live.client() as admin:
        made["session"] = admin.post("/v1/sessions", json={"user": "ada"}).json()["token"]
    return made


def test_the_table_names_every_route(live: LiveServer) -> None:
    needed = {(method, normal(path)) for method, path in NEEDED}
    known = {(method, normal(path)) for method, path in routes(live) if path not in OPEN}
    assert known == needed


@pytest.mark.parametrize(("method", "path"), sorted(NEEDED), ids=lambda part: str(part))
def test_nobody_passes_without_a_known_token(live: LiveServer, method: str, path: str) -> None:
    for token in ("", "nonsense", "hone_sk_nothing_nothing", "a.b.c"):
        assert call(live, token, method, path) == 401


@pytest.mark.parametrize(("method", "path"), sorted(NEEDED), ids=lambda part: str(part))
def test_each_scope_opens_its_own_doors_only(
    live: LiveServer, tokens: dict[str, str], method: str, path: str
) -> None:
    session_may = bool(NEEDED[method, path] & {"chat", "feedback"}) and path != "/v1/sessions"
    for kind, token in tokens.items():
        allowed = session_may if kind == "session" else kind in NEEDED[method, path]
        status = call(live, token, method, path)
        if allowed:
            assert status not in {401, 403, 500}, (kind, status)
        else:
            assert status == 403 or (kind == "session" and status == 422), (kind, status)
