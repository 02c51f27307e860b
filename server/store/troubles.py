"""What the drivers raise, in the house's words: full, away, or a race that somebody else won. Knows no transaction."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError

from server.errors import Unavailable

log = logging.getLogger(__name__)
LOST_RACES = {"40001", "40P01"}
"""PostgreSQL: serialization failure, deadlock."""


def lost_race(error: BaseException | None) -> bool:
    """Whether the database undid it only because of somebody else."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in LOST_RACES


def is_locked(error: DBAPIError) -> bool:
    return isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)


def is_full(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        return "disk is full" in str(error.orig)
    return getattr(error.orig, "sqlstate", None) == "53100"


def translate(error: DBAPIError) -> Exception:
    """What a caller can do about it; a mistake of our own stays what it is."""
    if isinstance(error, IntegrityError):
        return error
    if is_full(error):
        return Unavailable("The disk is full: nothing was stored.", code="storage_full", retry_after=30)
    name = type(error.orig).__name__
    if error.connection_invalidated or name in {"OperationalError", "InterfaceError"} or lost_race(error):
        log.warning("the database is away: %s", error.orig)
        return Unavailable("The database cannot be reached.", code="database_unavailable", retry_after=2)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state.startswith(("08", "53", "57")):
        log.warning("the database is away: %s", error.orig)
        return Unavailable("The database cannot be used now.", code="database_unavailable", retry_after=2)
    return error


@contextmanager
def plain_errors(*, keep: Callable[[DBAPIError], bool] = lambda error: False) -> Iterator[None]:
    """Errors of the database in the house's words."""
    try:
        yield
    except DBAPIError as error:
        translated = error if keep(error) else translate(error)
        if translated is error:
            raise
        raise translated from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Unavailable("The disk is full.", code="storage_full", retry_after=30) from error
