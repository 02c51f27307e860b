"""Votes over HTTP: what is stored, what is refused, and what a retry gets."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.errors import Unavailable
from tests.server.live import LiveServer, ask, wait_until
from tests.server.test_app import echo


def talk(client: httpx.Client, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/v1/chat/completions", json=ask(**more)).raise_for_status().json()
    return answer


def pair(client: httpx.Client, **more: Any) -> str:
    name: str = talk(client, candidates=2, **more)["hone"]["comparison_id"]
    return name


def thumb(answer: dict[str, Any], value: str = "up", **more: Any) -> dict[str, Any]:
    return {"kind": "thumb", "reply_id": answer["choices"][0]["reply_id"], "value": value, **more}


def test_every_kind_is_stored_and_gives_a_receipt(admin: httpx.Client) -> None:
    answer = talk(admin)
    reply_id = answer["choices"][0]["reply_id"]
    for body in (
        {"kind": "pick", "comparison_id": pair(admin), "value": "tie", "seconds": 3.5, "tags": ["short"]},
        {"kind": "thumb", "reply_id": reply_id, "value": "down", "comment": "too long"},
        {"kind": "edit", "reply_id": reply_id, "text": "better"},
        {"kind": "rating", "reply_id": reply_id, "score": 4, "criterion": "clarity"},
        {"kind": "rating", "conversation_id": answer["hone"]["conversation_id"], "score": 5},
        {"kind": "signal", "reply_id": reply_id, "name": "dwell", "value": 12.5},
        {"kind": "signal", "reply_id": reply_id, "name": "copy"},
    ):
        response = admin.post("/v1/feedback", json=body)
        assert response.status_code == 201, response.text
        given = response.json()
        assert given.keys() == {"id", "kind", "status", "reason", "created_at"}
        assert given["kind"] == body["kind"]
        assert given["status"] == "counted"
        kept = admin.get(f"/v1/feedback/{given['id']}").json()
        assert kept == given | {"used_in": []}


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "pick", "comparison_id": "cmp_x", "value": "third"},
        {"kind": "thumb", "reply_id": "rep_x", "value": "sideways"},
        {"kind": "thumb", "reply_id": "rep_x"},
        {"kind": "edit", "reply_id": "rep_x", "text": ""},
        {"kind": "rating", "reply_id": "rep_x", "score": 6},
        {"kind": "rating", "score": 3},
        {"kind": "rating", "reply_id": "rep_x", "conversation_id": "conv_x", "score": 3},
        {"kind": "signal", "reply_id": "rep_x", "name": "sneeze"},
        {"kind": "applause"},
        {"kind": "thumb", "reply_id": "rep_x", "value": "up", "colour": "red"},
        {"kind": "rating", "reply_id": "rep_x", "score": True},
        {"kind": "rating", "reply_id": "rep_x", "score": "5"},
        {"kind": "rating", "reply_id": "rep_x", "score": 5.0},
        {"kind": "signal", "reply_id": "rep_x", "name": "dwell", "value": "12"},
    ],
)
def test_a_body_that_says_something_impossible_is_422(admin: httpx.Client, body: dict[str, Any]) -> None:
    response = admin.post("/v1/feedback", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, "missing_field"), ({"kind": "applause"}, "invalid_value"), ({"kind": None}, "invalid_value")],
)
def test_a_body_without_a_kind_of_feedback_names_that_field(
    admin: httpx.Client, body: dict[str, Any], code: str
) -> None:
    """Nothing was named, and a client could not tell which of its fields was wrong."""
    refused = admin.post("/v1/feedback", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, code, "kind")


def test_null_is_the_same_as_left_out(admin: httpx.Client) -> None:
    reply_id = admin.post("/v1/chat/completions", json=ask()).json()["choices"][0]["reply_id"]
    nothing = {"user": None, "comment": None, "tags": None}
    for body in (
        {"kind": "thumb", "value": "up"},
        {"kind": "rating", "score": 4, "criterion": None, "conversation_id": None},
        {"kind": "signal", "name": "copy", "value": None},
    ):
        response = admin.post("/v1/feedback", json={"reply_id": reply_id} | body | nothing)
        assert response.status_code == 201, response.text


def test_unknown_targets_are_404_with_their_own_code(admin: httpx.Client) -> None:
    for body, code in (
        ({"kind": "thumb", "reply_id": "rep_x", "value": "up"}, "unknown_reply"),
        ({"kind": "pick", "comparison_id": "cmp_x", "value": "tie"}, "unknown_comparison"),
        ({"kind": "rating", "conversation_id": "conv_x", "score": 1}, "unknown_conversation"),
    ):
        response = admin.post("/v1/feedback", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, code)
    assert admin.get("/v1/feedback/fb_x").json()["error"]["code"] == "unknown_feedback"
    assert admin.delete("/v1/feedback/fb_x").status_code == 404


def test_another_clients_reply_cannot_be_rated(admin: httpx.Client, live: LiveServer) -> None:
    answer = talk(admin)
    given = admin.post("/v1/feedback", json=thumb(answer)).json()["id"]
    with live.client(live.key(client="stranger")) as stranger:
        assert stranger.post("/v1/feedback", json=thumb(answer)).status_code == 404
        assert stranger.get(f"/v1/feedback/{given}").status_code == 404
        assert stranger.delete(f"/v1/feedback/{given}").status_code == 404


def test_the_user_must_be_the_turns_owner(admin: httpx.Client) -> None:
    answer = talk(admin, user="ada")
    assert admin.post("/v1/feedback", json=thumb(answer, user="ada")).status_code == 201
    assert admin.post("/v1/feedback", json=thumb(answer)).status_code == 201
    talk(admin, user="bob")
    assert admin.post("/v1/feedback", json=thumb(answer, user="bob")).status_code == 404
    assert admin.post("/v1/feedback", json=thumb(answer, user="nobody-yet")).status_code == 404


def test_the_same_key_and_body_get_the_first_answer_again(admin: httpx.Client) -> None:
    answer = talk(admin)
    headers = {"Idempotency-Key": answer["hone"]["turn_id"]}
    first = admin.post("/v1/feedback", json=thumb(answer), headers=headers)
    again = admin.post("/v1/feedback", json=thumb(answer), headers=headers)
    assert "Idempotent-Replay" not in first.headers
    assert again.headers["Idempotent-Replay"] == "true"
    assert again.status_code == 201
    assert again.json() == first.json()
    other = admin.post("/v1/feedback", json=thumb(answer, "down"), headers=headers)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_conflict"


def test_two_browsers_of_one_client_may_use_the_same_key(admin: httpx.Client) -> None:
    """The second user's vote was refused, because the key was the whole client's."""
    headers = {"Idempotency-Key": "vote-1"}
    said = {}
    for user in ("ada", "bob" * 60):
        token = admin.post("/v1/sessions", json={"user": user}).json()["token"]
        own = {"Authorization": f"Bearer {token}"}
        body = thumb(admin.post("/v1/chat/completions", json=ask(), headers=own).json())
        first = admin.post("/v1/feedback", json=body, headers=headers | own)
        again = admin.post("/v1/feedback", json=body, headers=headers | own)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.headers["Idempotent-Replay"] == "true"
        said[user] = again.json()["id"]
        other = admin.post("/v1/feedback", json=body | {"value": "down"}, headers=headers | own)
        assert other.json()["error"]["code"] == "idempotency_conflict"
    assert len(set(said.values())) == 2


def test_a_refused_vote_does_not_use_up_its_key(admin: httpx.Client) -> None:
    headers = {"Idempotency-Key": "once-refused"}
    body = {"kind": "thumb", "reply_id": "rep_x", "value": "up"}
    assert admin.post("/v1/feedback", json=body, headers=headers).status_code == 404
    assert admin.post("/v1/feedback", json=thumb(talk(admin)), headers=headers).status_code == 201


def test_a_new_vote_replaces_the_old_and_a_retraction_ends_it(admin: httpx.Client) -> None:
    answer = talk(admin)
    turn_id = answer["hone"]["turn_id"]

    def live_votes() -> list[str]:
        (reply,) = admin.get(f"/v1/turns/{turn_id}").json()["replies"]
        return [vote["value"] for vote in reply["votes"]]

    admin.post("/v1/feedback", json=thumb(answer, "up"))
    second = admin.post("/v1/feedback", json=thumb(answer, "down")).json()
    assert live_votes() == ["down"]
    gone = admin.delete(f"/v1/feedback/{second['id']}")
    assert gone.status_code == 200
    assert gone.json()["status"] == "retracted"
    assert admin.get(f"/v1/feedback/{second['id']}").json()["status"] == "retracted"


def test_a_pick_on_a_plain_turn_is_no_pick(admin: httpx.Client) -> None:
    answer = talk(admin, n=2)
    body = {"kind": "pick", "comparison_id": answer["choices"][0]["reply_id"], "value": "first"}
    refused = admin.post("/v1/feedback", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_a_pair")


def test_a_pick_on_another_clients_turn_is_answered_like_one_on_nothing(
    admin: httpx.Client, live: LiveServer
) -> None:
    answer = talk(admin)
    with live.client(live.key(client="stranger")) as stranger:
        for name in (answer["hone"]["turn_id"], answer["choices"][0]["reply_id"], "cmp_nothing"):
            refused = stranger.post(
                "/v1/feedback", json={"kind": "pick", "comparison_id": name, "value": "tie"}
            )
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_comparison")


def test_a_pick_that_was_too_early_for_a_pair_is_not_said_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for the pair's end as long as it may; then the client left, and the pair shows nothing whole."""
    monkeypatch.setattr("server.chat.VOTE_SECONDS", 0.01)
    with LiveServer(tmp_path, served=echo(delay=0.2)) as own, own.client() as admin:
        body = ask("one two three four five six", candidates=2, stream=True)
        with admin.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if line.startswith("data: "))
            pick = {
                "kind": "pick",
                "comparison_id": json.loads(first[6:])["hone"]["comparison_id"],
                "value": "tie",
            }
            given = admin.post("/v1/feedback", json=pick).raise_for_status().json()
            assert given["status"] == "counted"

        def kept() -> dict[str, Any]:
            found: dict[str, Any] = admin.get(f"/v1/feedback/{given['id']}").json()
            return found

        wait_until(lambda: kept()["status"] == "quarantined")
        assert kept()["reason"]
        assert kept()["used_in"] == []


def test_operators_list_all_feedback_page_by_page(admin: httpx.Client, live: LiveServer) -> None:
    ids = [admin.post("/v1/feedback", json=thumb(talk(admin))).json()["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"kind": "thumb", "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = admin.get("/v1/feedback", params=params).raise_for_status().json()
        seen += [row["id"] for row in page["data"]]
        assert len(page["data"]) <= 2
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert set(ids) <= set(seen)
    with live.client(live.key("feedback")) as user:
        assert user.get("/v1/feedback").status_code == 403


def test_an_overlong_idempotency_key_is_refused(admin: httpx.Client) -> None:
    response = admin.post("/v1/feedback", json=thumb(talk(admin)), headers={"Idempotency-Key": "k" * 300})
    assert response.status_code == 422


def test_votes_are_counted_by_the_version_they_are_about(admin: httpx.Client) -> None:
    admin.post("/v1/feedback", json=thumb(talk(admin), "down")).raise_for_status()
    page = admin.get("/metrics").text
    assert 'hone_feedback_total{kind="thumb",value="down",version="0"}' in page


def test_a_full_disk_is_503_and_says_when_to_come_back(
    admin: httpx.Client, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = talk(admin)

    async def full(work: object) -> None:
        raise Unavailable("The disk is full.", code="storage_full", retry_after=30)

    monkeypatch.setattr(live.store, "write_async", full)
    refused = admin.post("/v1/feedback", json=thumb(answer))
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "storage_full"
    assert refused.headers["Retry-After"] == "30"
