"""Operator verbs on the record itself, for when no server answers. A server that starts later follows the log.

Rows come out in the API's own shapes, made by the API's own functions; every change leaves its audit row.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy.engine import make_url
from sqlmodel import Session

from server.api import adapters as adapter_rows
from server.api import keys as key_rows
from server.api import segments as segment_rows
from server.cli.installation import Row
from server.settings import Settings
from server.store import adapters, feedback, keys
from server.store.session import open_store
from server.store.tables import Promotion


class Stored:
    """`Installation` by way of the database. Raises SetupError when the schema is not this version's."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_store(settings.resolved_database_url)
        self.where = make_url(settings.resolved_database_url).render_as_string(hide_password=True)
        self._actor = f"cli:{_who()}"

    def close(self) -> None:
        self._store.close()

    def adapters(self, *, segment: str | None, state: str | None) -> list[Row]:
        def work(session: Session) -> list[Row]:
            rows = adapters.list_adapters(session, segment=segment)
            summed = [adapter_rows.summary(session, row) for row in rows]
            return [row for row in summed if state is None or row["state"] == state]

        return self._store.read(work)

    def adapter(self, version: int) -> Row:
        return self._store.read(lambda session: adapter_rows.shown(session, version))

    def segments(self) -> list[Row]:
        return self._store.read(
            lambda session: [segment_rows.shown(session, row) for row in adapters.list_segments(session)]
        )

    def move(self, verb: str, *, segment: str, body: Row) -> Row:
        changes: dict[str, Callable[..., Promotion]] = {
            "promote": adapters.promote,
            "rollback": adapters.rollback,
            "rollforward": adapters.rollforward,
            "pin": adapters.pin,
            "unpin": adapters.unpin,
        }
        change = changes[verb]
        given = {"expecting": None, **body} if verb == "promote" else body

        def work(session: Session) -> Row:
            row = segment_rows.moved(change(session, segment=segment, by=self._actor, **given))
            keys.audit(session, actor=self._actor, action=f"segment.{verb}", target=segment, detail=row)
            return row

        return self._store.write(work)

    def feedback(self, *, limit: int, filters: Row) -> list[Row]:
        rows: list[Row] = []
        cursor: str | None = None
        while len(rows) < limit:
            page, cursor = self._page(filters, cursor=cursor, limit=min(limit - len(rows), 500))
            rows += page
            if cursor is None:
                break
        return rows

    def _page(self, filters: Row, *, cursor: str | None, limit: int) -> tuple[list[Row], str | None]:
        return self._store.read(
            lambda session: feedback.list_feedback(session, filters=filters, cursor=cursor, limit=limit)
        )

    def keys(self) -> list[Row]:
        return self._store.read(
            lambda session: [
                key_rows.shown(row) | {"client": client} for row, client in keys.list_keys(session)
            ]
        )

    def create_key(self, body: Row) -> Row:
        expires = body.get("expires_at")

        def work(session: Session) -> Row:
            row, token = keys.create_client_key(
                session,
                client=body["client"],
                name=body["name"],
                scopes=body["scopes"],
                expires_at=datetime.fromisoformat(expires) if expires else None,
            )
            detail = {"client": body["client"], "scopes": body["scopes"]}
            keys.audit(session, actor=self._actor, action="key.create", target=row.id, detail=detail)
            return key_rows.shown(row) | {"client": body["client"], "token": token}

        return self._store.write(work)

    def revoke_key(self, key_id: str) -> None:
        def work(session: Session) -> Any:
            keys.revoke_key(session, key_id)
            keys.audit(session, actor=self._actor, action="key.revoke", target=key_id, detail={})

        self._store.write(work)


def _who() -> str:
    """The person at this terminal, for the audit; some containers have no name for theirs."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
