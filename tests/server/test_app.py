"""A server as a whole: its first start, its settings, its end."""

import stat
import threading
from pathlib import Path

import httpx
import pytest
from sqlmodel import func, select

from server.app import first_admin_key
from server.engine import Served
from server.engine.base import BaseIdentity
from server.engine.echo import EchoEngine, echo_renderer
from server.errors import SetupError
from server.settings import Settings
from server.store import migrate
from server.store.session import open_store
from server.store.tables import Conversation, Reply, Turn
from tests.server.live import LiveServer, ask, events, wait_until


def echo(delay: float = 0.0, **more: int) -> Served:
    renderer = echo_renderer()
    engine = EchoEngine(delay=delay, **more)
    return Served(engine, renderer, BaseIdentity("echo", "echo", renderer.template_hash))


def test_the_first_start_makes_one_admin_key_and_the_next_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveServer(tmp_path) as first:
        key = first.admin_key
        assert stat.S_IMODE(first.settings.admin_key_path.stat().st_mode) == 0o600
        with first.client() as client:
            assert client.get("/v1/keys").status_code == 200
    assert capsys.readouterr().out.count(key) == 1
    with LiveServer(tmp_path) as second:
        assert second.admin_key == key
    assert key not in capsys.readouterr().out


def test_an_old_key_file_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("old")
    (tmp_path / "admin.key").chmod(0o644)
    with LiveServer(tmp_path) as server:
        assert server.admin_key.startswith("hone_sk_")
        assert stat.S_IMODE(server.settings.admin_key_path.stat().st_mode) == 0o600


def test_listening_to_the_world_without_a_key_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, host="0.0.0.0", engine="echo")
    migrate.upgrade(settings.resolved_database_url)
    store = open_store(settings.resolved_database_url)
    with pytest.raises(SetupError, match="hone keys create"):
        first_admin_key(store, settings)
    assert first_admin_key(store, Settings(data_dir=tmp_path)) is not None
    assert first_admin_key(store, settings) is None
    store.close()


def test_a_server_that_listens_to_the_world_gives_no_local_session(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as server, server.client("") as client:
        token = client.post("/v1/sessions/local").json()["token"]
    with LiveServer(tmp_path, host="0.0.0.0") as server:
        with server.client("") as client:
            assert client.post("/v1/sessions/local").status_code == 403
        with server.client(token) as client:
            assert client.get("/v1/models").status_code == 401


def test_a_caller_that_knocks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with LiveServer(tmp_path, key_rate=1, session_rate=1) as server, server.client() as client:
        answers = [client.get("/v1/models") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert answers[-1].json()["error"]["code"] == "rate_limited"


def test_pages_of_named_origins_may_call_the_api(tmp_path: Path) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    with LiveServer(tmp_path, cors_origins="https://shop.example") as server, server.client("") as client:
        ours = client.options("/v1/chat/completions", headers=asked | {"Origin": "https://shop.example"})
        other = client.options("/v1/chat/completions", headers=asked | {"Origin": "https://evil.example"})
    assert ours.headers["access-control-allow-origin"] == "https://shop.example"
    assert "access-control-allow-origin" not in other.headers


def test_replies_cut_off_by_a_crash_are_interrupted_after_the_next_start(tmp_path: Path) -> None:
    """A crash is told from a stop by what it leaves: rows that still say `streaming`."""
    with LiveServer(tmp_path) as server, server.client() as client:
        turn_id = client.post("/v1/chat/completions", json=ask()).json()["hone"]["turn_id"]

        def crash(session):  # type: ignore[no-untyped-def]
            from sqlalchemy import update

            from server.store.tables import Reply

            session.execute(update(Reply).values(state="streaming", finish_reason=None))

        server.store.write(crash)
    with LiveServer(tmp_path) as server, server.client() as client:
        (reply,) = client.get(f"/v1/turns/{turn_id}").json()["replies"]
    assert reply["state"] == "interrupted"


def test_a_stop_keeps_what_was_written_and_ends_the_stream_honestly(tmp_path: Path) -> None:
    """Ten seconds of reply, a server that is told to stop: the partial is in the record, marked."""
    lines: list[str] = []
    with LiveServer(tmp_path, served=echo(delay=0.5), grace_seconds=0.2) as server:

        def listen() -> None:
            with (
                server.client() as client,
                client.stream(
                    "POST", "/v1/chat/completions", json=ask("a b c d e f", stream=True)
                ) as response,
            ):
                try:
                    lines.extend(events(response))
                except httpx.HTTPError:
                    lines.append("cut")

        listener = threading.Thread(target=listen)
        listener.start()
        wait_until(lambda: "hone_running_replies 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.stop()
        listener.join(10)

        def states(session):  # type: ignore[no-untyped-def]
            from sqlmodel import select

            from server.store.tables import Reply

            return [(reply.state, reply.finish_reason) for reply in session.exec(select(Reply))]

        assert server.store.read(states) == [("cancelled", "cancelled")]


def test_a_full_engine_is_429_streamed_or_not(tmp_path: Path) -> None:
    with LiveServer(tmp_path, served=echo(max_open=0)) as server, server.client() as client:
        for stream in (False, True):
            refused = client.post("/v1/chat/completions", json=ask(stream=stream))
            assert refused.status_code == 429
            assert refused.headers["Retry-After"]
            assert refused.json()["error"]["code"] == "engine_busy"


def test_a_storm_that_a_full_engine_refuses_leaves_nothing_in_the_record(tmp_path: Path) -> None:
    """Forty at once at a house of two places: each was written down first, and only then sent away."""
    statuses: list[int] = []
    with LiveServer(tmp_path, served=echo(delay=0.05, max_open=2)) as server, server.client() as client:

        def talk() -> None:
            statuses.append(client.post("/v1/chat/completions", json=ask("a b c")).status_code)

        threads = [threading.Thread(target=talk) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = server.store.read(
            lambda session: [
                session.exec(select(func.count()).select_from(table)).one()
                for table in (Turn, Reply, Conversation)
            ]
        )
        assert counts == [statuses.count(200)] * 3
        assert set(statuses) == {200, 429}
        assert client.post("/v1/chat/completions", json=ask()).status_code == 200
