"""Whether a server lives and can answer."""

import asyncio
from dataclasses import replace
from pathlib import Path

from server.engine.base import EngineStatus
from server.engine.echo import EchoEngine
from tests.server.live import LiveServer, ask
from tests.server.test_app import echo


def test_alive_ready_and_its_numbers_need_no_token(live: LiveServer) -> None:
    with live.client("") as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        ready = client.get("/readyz")
        assert ready.status_code == 200
        report = ready.json()
        assert report["status"] == "ready"
        assert report["engine"]["name"] == "echo"
        assert {"segment": "default", "champion": 0, "serving": 0, "trouble": None} in report["segments"]
        page = client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        assert 'hone_serving_version{segment="default"} 0.0' in page.text


def test_what_the_decoder_holds_is_told_apart_from_promised_places(tmp_path: Path) -> None:
    """A slot that leaks there takes no place: it showed nowhere."""

    class Leaking(EchoEngine):
        async def status(self) -> EngineStatus:
            return replace(await super().status(), rows=3, held_bytes=4096)

    served = echo()._replace(engine=Leaking())
    with LiveServer(tmp_path, served=served) as server, server.client("") as client:
        engine = client.get("/readyz").json()["engine"]
        assert (engine["running"], engine["rows"], engine["held_bytes"]) == (0, 3, 4096)
        page = client.get("/metrics").text
        assert "hone_decoder_rows 3.0" in page
        assert "hone_held_bytes 4096.0" in page


def test_a_probe_may_ask_for_heads_alone(live: LiveServer) -> None:
    """Load balancers and `curl -I` do."""
    with live.client("") as client:
        for path in ("/healthz", "/readyz", "/", "/web/chat.css"):
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b""), path


def test_a_server_whose_engine_is_away_lives_but_is_not_ready(tmp_path: Path) -> None:
    served = echo()
    with LiveServer(tmp_path, served=served) as server, server.client() as client:
        asyncio.run(served.engine.close())
        away = client.get("/readyz")
        assert away.status_code == 503
        assert away.headers["Retry-After"]
        assert away.json()["error"]["code"] == "not_ready"
        assert away.json()["engine"]["ready"] is False
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/chat/completions", json=ask())
        assert refused.status_code == 503


def test_ids_in_paths_do_not_make_a_series_each(live: LiveServer) -> None:
    with live.client() as client:
        for i in range(3):
            client.get(f"/v1/turns/turn_{i}")
            client.get(f"/nowhere/{i}")
        page = client.get("/metrics").text
    assert 'route="/v1/turns/{turn_id}"' in page
    assert "turn_0" not in page
    assert "/nowhere" not in page
