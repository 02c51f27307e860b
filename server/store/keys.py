"""Clients, their API keys, the secrets that sign sessions, and the audit.

A key's secret is shown once and kept as SHA-256. Who may do what with a scope is decided by the API, not here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from server.errors import NotFound
from server.store.ids import new_id, now
from server.store.paging import page
from server.store.tables import ApiKey, AuditEntry, Client, SessionSecret

TOKEN_PREFIX = "hone_sk_"  # noqa: S105 the mark of a token, not a secret
TOKEN = re.compile(r"hone_sk_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")
LIVING_SECRETS = 2
"""The one that signs, and the one before it, whose tokens live on until they expire."""


def ensure_client(session: Session, name: str) -> Client:
    """The client of this name, made when new."""
    client = session.exec(select(Client).where(Client.name == name)).first()
    if client is None:
        client = Client(id=new_id("client"), name=name, created_at=now())
        session.add(client)
        session.flush()
    return client


def create_client_key(
    session: Session,
    *,
    client: str,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key of the client called `client` (made when new), and its token: the only time it is seen."""
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id("key"),
        client_id=ensure_client(session, client).id,
        name=name,
        secret_hash=_digest(secret),
        scopes=sorted(set(scopes)),
        created_at=now(),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, f"{TOKEN_PREFIX}{key.id.removeprefix('key_')}_{secret}"


def parse_token(token: str) -> tuple[str, str] | None:
    """A token as (key id, secret); None when it is not one of ours by its looks."""
    found = TOKEN.fullmatch(token)
    return (f"key_{found[1]}", found[2]) if found else None


def verify(token: str, key: ApiKey) -> bool:
    """Whether `token` is this key's, in constant time. Says nothing of expiry or revocation."""
    parsed = parse_token(token)
    return (
        parsed is not None
        and parsed[0] == key.id
        and hmac.compare_digest(_digest(parsed[1]), key.secret_hash)
    )


def find_key(session: Session, key_id: str) -> ApiKey | None:
    return session.get(ApiKey, key_id)


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """End a key; one that has ended stays as it is. Raises NotFound (`unknown_key`)."""
    key = find_key(session, key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id!r}.", code="unknown_key")
    if key.revoked_at is None:
        key.revoked_at = now()
        session.add(key)
        session.flush()
    return key


def list_keys(session: Session) -> list[tuple[ApiKey, str]]:
    """All keys with their clients' names, newest first."""
    query = (
        select(ApiKey, Client.name)
        .join(Client, col(Client.id) == ApiKey.client_id)
        .order_by(col(ApiKey.created_at).desc(), col(ApiKey.id).desc())
    )
    return [(key, client) for key, client in session.exec(query)]


def session_secrets(session: Session) -> list[SessionSecret]:
    """The living secrets, newest first. In a writing session the first one is made when there is none."""
    query = select(SessionSecret).where(col(SessionSecret.retired_at).is_(None))
    living = list(session.exec(query.order_by(col(SessionSecret.created_at).desc(), SessionSecret.kid)))
    if living or _reads_only(session):
        return living
    return [_new_secret(session)]


def rotate_session_secret(session: Session) -> SessionSecret:
    """A new signing secret; the one before lives on beside it, older ones end with their sessions."""
    for old in session_secrets(session)[LIVING_SECRETS - 1 :]:
        old.retired_at = now()
        session.add(old)
    return _new_secret(session)


def audit(session: Session, *, actor: str, action: str, target: str, detail: dict[str, Any]) -> AuditEntry:
    """Leave a line about what an operator did, in the same transaction as the deed."""
    entry = AuditEntry(id=new_id("aud"), at=now(), actor=actor, action=action, target=target, detail=detail)
    session.add(entry)
    session.flush()
    return entry


def list_audit(
    session: Session, *, cursor: str | None = None, limit: int = 100
) -> tuple[list[AuditEntry], str | None]:
    """Newest first, and the cursor of the next page."""
    return page(session, select(AuditEntry), at=AuditEntry.at, key=AuditEntry.id, cursor=cursor, limit=limit)


def _new_secret(session: Session) -> SessionSecret:
    secret = SessionSecret(kid=secrets.token_hex(8), secret=secrets.token_urlsafe(32), created_at=now())
    session.add(secret)
    session.flush()
    return secret


def _reads_only(session: Session) -> bool:
    options = session.connection().get_execution_options()
    return bool(options.get("hone_readonly"))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
