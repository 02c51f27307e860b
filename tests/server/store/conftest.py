"""Both databases for the store's tests: a file of SQLite, and a throw-away PostgreSQL cluster."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.store import adapters, conversations, feedback, keys, migrate
from server.store.session import Store, open_store

BOTH = [
    pytest.param("sqlite", id="sqlite"),
    pytest.param("postgresql", id="postgresql", marks=pytest.mark.full),
]


def _binaries() -> Path | None:
    """Where PostgreSQL's programs are, newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).parent if on_path else None


def _as_other(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        if os.getuid() == 0
        else command
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A running PostgreSQL of our own, on a free port of loopback; the URL of its server, without a database."""
    binaries = _binaries()
    if binaries is None:
        if os.environ.get("HONE_REQUIRE_PARTS") == "1":
            pytest.fail("PostgreSQL is not installed, and HONE_REQUIRE_PARTS=1 asks for it")
        pytest.skip("PostgreSQL is not installed")
    home = Path(tempfile.mkdtemp(prefix="hone-postgres-"))
    try:
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(home, user.pw_uid, user.pw_gid)
        data = home / "data"
        initdb = [
            f"{binaries}/initdb",
            "-D",
            str(data),
            "-U",
            "hone",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(_as_other(initdb), check=True, capture_output=True, cwd=home)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = f"-p {port} -h 127.0.0.1 -k {home}"
        control = [f"{binaries}/pg_ctl", "-D", str(data), "-w"]
        subprocess.run(
            _as_other([*control, "-l", str(home / "log"), "-o", options, "start"]),
            check=True,
            cwd=home,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield f"postgresql+psycopg://hone@127.0.0.1:{port}"
        finally:
            subprocess.run(
                _as_other([*control, "-m", "immediate", "stop"]), check=True, cwd=home, capture_output=True
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)


_made = iter(range(10**6))


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'hone.db'}"
        return
    import psycopg

    server = request.getfixturevalue("cluster")
    name = f"hone{next(_made)}"
    with psycopg.connect(server.replace("+psycopg", "") + "/postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield f"{server}/{name}"
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A record with its tables, of either kind."""
    migrate.upgrade(url)
    opened = open_store(url)
    yield opened
    opened.close()


@dataclass
class Talk:
    """Somebody's client, and turns to vote on."""

    store: Store
    client_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.client_id = self.store.write(lambda s: keys.ensure_client(s, "web").id)

    def turn(
        self,
        user: str | None = "ada",
        *,
        pair: bool = True,
        train: bool = True,
        segment: str = "default",
        purpose: str | None = None,
        template_hash: str = "t",
        state: str = "done",
        conversation_id: str | None = None,
        client_id: str | None = None,
    ) -> conversations.OpenedTurn:
        def work(session: Any) -> conversations.OpenedTurn:
            adapters.ensure_segment(session, segment)
            why = purpose or ("pair" if pair else "single")
            opened = conversations.open_turn(
                session,
                client_id=client_id or self.client_id,
                user=user,
                segment=segment,
                conversation_id=conversation_id,
                messages=[{"role": "user", "content": "hi 🙂"}],
                prompt_token_ids=[1, 2],
                template_hash=template_hash,
                truncated=False,
                train=train,
                replies=[conversations.PlannedReply(0, 7 + i, {}, why) for i in range(1 + pair)],
                pairing="uniform" if pair else None,
            )
            for i, reply_id in enumerate(opened.reply_ids if state != "streaming" else ()):
                conversations.finish_reply(
                    session, reply_id=reply_id, text=f"{i}", token_ids=[i], logprobs=[-1.0],
                    state=state, finish_reason="stop"
                )  # fmt: skip
            return opened

        return self.store.write(work)

    def vote(
        self,
        target: str | None,
        value: str = "first",
        *,
        user_id: str | None = None,
        client_id: str | None = None,
    ) -> feedback.Receipt:
        kind, target_kind = ("pick", "comparison") if value in feedback.PICKS else ("thumb", "reply")
        body = feedback.NewFeedback(kind, target_kind, target or "", value=value)
        client = client_id or self.client_id
        return self.store.write(lambda s: feedback.append(s, client_id=client, user_id=user_id, body=body))

    def retract(self, feedback_id: str) -> feedback.Receipt:
        return self.store.write(
            lambda s: feedback.retract(s, client_id=self.client_id, user_id=None, feedback_id=feedback_id)
        )

    def receipt(self, vote: feedback.Receipt) -> feedback.Receipt:
        return self.store.read(
            lambda s: feedback.receipt(s, client_id=self.client_id, user_id=None, feedback_id=vote.id)
        )

    def live(self, **asked: Any) -> list[feedback.LiveVote]:
        return self.store.read(lambda s: list(feedback.live_votes(s, segment="default", **asked)))


@pytest.fixture
def talk(store: Store) -> Talk:
    return Talk(store)
