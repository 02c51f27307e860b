"""The schema is reached from nothing, matches the tables, and a wrong one is refused with the way to mend it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from server.errors import SetupError
from server.store import migrate
from server.store.session import open_store
from server.store.tables import Table
from tests.server.store.conftest import Talk


def test_an_empty_database_comes_to_head_and_back_and_the_tables_are_those_of_the_code(url: str) -> None:
    assert migrate.is_empty(url)
    migrate.upgrade(url)
    migrate.upgrade(url)
    assert migrate.check(url) == "2026_11_21_first_tables"
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


@pytest.mark.parametrize(
    ("revision", "says"), [("2099_01_01_later", "install the newer version"), (None, "hone db upgrade")]
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
    with pytest.raises(SetupError, match=says):
        open_store(url)
    if revision:
        with pytest.raises(SetupError, match=says):
            migrate.upgrade(url)


def test_no_database_and_no_database_of_ours_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="hone db upgrade"):
        migrate.check(f"sqlite:///{tmp_path / 'none.db'}")
    (tmp_path / "text.db").write_text("certainly not a database, and long enough to be looked at " * 20)
    with pytest.raises(SetupError, match="not a database"):
        migrate.check(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(SetupError, match="cannot be used"):
        migrate.check("nonsense://x")


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
    with pytest.raises(SetupError, match="already"):
        migrate.backup(url, target)
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]
