"""Lists that go on: newest first, by moment and id, with a cursor that survives new rows. Knows no noun."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlmodel import Session

from server.errors import Invalid

Row = TypeVar("Row")


def page(
    session: Session, query: Select[Any], *, at: Any, key: Any, cursor: str | None, limit: int
) -> tuple[list[Any], str | None]:
    """One page of `query`'s rows, newest `at` first, and the cursor of the next. Raises Invalid for a bad cursor."""
    if cursor is not None:
        query = query.where(tuple_(at, key) < tuple_(*_parse(cursor)))
    rows = list(session.scalars(query.order_by(at.desc(), key.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    # Z and not +00:00: in an address that was not encoded, a plus means a blank.
    moment = getattr(last, at.key).astimezone(UTC).replace(tzinfo=None)
    return rows[:limit], f"{moment.isoformat()}Z~{getattr(last, key.key)}"


def _parse(cursor: str) -> tuple[datetime, str]:
    moment, _, key = cursor.partition("~")
    try:
        at = datetime.fromisoformat(moment)
        at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Invalid("this cursor is not one of ours", param="cursor") from error
    if not key or at.tzinfo is None:
        raise Invalid("this cursor is not one of ours", param="cursor")
    return at, key
