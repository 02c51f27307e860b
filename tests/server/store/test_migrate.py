"""The schema is reached from nothing, matches the tables, and a wrong one is refused with the way to mend it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select, text

from server.errors import SetupError
from server.store import migrate
from server.store.session import Store, open_store
from server.store.tables import EndUser, Table, Voter
from tests.running import ROOT
from tests.server.store.conftest import Talk

DIES = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from server.store import migrate
left = int(sys.argv[2])
@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    global left
    left -= statement.lstrip().upper().startswith(("CREATE", "INSERT", "UPDATE"))
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
migrate.upgrade(sys.argv[1])
"""
WAITS = """
import sys
from server.store import migrate
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(sys.argv[1])
"""


def test_an_empty_database_comes_to_head_and_back_and_the_tables_are_those_of_the_code(url: str) -> None:
    assert migrate.is_empty(url)
    migrate.upgrade(url)
    migrate.upgrade(url)
    assert migrate.check(url) == "2026_11_22_voters"
    engine = create_engine(url)
    with engine.connect() as connection:
        assert (
            compare_metadata(
                MigrationContext.configure(connection, opts={"compare_type": True}), Table.metadata
            )
            == []
        )
        connection.rollback()
        command.downgrade(migrate.config(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()
    migrate.upgrade(url)
    migrate.check(url)


def test_voters_of_before_are_numbered_in_the_order_of_their_first_votes(store: Store, talk: Talk) -> None:
    replies = {name: talk.turn(name).reply_ids[0] for name in ("cy", "bo", "ada", "lurker", None)}
    for name in ("bo", "ada", "bo", None, "cy"):
        talk.vote(replies[name], "up")

    def numbers() -> dict[str, int]:
        query = select(EndUser.name, Voter.number).join(Voter)
        return store.read(lambda s: dict(s.execute(query).all()))

    before = numbers()
    assert before == {"bo": 0, "ada": 1, "cy": 2}
    engine = create_engine(store.url)
    with engine.begin() as connection:
        command.downgrade(migrate.config(connection), "2026_11_21_first_tables")
    engine.dispose()
    migrate.upgrade(store.url)
    assert numbers() == before


@pytest.mark.parametrize("statements", [1, 2, 8, 30])
def test_an_upgrade_that_was_killed_leaves_nothing_half_done(url: str, statements: int) -> None:
    """SQLite's driver let each statement commit alone: the tables of a killed upgrade stood in the next one's way."""
    command_line = [sys.executable, "-c", DIES, url, str(statements)]
    died = subprocess.run(command_line, cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert migrate.is_empty(url)
    migrate.upgrade(url)
    migrate.check(url)


def test_of_several_upgrades_at_once_each_finds_the_schema_it_wants(url: str) -> None:
    """Each read the revision before it had the database to itself, and three of four met tables of the first."""
    upgrades = [
        subprocess.Popen(
            [sys.executable, "-c", WAITS, url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for one in upgrades:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in upgrades:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    said = [one.communicate(timeout=60)[1] for one in upgrades]
    assert [one.returncode for one in upgrades] == [0, 0, 0, 0], said
    migrate.check(url)


@pytest.mark.parametrize(
    ("revision", "says"), [("2099_01_01_later", "install the newer version"), (None, "not Hone's")]
)
def test_a_database_of_another_version_is_refused_with_what_mends_it(
    url: str, revision: str | None, says: str
) -> None:
    migrate.upgrade(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("delete from alembic_version"))
        if revision:
            connection.execute(text("insert into alembic_version values (:r)"), {"r": revision})
    engine.dispose()
    for refuses in (open_store, migrate.upgrade):
        with pytest.raises(SetupError, match=says):
            refuses(url)


def test_no_database_and_no_database_of_ours_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="hone db upgrade"):
        migrate.check(f"sqlite:///{tmp_path / 'none.db'}")
    (tmp_path / "text.db").write_text("certainly not a database, and long enough to be looked at " * 20)
    with pytest.raises(SetupError, match="not a database"):
        migrate.check(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(SetupError, match="cannot be used"):
        migrate.check("nonsense://x")
    for refuses in (migrate.check, migrate.upgrade, migrate.is_empty):
        with pytest.raises(SetupError, match="cannot be used"):
            refuses("no address")
        with pytest.raises(SetupError, match="needs a file"):
            refuses("sqlite://")
    with pytest.raises(SetupError, match="cannot make"):
        migrate.upgrade(f"sqlite:///{tmp_path / 'nowhere' / 'hone.db'}")


def test_a_backup_holds_the_record_and_never_overwrites(talk: Talk, url: str, tmp_path: Path) -> None:
    talk.vote(talk.turn().comparison_id)
    target = tmp_path / "copy"
    migrate.backup(url, target)
    if url.startswith("sqlite"):
        with sqlite3.connect(target) as copy:
            assert copy.execute("select count(*) from feedback_event").fetchone() == (1,)
        copy.close()
    else:
        assert target.read_bytes().startswith(b"PGDMP")
    assert target.stat().st_mode & 0o077 == 0
    with pytest.raises(SetupError, match="already"):
        migrate.backup(url, target)
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]
