"""The learner over HTTP: wishes become rows, rows become answers."""

from pathlib import Path

import pytest
from sqlalchemy import update

from server.store import cycles
from server.store.tables import Cycle
from tests.server.live import LiveServer


@pytest.fixture
def own(tmp_path: Path):  # type: ignore[no-untyped-def]
    with LiveServer(tmp_path) as server:
        yield server


def test_an_idle_learner_says_so(own: LiveServer) -> None:
    with own.client() as admin:
        said = admin.get("/v1/learner").json()
        assert said["state"] == "idle"
        assert said["segment"] == "default"
        assert said["why_not"] == cycles.NO_LEARNER
        (row,) = [row for row in admin.get("/v1/models").json()["data"] if row["id"] == "default"]
        assert row["hone"]["why_not"] == cycles.NO_LEARNER
        unknown = admin.get("/v1/learner", params={"segment": "nowhere"})
        assert unknown.json()["error"]["code"] == "unknown_segment"


def test_a_cycle_is_asked_for_once_and_can_be_cancelled(own: LiveServer) -> None:
    with own.client() as admin:
        asked = admin.post("/v1/learner/cycles", json={"dry_run": True})
        assert asked.status_code == 202
        cycle = asked.json()
        assert cycle["state"] == "requested"
        assert cycle["dry_run"] is True
        assert cycle["why_not"] == cycles.NO_LEARNER
        assert cycle["by"].startswith("admin")
        again = admin.post("/v1/learner/cycles", json={})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "cycle_running")
        assert cycles.NO_LEARNER in again.json()["error"]["message"]
        waits = admin.get("/v1/learner").json()
        assert (waits["cycle"], waits["state"], waits["why_not"]) == (
            cycle["id"],
            "requested",
            cycles.NO_LEARNER,
        )
        assert [row["id"] for row in admin.get("/v1/learner/cycles").json()["data"]] == [cycle["id"]]
        assert admin.get(f"/v1/learner/cycles/{cycle['id']}").json()["plots"] == []
        assert admin.post(f"/v1/learner/cycles/{cycle['id']}/cancel").status_code == 202
        assert admin.get("/v1/learner").json()["state"] == "idle"
        assert admin.get("/v1/learner/cycles/cyc_nothing").status_code == 404
        assert admin.post("/v1/learner/cycles/cyc_nothing/cancel").status_code == 404
        actions = [row["action"] for row in admin.get("/v1/audit").json()["data"]]
        assert {"cycle.request", "cycle.cancel"} <= set(actions)


def test_a_cycle_with_a_number_and_no_version_yet_is_shown(own: LiveServer) -> None:
    """Between taking its number and entering its version, a cycle answered 404 to whoever looked at it."""
    with own.client() as admin:
        cycle = admin.post("/v1/learner/cycles", json={}).json()
        own.store.write(lambda s: s.execute(update(Cycle).values(version=7)).rowcount)
        shown = admin.get(f"/v1/learner/cycles/{cycle['id']}")
        assert (shown.status_code, shown.json()["version"], shown.json()["plots"]) == (200, 7, [])


def test_a_cycle_needs_a_segment_that_exists(own: LiveServer) -> None:
    with own.client() as admin:
        refused = admin.post("/v1/learner/cycles", json={"segment": "nowhere"})
        assert refused.json()["error"]["code"] == "unknown_segment"
