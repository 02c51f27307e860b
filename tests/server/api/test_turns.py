"""What was asked, as operators list it."""

from __future__ import annotations

from typing import Any

import httpx

from tests.server.live import ask


def listed(admin: httpx.Client, **asked: Any) -> list[str]:
    rows = admin.get("/v1/turns", params=asked).raise_for_status().json()["data"]
    return [row["messages"][-1]["content"] for row in rows]


def test_turns_are_listed_newest_first_by_segment_and_by_whether_they_may_train(admin: httpx.Client) -> None:
    admin.put("/v1/segments/lane", json={}).raise_for_status()
    for text, more in (
        ("first", {}),
        ("kept out", {"metadata": {"hone_train": "false"}}),
        ("elsewhere", {"model": "lane"}),
        ("last", {}),
    ):
        admin.post("/v1/chat/completions", json=ask(text, **more)).raise_for_status()
    assert listed(admin) == ["last", "elsewhere", "kept out", "first"]
    assert listed(admin, segment="default", train=True) == ["last", "first"]
    assert listed(admin, train=False) == ["kept out"]
    assert listed(admin, segment="nowhere") == []

    page = admin.get("/v1/turns", params={"limit": 3}).json()
    rest = admin.get("/v1/turns", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert (len(page["data"]), len(rest["data"]), rest["next_cursor"]) == (3, 1, None)
    row = rest["data"][0]
    assert row["id"].startswith("turn_")
    assert "prompt_token_ids" not in row
    detail = admin.get(f"/v1/turns/{row['id']}").json()
    assert {name: detail[name] for name in row} == row


def test_a_cursor_of_somebody_else_is_refused(admin: httpx.Client) -> None:
    refused = admin.get("/v1/turns", params={"cursor": "yesterday"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "cursor")
