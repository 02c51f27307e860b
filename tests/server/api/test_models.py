"""What may be named as `model`, listed and looked up."""

import httpx

from tests.server.live import LiveServer
from tests.server.publishing import publish


def test_models_lists_segments_and_for_operators_versions(admin: httpx.Client, live: LiveServer) -> None:
    (row,) = [row for row in admin.get("/v1/models").json()["data"] if row["id"] == "default"]
    assert row["object"] == "model"
    assert row["hone"]["revision"] > 0
    assert row["hone"]["serving_since"]
    assert admin.get("/v1/models").json()["next_cursor"] is None
    with live.client(live.key("chat")) as user:
        assert all("@" not in row["id"] for row in user.get("/v1/models").json()["data"])


def test_anybody_sees_which_version_serves_and_what_it_learned_from(
    admin: httpx.Client, live: LiveServer
) -> None:
    version = publish(live.store, live.settings, picks=300, thumbs=120, people=24)
    admin.put("/v1/segments/follower", json={}).raise_for_status()
    token = admin.post("/v1/sessions", json={"user": "ada"}).json()["token"]

    def facts(segment: str = "default") -> tuple[object, ...]:
        row = admin.get(f"/v1/models/{segment}", headers={"Authorization": f"Bearer {token}"}).json()["hone"]
        return row["version"], row["again"], row["learned_from"]

    def move(verb: str, **body: object) -> None:
        moved = admin.post(f"/v1/segments/default/{verb}", json=body).raise_for_status().json()
        assert moved["serving"]

    learned = {"picks": 300, "thumbs": 120, "people": 24}
    assert facts() == (0, False, None)
    move("promote", version=version)
    assert facts() == facts("follower") == (version, False, learned)
    move("pin")
    assert facts() == (version, False, learned)
    move("rollback")
    assert facts() == facts("follower") == (0, True, None)
    move("rollforward")
    assert facts() == (version, True, learned)


def test_operators_look_versions_up_and_for_others_there_are_none(
    admin: httpx.Client, live: LiveServer
) -> None:
    name = f"default@{publish(live.store, live.settings)}"
    found = admin.get(f"/v1/models/{name}")
    assert found.status_code == 200
    assert found.json() in admin.get("/v1/models").json()["data"]
    with live.client(live.key("chat")) as user:
        hidden, nothing = user.get(f"/v1/models/{name}"), user.get("/v1/models/default@99999")
        assert hidden.status_code == nothing.status_code == 404
        assert hidden.json()["error"]["code"] == nothing.json()["error"]["code"] == "unknown_version"


def test_a_session_of_a_segment_sees_that_one_alone(admin: httpx.Client) -> None:
    """It was shown all of them, and could talk to none but its own."""
    for name in ("lane", "secret"):
        admin.put(f"/v1/segments/{name}", json={}).raise_for_status()
    token = admin.post("/v1/sessions", json={"user": "ada", "segment": "lane"}).json()["token"]
    own = {"Authorization": f"Bearer {token}"}
    assert [row["id"] for row in admin.get("/v1/models", headers=own).json()["data"]] == ["lane"]
    for name in ("lane", "default"):  # as in a chat request, `default` means the session's own
        assert admin.get(f"/v1/models/{name}", headers=own).json()["id"] == "lane"
    hidden, nothing = (admin.get(f"/v1/models/{name}", headers=own) for name in ("secret", "nowhere"))
    assert hidden.status_code == nothing.status_code == 403
    assert hidden.json() == nothing.json()


def test_a_version_belongs_to_its_segment(admin: httpx.Client, live: LiveServer) -> None:
    version = publish(live.store, live.settings)
    for name in (f"other@{version}", "default@99999", "default@0"):
        refused = admin.get(f"/v1/models/{name}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_version")


def test_a_name_that_means_nothing_is_404_whatever_it_is_made_of(admin: httpx.Client) -> None:
    for name in ("gpt-9", "default@", "default@x", "@1", "a%2Fb", "%F0%9F%99%82", "x" * 300):
        refused = admin.get(f"/v1/models/{name}")
        assert refused.status_code == 404, name
        assert refused.json()["error"]["code"] in {"unknown_segment", "unknown_route"}
