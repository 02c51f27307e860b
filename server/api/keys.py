"""API keys and the audit, for admins. A secret leaves the server once, in the answer that makes it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlmodel import Session

from server.api import envelope
from server.api.deps import Admin, PartsDep
from server.api.schemas import KeyBody
from server.store import keys
from server.store.tables import ApiKey, AuditEntry

router = APIRouter(tags=["keys"])


@router.post("/v1/keys", status_code=201)
async def create(body: KeyBody, caller: Admin, parts: PartsDep) -> Response:
    """A new key; its token is shown here and never again."""

    def work(session: Session) -> dict[str, Any]:
        row, token = keys.create_client_key(
            session, client=body.client, name=body.name, scopes=body.scopes, expires_at=body.expires_at
        )
        keys.audit(
            session,
            actor=caller.actor,
            action="key.create",
            target=row.id,
            detail={"client": body.client, "scopes": list(body.scopes)},
        )
        return shown(row) | {"client": body.client, "token": token}

    made = await parts.store.write_async(work)
    parts.callers.forget()
    return envelope.answer(made, status=201)


@router.get("/v1/keys")
async def listing(caller: Admin, parts: PartsDep) -> Response:
    """All keys, without their secrets."""
    rows = await parts.store.read_async(
        lambda session: [shown(row) | {"client": client} for row, client in keys.list_keys(session)]
    )
    return envelope.answer({"data": rows, "next_cursor": None})


@router.delete("/v1/keys/{key_id}")
async def revoke(key_id: str, caller: Admin, parts: PartsDep) -> Response:
    """End a key and its sessions: here at once, at other replicas within two seconds."""

    def work(session: Session) -> dict[str, Any]:
        row = keys.revoke_key(session, key_id)
        keys.audit(session, actor=caller.actor, action="key.revoke", target=key_id, detail={})
        return shown(row)

    revoked = await parts.store.write_async(work)
    parts.callers.forget()
    return envelope.answer(revoked)


@router.get("/v1/audit")
async def audit(
    caller: Admin,
    parts: PartsDep,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """What operators did, newest first."""
    rows, next_cursor = await parts.store.read_async(
        lambda session: _audit_page(session, cursor=cursor, limit=limit)
    )
    return envelope.answer({"data": rows, "next_cursor": next_cursor})


def _audit_page(
    session: Session, *, cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    rows, next_cursor = keys.list_audit(session, cursor=cursor, limit=limit)
    return [_entry(row) for row in rows], next_cursor


def _entry(row: AuditEntry) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": row.at.isoformat(),
        "actor": row.actor,
        "action": row.action,
        "target": row.target,
        "detail": row.detail,
    }


def shown(row: ApiKey) -> dict[str, Any]:
    """A key as it may be shown."""
    return {
        "id": row.id,
        "client_id": row.client_id,
        "name": row.name,
        "scopes": row.scopes,
        "created_at": row.created_at.isoformat(),
        "expires_at": row.expires_at.isoformat() if row.expires_at else None,
        "revoked_at": row.revoked_at.isoformat() if row.revoked_at else None,
    }
