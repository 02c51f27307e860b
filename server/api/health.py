"""Whether this server lives, whether it can answer, and its numbers. Open to anybody who can reach the port."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlmodel import Session, select

from server.api import document, envelope
from server.api.deps import Parts, PartsDep
from server.errors import HoneError
from server.store.tables import Counter

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", openapi_extra=document.NO_TOKEN)
async def alive() -> Response:
    """The process is there and its event loop turns."""
    return envelope.answer({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", openapi_extra=document.NO_TOKEN)
async def ready(parts: PartsDep) -> Response:
    """Whether it can answer now. A champion that could not be loaded degrades it; it still answers.

    Not ready from the moment that it was asked to end: whoever shares out requests turns to others.
    """
    database = await _database(parts)
    engine = await parts.engine.status()
    segments = [
        {
            "segment": post.wanted.segment,
            "champion": post.wanted.version,
            "serving": post.version,
            "trouble": post.trouble or None,
        }
        for post in parts.serving.posts()
    ]
    state = _state(parts, is_well=database == "ok" and engine.ready)
    report: dict[str, Any] = {
        "status": state,
        "database": database,
        "engine": {
            "name": engine.name,
            "ready": engine.ready,
            "detail": engine.detail,
            "running": engine.running,
            "waiting": engine.waiting,
            "rows": engine.rows,
            "held_bytes": engine.held_bytes,
        },
        "follower": parts.serving.trouble or "ok",
        "segments": segments,
    }
    if state in ("ready", "degraded"):
        return envelope.answer(report)
    why = "This server is stopping." if state == "stopping" else "This server cannot answer now."
    code = envelope.STOPPING if state == "stopping" else "not_ready"
    away = envelope.body(why, kind="server_error", code=code)
    return envelope.answer(away | report, status=503, headers={"Retry-After": "2"})


def _state(parts: Parts, *, is_well: bool) -> str:
    if parts.chat.stopping:
        return "stopping"
    if not is_well:
        return "unavailable"
    in_trouble = parts.serving.trouble or any(post.trouble for post in parts.serving.posts())
    return "degraded" if in_trouble else "ready"


async def _database(parts: PartsDep) -> str:
    def work(session: Session) -> None:
        session.exec(select(Counter).limit(1)).first()

    try:
        await parts.store.read_async(work)
    except HoneError as error:
        return error.message
    return "ok"


@router.get("/metrics", openapi_extra=document.NO_TOKEN)
async def metrics(parts: PartsDep) -> Response:
    """Prometheus' page."""
    status = await parts.engine.status()
    parts.metrics.running.set(status.running)
    parts.metrics.waiting.set(status.waiting)
    parts.metrics.rows.set(status.rows)
    parts.metrics.held_bytes.set(status.held_bytes)
    return Response(parts.metrics.page(), media_type=CONTENT_TYPE_LATEST)
