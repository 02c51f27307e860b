"""The schema's own history: bring a database to this version's, say whether it is there, copy it.

Drives alembic, whose revisions lie in `migrations/`. Knows tables only as a whole.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from server.errors import SetupError, Unavailable
from server.settings import DATA_DIR, hone_command

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30
"""How long SQLite waits while another process upgrades or writes."""
UPGRADE_LOCK = 0x486F6E65
"""PostgreSQL's advisory lock that upgrades take in turn."""


def upgrade(url: str) -> None:
    """Create the database's tables, or bring them to this version; all of it or nothing. Waits for another upgrade.

    Raises SetupError, Unavailable.
    """
    file = _file(url)
    if file is not None and not file.exists():
        try:
            _make_private(file)
        except OSError as error:
            raise SetupError(f"cannot make {file}: {error.strerror}") from error
    with _connected(url, begin="BEGIN IMMEDIATE") as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
        revision = _revision(connection)
        if revision is not None and not _knows(revision):
            raise _too_new()
        if revision is None and _tables(connection):
            raise _not_ours()
        command.upgrade(config(connection), "head")


def check(url: str) -> str:
    """The schema's revision. Raises SetupError, with the command that mends it, when it is not this version's."""
    if _is_missing(url):
        raise SetupError(f"there is no database yet: {_mend(url)}")
    with _connected(url) as connection:
        revision = _revision(connection)
        tables = _tables(connection)
    if revision is None and tables:
        raise _not_ours()
    if revision is None:
        raise SetupError(f"this database is empty: {_mend(url)}")
    if not _knows(revision):
        raise _too_new()
    if revision != _head():
        raise SetupError(f"this database is older than this Hone: {_mend(url)}")
    return revision


def is_empty(url: str) -> bool:
    """Whether there is nothing yet: no file, or no table."""
    if _is_missing(url):
        return True
    with _connected(url) as connection:
        return not _tables(connection)


def backup(url: str, target: Path) -> None:
    """Copy the database to a new file of its owner's alone, as it is at one moment, beside a running server.

    Whole or not at all.
    """
    if target.exists():
        raise SetupError(f"{target} is there already: name a new file")
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        _make_private(part)
        if make_url(url).get_backend_name() == "sqlite":
            _copy_sqlite(url, part)
        else:
            _dump_postgres(url, part)
        _sync(part)
        part.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise SetupError(f"cannot write {target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def config(connection: Connection) -> Config:
    """Alembic's settings for a connection; there is no ini file."""
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


# --- looking -----------------------------------------------------------------------------------------------


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(MIGRATIONS))


def _head() -> str:
    head = _scripts().get_current_head()
    assert head is not None, "the migrations are missing"
    return head


def _knows(revision: str) -> bool:
    return revision in {script.revision for script in _scripts().walk_revisions()}


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _tables(connection: Connection) -> set[str]:
    """All but alembic's own, which a downgrade to nothing leaves behind."""
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def _not_ours() -> SetupError:
    return SetupError(
        "this database holds tables that are not Hone's: give another one with HONE_DATABASE_URL"
    )


def _mend(url: str) -> str:
    """The upgrade of this very database; one that HONE_DATABASE_URL names is found by that again."""
    file = _file(url)
    data_dir = file.parent if file is not None and file.name == "hone.db" else DATA_DIR
    return hone_command("db upgrade", data_dir=data_dir)


def _too_new() -> SetupError:
    return SetupError("this database is newer than this Hone: install the newer version")


def _is_missing(url: str) -> bool:
    file = _file(url)
    return file is not None and not file.exists()


def _file(url: str) -> Path | None:
    """SQLite's file; None for a server. Raises SetupError."""
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise SetupError(f"this database URL cannot be used: {error}") from error
    if address.get_backend_name() != "sqlite":
        return None
    if address.database in (None, "", ":memory:"):
        raise SetupError("SQLite needs a file here: sqlite:////path/to/hone.db")
    return Path(address.database)


def _make_private(path: Path) -> None:
    """An empty file for its owner alone, to be filled; what SQLite lays beside it takes over its mode."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


@contextmanager
def _connected(url: str, *, begin: str = "BEGIN") -> Iterator[Connection]:
    """One connection of its own, whose transactions start with `begin` on SQLite.

    Raises SetupError or Unavailable instead of the driver's errors.
    """
    try:
        engine = create_engine(url)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise SetupError(f"this database URL cannot be used: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _by_hand)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        if "not a database" in str(error.orig):
            raise SetupError(f"{make_url(url).database} is not a database of Hone's") from error
        raise Unavailable(
            f"the database cannot be used: {error.orig}", code="database_unavailable", retry_after=2
        ) from error
    finally:
        engine.dispose()


def _by_hand(connection: Any, record: Any) -> None:
    """Left to itself, SQLite's driver begins no transaction before DDL: each statement would commit alone."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}").close()


# --- copying -----------------------------------------------------------------------------------------------


def _copy_sqlite(url: str, target: Path) -> None:
    if _is_missing(url):
        raise SetupError(f"there is no database yet: {_mend(url)}")
    try:
        with (
            closing(sqlite3.connect(str(make_url(url).database))) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
    except sqlite3.Error as error:
        raise SetupError(f"the copy failed: {error}") from error


def _dump_postgres(url: str, target: Path) -> None:
    """PostgreSQL's own tool makes the copy; without it, the message says the command for a machine that has it."""
    address = make_url(url).set(drivername="postgresql")
    plain = address.set(password=None).render_as_string()
    if shutil.which("pg_dump") is None:
        raise SetupError(
            f"pg_dump is not installed here; where it is: pg_dump --format=custom --file={target} {plain}"
        )
    # The password travels in a file that only we can read: arguments can be seen by every user of the machine.
    with tempfile.NamedTemporaryFile("w", prefix="hone-pgpass-") as passfile:
        passfile.write(
            f"*:*:*:*:{(address.password or '').replace(chr(92), chr(92) * 2).replace(':', chr(92) + ':')}\n"
        )
        passfile.flush()
        source = address.set(password=None).update_query_dict({"passfile": passfile.name}).render_as_string()
        asked = ["pg_dump", "--format=custom", f"--file={target}", f"--dbname={source}"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SetupError(f"pg_dump failed: {done.stderr.strip()}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
