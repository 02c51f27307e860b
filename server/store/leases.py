"""Who may work: one row per lease, by the database's clock, fenced by an epoch that grows with each holder.

A holder that slept past its lease fails `assert_epoch` in the very transaction it tries, even if nobody else came.
Learners that only look hold nothing: a row beside it says that one is there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlmodel import Session, select

from server.errors import Conflict
from server.store.tables import Lease

LEARNER = "learner"
WATCHING = "watching"
"""That some learner looks at the record now and then. Fences nothing, and several may write it."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
JULIAN_EPOCH = 2440587.5
"""1970-01-01 as a Julian day."""


def database_now(session: Session) -> datetime:
    """Now in UTC by the database's own clock, also within a long transaction."""
    if session.get_bind().dialect.name == "sqlite":
        days = session.connection().execute(text("SELECT julianday('now')")).scalar_one()
        return EPOCH + timedelta(days=days - JULIAN_EPOCH)
    moment: datetime = session.connection().execute(text("SELECT clock_timestamp()")).scalar_one()
    return moment.astimezone(UTC)


def acquire_lease(session: Session, *, name: str, holder: str, seconds: float = 30) -> int | None:
    """The new epoch, or None while somebody else's lease runs."""
    row = _row(session, name)
    at = database_now(session)
    if row is not None and at < row.expires_at and not _is_from_the_future(row, at):
        return None
    if row is None:
        row = Lease(name=name, holder=holder, epoch=0, heartbeat_at=at, expires_at=at)
    row.holder = holder
    row.epoch += 1
    row.heartbeat_at = at
    row.expires_at = at + timedelta(seconds=seconds)
    session.add(row)
    session.flush()
    return row.epoch


def _is_from_the_future(row: Lease, at: datetime) -> bool:
    """Whether it runs for longer than any holder could have taken it for: the clock was set back since, and nobody
    should wait until it gets there again. A holder that lives renews it by the new clock within a heartbeat."""
    return row.expires_at - at > 2 * (row.expires_at - row.heartbeat_at)


def renew_lease(session: Session, *, name: str, epoch: int, seconds: float = 30) -> bool:
    """Prolong it; False when it ran out or is somebody else's."""
    row = _row(session, name)
    at = database_now(session)
    if row is None or row.epoch != epoch or row.expires_at <= at:
        return False
    row.heartbeat_at = at
    row.expires_at = at + timedelta(seconds=seconds)
    session.add(row)
    session.flush()
    return True


def release_lease(session: Session, *, name: str, epoch: int) -> None:
    """Let others work at once; somebody else's lease stays."""
    row = _row(session, name)
    if row is not None and row.epoch == epoch:
        row.expires_at = database_now(session)
        session.add(row)
        session.flush()


def assert_epoch(session: Session, *, name: str, epoch: int) -> None:
    """Raises Conflict (`lease_lost`) unless this epoch holds the lease until this transaction ends."""
    row = _row(session, name)
    if row is None or row.epoch != epoch:
        raise Conflict("Another learner holds the lease.", code="lease_lost")
    if row.expires_at <= database_now(session):
        raise Conflict("The lease ran out: this learner was stopped or cut off.", code="lease_lost")


def show_up(session: Session, *, holder: str, seconds: float) -> None:
    """Let others know for `seconds` that a learner looks after this record."""
    at = database_now(session)
    row = _row(session, WATCHING) or Lease(
        name=WATCHING, holder=holder, epoch=0, heartbeat_at=at, expires_at=at
    )
    row.holder = holder
    row.heartbeat_at = at
    row.expires_at = at + timedelta(seconds=seconds)
    session.add(row)
    session.flush()


def seconds_left(session: Session, name: str) -> float:
    """How long whoever holds it is still believed to live; 0 when nobody is."""
    row = session.get(Lease, name)
    if row is None:
        return 0.0
    at = database_now(session)
    return 0.0 if _is_from_the_future(row, at) else max(0.0, (row.expires_at - at).total_seconds())


def _row(session: Session, name: str) -> Lease | None:
    """The lease, locked so that nobody takes it before this transaction ends (SQLite locks all writers anyway)."""
    query = (
        select(Lease).where(Lease.name == name).with_for_update().execution_options(populate_existing=True)
    )
    return session.exec(query).first()
