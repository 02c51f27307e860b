"""Moves of champions over HTTP: what serves afterwards, and what is refused."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.live import LiveServer, ask, events, wait_until
from tests.server.publishing import publish
from tests.server.test_app import echo


@pytest.fixture
def own(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A server of the test's own: champions are shared by all that use a server."""
    with LiveServer(tmp_path, served=echo(delay=0.005)) as server:
        yield server


def move(client: httpx.Client, verb: str, segment: str = "default", **body: Any) -> httpx.Response:
    return client.post(f"/v1/segments/{segment}/{verb}", json={"reason": "a test", **body})


def served_version(client: httpx.Client, model: str = "default") -> int:
    answer = client.post("/v1/chat/completions", json=ask() | {"model": model}).json()
    (reply,) = client.get(f"/v1/turns/{answer['hone']['turn_id']}").json()["replies"]
    version: int = reply["version"]
    return version


def test_a_promoted_version_answers_and_a_rollback_takes_it_back(own: LiveServer) -> None:
    first, second = publish(own.store, own.settings), publish(own.store, own.settings)
    with own.client() as admin:
        for version in (first, second):
            done = move(admin, "promote", version=version)
            assert done.status_code == 200, done.text
            assert done.json()["serving"] is True
            assert done.json()["champion"] == version
            assert served_version(admin) == version
        assert move(admin, "rollback").json()["champion"] == first
        assert served_version(admin) == first
        assert move(admin, "rollback").json()["champion"] == 0
        assert served_version(admin) == 0
        refused = move(admin, "rollback")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "nothing_to_roll_back")
        assert move(admin, "rollforward").json()["champion"] == first
        log = admin.get("/v1/promotions").json()["data"]
        assert [row["kind"] for row in log][:2] == ["rollforward", "rollback"]
        assert all(row["by"].startswith("admin") for row in log)


def test_expecting_another_champion_is_a_conflict(own: LiveServer) -> None:
    version = publish(own.store, own.settings)
    with own.client() as admin:
        for refused in (
            move(admin, "promote", version=version, expecting=7),
            admin.post(
                "/v1/segments/default/promote", json={"version": version}, headers={"If-Match": '"7"'}
            ),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_conflict")
        assert move(admin, "promote", version=version, expecting=0).status_code == 200
        both = admin.post(
            "/v1/segments/default/pin", json={"expecting": version}, headers={"If-Match": '"0"'}
        )
        assert (both.status_code, both.json()["error"]["code"]) == (409, "version_conflict")
        nonsense = admin.post(
            "/v1/segments/default/promote", json={"version": version}, headers={"If-Match": "soon"}
        )
        assert nonsense.status_code == 422


def test_two_operators_who_saw_the_same_champion_do_not_both_move_it(own: LiveServer) -> None:
    """Both saw the third serve badly and took it back: without a word, the second would have taken back the second."""
    versions = [publish(own.store, own.settings) for _ in range(3)]
    with own.client() as admin:
        for version in versions:
            move(admin, "promote", version=version)
        seen = versions[-1]
        with ThreadPoolExecutor(4) as operators:
            answers = list(operators.map(lambda _: move(admin, "rollback", expecting=seen), range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        assert served_version(admin) == versions[-2]
        for verb in ("rollback", "rollforward", "pin", "unpin"):
            stale = admin.post(
                f"/v1/segments/default/{verb}", json={"reason": "late"}, headers={"If-Match": f'"{seen}"'}
            )
            assert (stale.status_code, stale.json()["error"]["code"]) == (409, "version_conflict"), verb
        (segment,) = [row for row in admin.get("/v1/segments").json()["data"] if row["name"] == "default"]
        assert (segment["champion"], segment["pinned"]) == (versions[-2], False)


def test_unknown_versions_and_segments_are_404(own: LiveServer) -> None:
    with own.client() as admin:
        assert move(admin, "promote", version=99).json()["error"]["code"] == "unknown_version"
        assert move(admin, "rollback", segment="nowhere").json()["error"]["code"] == "unknown_segment"


def test_pin_and_unpin_are_seen_in_the_segment(own: LiveServer) -> None:
    with own.client() as admin:
        assert move(admin, "pin").json()["pinned"] is True
        (row,) = admin.get("/v1/segments").json()["data"]
        assert row["pinned"] is True
        assert row["champion"] == 0
        assert move(admin, "unpin").json()["pinned"] is False


def test_a_segment_keeps_what_a_change_leaves_out(own: LiveServer) -> None:
    with own.client() as admin:
        made = admin.put("/v1/segments/lane", json={"pairing": {"share": 1.0}}).json()
        assert made["pairing"]["share"] == 1.0
        again = admin.put("/v1/segments/lane", json={"rollout": "manual"}).json()
        assert again["pairing"]["share"] == 1.0
        assert again["rollout"] == "manual"
        assert admin.put("/v1/segments/lane", json={"pairing": {"share": 2}}).status_code == 422
        assert admin.put("/v1/segments/Bad Name", json={}).status_code == 422
        answer = wait_until(
            lambda: admin.post("/v1/chat/completions", json=ask(candidates="auto") | {"model": "lane"})
        )
        assert answer.json()["hone"]["comparison_id"]


def test_a_change_of_a_part_of_the_pairing_keeps_the_rest(own: LiveServer) -> None:
    """The part that was left out went back to its default."""
    with own.client() as admin:
        admin.put("/v1/segments/lane", json={"pairing": {"share": 0.9, "min_temperature": 1.1}})
        changed = admin.put("/v1/segments/lane", json={"pairing": {"share": 0.5}}).json()
        assert changed["pairing"] == {"share": 0.5, "min_temperature": 1.1}
        changed = admin.put("/v1/segments/lane", json={"pairing": {"min_temperature": 1}}).json()
        assert changed["pairing"] == {"share": 0.5, "min_temperature": 1.0}
        assert admin.put("/v1/segments/lane", json={"pairing": {}}).json()["pairing"] == changed["pairing"]


def test_a_segment_has_an_objective(own: LiveServer) -> None:
    with own.client() as admin:
        assert admin.put("/v1/segments/lane", json={"objectives": {}}).status_code == 422
        kept = admin.put("/v1/segments/lane", json={"objectives": {"votes": 2}}).json()
        assert kept["objectives"] == {"votes": 2.0}


def test_a_policy_is_in_force_when_its_change_is_answered(own: LiveServer) -> None:
    """The answer came first, and most requests right after it were still paired by the old policy."""
    with own.client() as admin:
        for share in (1, 0) * 10:
            changed = admin.put("/v1/segments/default", json={"pairing": {"share": share}}).json()
            assert (changed["serving"], changed["pending"]) == (True, None)
            answer = admin.post("/v1/chat/completions", json=ask(candidates="auto")).json()
            assert len(answer["choices"]) == 1 + share


def test_a_segment_without_a_champion_serves_defaults(own: LiveServer) -> None:
    version = publish(own.store, own.settings)
    with own.client() as admin:
        admin.put("/v1/segments/lane", json={}).raise_for_status()
        move(admin, "promote", version=version).raise_for_status()
        wait_until(lambda: served_version(admin, "lane") == version)
        own_version = publish(own.store, own.settings, segment="lane")
        # What an operator saw serving is what a move may expect, also where it is `default`'s.
        moved = move(admin, "promote", segment="lane", version=own_version, expecting=version)
        assert moved.json()["serving"] is True
        assert served_version(admin, "lane") == own_version
        assert served_version(admin) == version


def test_moves_name_what_serves_where_a_segment_has_no_champion_of_its_own(own: LiveServer) -> None:
    """A pin answered champion 0, and a rollback of the first promotion served the bare base to everybody."""
    version = publish(own.store, own.settings)
    with own.client() as admin:
        admin.put("/v1/segments/lane", json={}).raise_for_status()
        move(admin, "promote", version=version).raise_for_status()
        assert move(admin, "pin", segment="lane").json()["champion"] == version
        other = publish(own.store, own.settings, segment="lane")
        assert move(admin, "promote", segment="lane", version=other).json()["previous"] == version
        back = move(admin, "rollback", segment="lane").json()
        assert (back["champion"], back["serving"]) == (version, True)
        assert served_version(admin, "lane") == version
        same = move(admin, "rollback", segment="lane", to=version)
        assert (same.status_code, same.json()["error"]["code"]) == (409, "already_champion")


def test_a_planted_wrong_adapter_is_refused_and_the_old_one_goes_on(own: LiveServer) -> None:
    good = publish(own.store, own.settings)
    wrong = publish(own.store, own.settings, off_by=0.01)
    with own.client() as admin:
        move(admin, "promote", version=good).raise_for_status()
        done = move(admin, "promote", version=wrong).json()
        assert done["serving"] is False
        assert "nats" in done["pending"]
        assert served_version(admin) == good
        ready = admin.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["status"] == "degraded"
        checks = admin.get(f"/v1/adapters/{wrong}").json()["checks"]
        assert [check["outcome"] for check in checks] == ["rejected"]
        assert move(admin, "rollback").json()["serving"] is True
        assert admin.get("/readyz").json()["status"] == "ready"
        assert admin.get(f"/v1/adapters/{wrong}").json()["state"] == "rejected"


@pytest.mark.parametrize(
    "trouble",
    [
        {"base_hash": "another"},
        {"template_hash": "another"},
        {"spoil": "adapter_config.json"},
        {"spoil": "probe.json"},
    ],
    ids=str,
)
def test_a_folder_that_does_not_fit_is_never_served(own: LiveServer, trouble: dict[str, str]) -> None:
    version = publish(own.store, own.settings, **trouble)  # type: ignore[arg-type]
    with own.client() as admin:
        done = move(admin, "promote", version=version).json()
        assert done["serving"] is False
        assert done["pending"]
        assert served_version(admin) == 0


def test_reports_of_a_version_are_shown_and_nothing_else(own: LiveServer) -> None:
    version = publish(own.store, own.settings)
    with own.client() as admin:
        shown = admin.get(f"/v1/adapters/{version}").json()
        assert shown["manifest"]["base"]["id"] == "echo"
        assert shown["verdict"]["passed"] is True
        for path in shown["files"]:
            assert admin.get(path).status_code == 200
        plot = admin.get(f"/v1/adapters/{version}/files/plots/kl.svg")
        assert plot.headers["content-type"] == "image/svg+xml"
        assert "sandbox" in plot.headers["content-security-policy"]
        for name in (
            "adapter_config.json",
            "manifest.json",
            "probe.json",
            "%2e%2e/%2e%2e/hone.db",
            "plots/%2E%2E/probe.json",
            "plots/%2e%2e/probe.json",
            "plots/none.svg",
            "",
        ):
            assert admin.get(f"/v1/adapters/{version}/files/{name}").status_code == 404, name
        assert admin.get("/v1/adapters/999").json()["error"]["code"] == "unknown_version"


def test_adapters_are_listed_with_their_states(own: LiveServer) -> None:
    first, second, bad = (publish(own.store, own.settings, passed=passed) for passed in (True, True, False))
    with own.client() as admin:
        move(admin, "promote", version=first)
        move(admin, "promote", version=second)
        states = {row["version"]: row["state"] for row in admin.get("/v1/adapters").json()["data"]}
        assert states == {first: "retired", second: "champion", bad: "rejected"}
        listed = admin.get("/v1/adapters", params={"state": "champion"}).json()["data"]
        assert [row["version"] for row in listed] == [second]
        ids = [row["id"] for row in admin.get("/v1/models").json()["data"]]
        assert {"default", f"default@{first}", f"default@{second}"} <= set(ids)


def test_a_version_that_serves_another_segment_is_a_champion(own: LiveServer) -> None:
    version = publish(own.store, own.settings)
    with own.client() as admin:
        admin.put("/v1/segments/lane", json={}).raise_for_status()
        move(admin, "promote", segment="lane", version=version).raise_for_status()
        assert admin.get(f"/v1/adapters/{version}").json()["state"] == "champion"
        move(admin, "rollback", segment="lane").raise_for_status()
        assert admin.get(f"/v1/adapters/{version}").json()["state"] == "retired"


def test_a_pinned_version_is_loaded_for_the_request_that_names_it(own: LiveServer) -> None:
    version = publish(own.store, own.settings)
    wrong = publish(own.store, own.settings, off_by=0.01)
    with own.client() as admin:
        assert served_version(admin, f"default@{version}") == version
        assert served_version(admin) == 0
        refused = admin.post("/v1/chat/completions", json=ask() | {"model": f"default@{wrong}"})
        assert refused.status_code == 409


def test_a_request_names_versions_of_its_segment_or_of_default(own: LiveServer) -> None:
    """Any version was taken under any name, and an unknown one was said to be wrong in a field that chat has not."""
    version = publish(own.store, own.settings)
    with own.client() as admin:
        admin.put("/v1/segments/lane", json={}).raise_for_status()
        special = publish(own.store, own.settings, segment="lane")
        for name, wanted in ((f"lane@{special}", special), (f"lane@{version}", version), ("lane@0", 0)):
            assert served_version(admin, name) == wanted
        for name in (f"default@{special}", "default@999"):
            refused = admin.post("/v1/chat/completions", json=ask() | {"model": name})
            assert refused.status_code == 404
            error = refused.json()["error"]
            assert (error["code"], error["param"]) == ("unknown_version", "model")
        nowhere = admin.post("/v1/chat/completions", json=ask() | {"model": "nowhere@0"})
        assert nowhere.json()["error"]["code"] == "unknown_segment"


def test_a_cursor_goes_into_an_address_as_it_is(own: LiveServer) -> None:
    """It held a plus, which means a blank there, and the next page was refused."""
    with own.client() as admin:
        for verb in ("pin", "unpin", "pin"):
            move(admin, verb).raise_for_status()
        for path in ("/v1/promotions", "/v1/audit"):
            first = admin.get(f"{path}?limit=2").json()
            rest = admin.get(f"{path}?limit=2&cursor={first['next_cursor']}").raise_for_status().json()
            assert (len(first["data"]), len(rest["data"]), rest["next_cursor"]) == (2, 1, None)


def test_swaps_are_invisible_to_sixteen_streams(own: LiveServer) -> None:
    """Ten moves under sixteen streaming clients: no request fails, and each reply is one version's from end to end."""
    versions = [publish(own.store, own.settings) for _ in range(2)]
    failures: list[str] = []
    turns: list[tuple[str, str]] = []
    stop = threading.Event()

    def listen() -> None:
        with own.client() as client:
            while not stop.is_set():
                body = ask("one two three four five six seven eight", stream=True)
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    got = events(response)
                if (
                    response.status_code != 200
                    or got[-1] != "[DONE]"
                    or any('"error"' in part for part in got)
                ):
                    failures.append(str(got[-2:]))
                    continue
                parts = [json.loads(part) for part in got[:-1]]
                said = "".join(c["choices"][0]["delta"].get("content", "") for c in parts)
                turns.append((parts[0]["hone"]["turn_id"], said))

    clients = [threading.Thread(target=listen) for _ in range(16)]
    for client in clients:
        client.start()
    with own.client() as admin:
        for i in range(10):
            time.sleep(0.05)
            done = move(admin, "rollback") if i % 3 == 2 else move(admin, "promote", version=versions[i % 2])
            assert done.json()["serving"] is True, done.text
        stop.set()
        for client in clients:
            client.join()
        assert failures == []
        seen = set()
        for turn_id, said in turns[:: max(1, len(turns) // 60)]:
            (reply,) = admin.get(f"/v1/turns/{turn_id}").json()["replies"]
            seen.add(reply["version"])
            assert reply["text"] == said
            assert (f"[v{reply['version']}]" in said) == (reply["version"] != 0)
        assert len(seen) >= 2


def test_after_a_rollback_the_next_request_is_answered_by_the_old_version(own: LiveServer) -> None:
    version = publish(own.store, own.settings)
    with own.client() as admin:
        times = []
        for _ in range(5):
            move(admin, "promote", version=version).raise_for_status()
            began = time.perf_counter()
            move(admin, "rollback").raise_for_status()
            assert served_version(admin) == 0
            times.append(time.perf_counter() - began)
    assert sorted(times)[2] < 0.5
