"""The doctor's look into the record: is it there, is its schema ours, can anybody be told from a stranger.

Apart from `doctor.py` because the record's libraries take a while to load. Reads only.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlmodel import Session

from server.doctor import LOOPBACK, Finding, Level, is_open
from server.errors import HoneError
from server.settings import Settings, hone_command
from server.store import adapters, cycles, migrate
from server.store.leases import LEARNER
from server.store.promotions import DEFAULT

PATIENCE_SECONDS = 2


def check_record(settings: Settings) -> Iterator[Finding]:
    """The database from outside in; the first thing that is wrong ends the look."""
    try:
        url = make_url(settings.resolved_database_url)
        url.get_dialect()
    except ArgumentError:
        yield Finding(
            "database",
            Level.FAIL,
            "HONE_DATABASE_URL is not a database URL",
            "such as sqlite:////var/lib/hone/hone.db or postgresql+psycopg://user:password@host/hone",
        )
        return
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "postgresql" and find_spec("psycopg") is None:
        yield Finding("database", Level.FAIL, "not installed: psycopg", "pip install 'hone-chat[postgres]'")
        return
    if _is_missing_file(url):
        yield Finding("database", Level.OK, f"{shown} is not there yet; `hone serve` makes it")
        yield from _strangers(settings, keys=0)
        return
    engine = _open(url)
    try:
        tables = set(inspect(engine).get_table_names())
        if "alembic_version" not in tables:
            yield _unversioned(shown, tables)
            return
        schema = _schema(settings, shown)
        yield schema
        if schema.level is Level.OK:
            yield from _exposed(url)
            yield from _strangers(settings, keys=_count_keys(engine))
            yield from _lease(engine)
            yield from _training(engine)
    except SQLAlchemyError as error:
        yield _unreachable(url, shown, error)
    finally:
        engine.dispose()


def count_champions(settings: Settings) -> int:
    """Segments with a champion of their own; at least one, also when the record cannot be read."""
    engine = None
    try:
        url = make_url(settings.resolved_database_url)
        if _is_missing_file(url):
            return 1
        engine = _open(url)
        with Session(engine) as session:
            lanes = [adapters.lane(session, segment.name) for segment in adapters.list_segments(session)]
        return max(sum(lane.has_champion for lane in lanes), 1)
    except (ImportError, SQLAlchemyError):
        return 1
    finally:
        if engine is not None:
            engine.dispose()


def _is_missing_file(url: URL) -> bool:
    if url.get_backend_name() != "sqlite" or not url.database:
        return False
    path = Path(url.database)
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _open(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return create_engine(url, connect_args={"timeout": PATIENCE_SECONDS})
    return create_engine(url, connect_args={"connect_timeout": PATIENCE_SECONDS})


def _unreachable(url: URL, shown: str, error: SQLAlchemyError) -> Finding:
    why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    if url.get_backend_name() == "sqlite":
        return Finding(
            "database",
            Level.FAIL,
            f"{shown} cannot be read: {why}",
            "if it is not a database or is damaged, move it away and restore a backup (hone db backup makes them)",
        )
    return Finding(
        "database",
        Level.FAIL,
        f"{shown} cannot be reached: {why}",
        "check that PostgreSQL runs, its address and its password, then HONE_DATABASE_URL",
    )


def _unversioned(shown: str, tables: set[str]) -> Finding:
    if not tables:
        return Finding("database", Level.OK, f"{shown} is empty; `hone serve` fills it")
    return Finding(
        "database",
        Level.FAIL,
        f"{shown} holds tables that are not Hone's",
        "give Hone a database of its own: HONE_DATABASE_URL",
    )


def _schema(settings: Settings, shown: str) -> Finding:
    try:
        revision = migrate.check(settings.resolved_database_url)
    except HoneError as error:
        # The store says itself what mends it.
        says, _, mend = error.message.partition(": ")
        return Finding("database", Level.FAIL, f"{shown}: {says}", mend)
    return Finding("database", Level.OK, f"{shown} is up to date (revision {revision})")


def _exposed(url: URL) -> Iterator[Finding]:
    """Whether others on this machine can read what people said, and the secret that signs their sessions."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    exposed = []
    for path in (url.database, f"{url.database}-wal", f"{url.database}-shm"):
        with suppress(FileNotFoundError):  # the last two come and go with the server
            if is_open(os.stat(path).st_mode):
                exposed.append(path)
    if exposed:
        yield Finding(
            "database",
            Level.FAIL,
            f"{' '.join(exposed)} can be read by others",
            f"chmod 600 {' '.join(exposed)}; a data directory that `hone` makes is closed to them as well",
        )


def _count_keys(engine: Engine) -> int:
    live = text("select count(*) from api_key where revoked_at is null")
    with engine.connect() as connection:
        return int(connection.execute(live).scalar_one())


def _strangers(settings: Settings, *, keys: int) -> Iterator[Finding]:
    """Beyond loopback, somebody must hold a key before the door opens."""
    if settings.host not in LOOPBACK and keys == 0:
        yield Finding(
            "keys",
            Level.FAIL,
            f"{settings.host} is not loopback and there is no key yet, so `hone serve` will refuse to start",
            f"{hone_command('db upgrade', data_dir=settings.data_dir)}, then {settings.first_key_command}",
        )


def _lease(engine: Engine) -> Iterator[Finding]:
    """Whether whoever holds the learner's lease is still alive, as far as this machine can tell."""
    query = text("select holder, expires_at from lease where name = :name")
    with engine.connect() as connection:
        rows = connection.execute(query, {"name": LEARNER}).all()
    for holder, expires_at in rows:
        until = expires_at if isinstance(expires_at, datetime) else datetime.fromisoformat(expires_at)
        left = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        if left <= 0:
            continue
        if _is_dead(holder):
            yield Finding(
                "learner",
                Level.WARN,
                f"its lease is held by {holder}, which has died",
                f"nothing: the next learner takes over within {max(1, round(left))} s",
            )
        else:
            yield Finding("learner", Level.OK, f"at work: {holder}")


def _training(engine: Engine) -> Iterator[Finding]:
    """Why each segment is not being trained, in the sentence that stands everywhere else."""
    with Session(engine) as session:
        for segment in adapters.list_segments(session):
            doing = cycles.training(session, segment.name)
            abandoned = doing.cycle is not None and doing.why_not == cycles.NO_LEARNER
            yield Finding(
                "training" if segment.name == DEFAULT else f"training of {segment.name}",
                Level.WARN if abandoned else Level.OK,
                doing.why_not,
                "hone learn, or hone serve, which starts one beside it" if abandoned else "",
            )


def _is_dead(holder: str) -> bool:
    """`holder` is host:pid:random. Only of this host can it be told."""
    host, _, rest = holder.partition(":")
    pid = rest.partition(":")[0]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
