"""The learner as seen from the server: rows that it writes, and wishes that it will read.

Nothing here calls the learner; the contract is the database.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlmodel import Session

from server.api import envelope
from server.api.deps import Operator, PartsDep
from server.api.schemas import CycleBody
from server.errors import NotFound
from server.store import adapters, cycles, keys
from server.store.tables import Cycle

log = logging.getLogger(__name__)
router = APIRouter(tags=["learner"])


@router.get("/v1/learner")
async def learner(caller: Operator, parts: PartsDep, segment: str = "default") -> Response:
    """What the learner does, when it runs next, and why it does not train."""

    def work(session: Session) -> dict[str, Any]:
        adapters.lane(session, segment)
        state = cycles.learner_state(session, segment)
        doing, why_not, current = cycles.training(session, segment)
        return {
            "segment": segment,
            "state": doing,
            "cycle": current.id if current else None,
            "step": current.step if current else None,
            "progress": current.progress if current else None,
            "next_due_at": _moment(state.next_due_at),
            "last_run_at": _moment(state.last_run_at),
            "backoff_until": _moment(state.backoff_until),
            "why_not": why_not,
            "refusals": state.refusals,
            "watermark": state.watermark,
        }

    return envelope.answer(await parts.store.read_async(work))


@router.post("/v1/learner/cycles", status_code=202)
async def request_cycle(body: CycleBody, caller: Operator, parts: PartsDep) -> Response:
    """Ask for a cycle; the learner begins it at its next look, and `why_not` says whether there is one."""

    def work(session: Session) -> dict[str, Any]:
        adapters.lane(session, body.segment)
        row = cycles.request_cycle(session, segment=body.segment, by=caller.actor, dry_run=body.dry_run)
        keys.audit(
            session,
            actor=caller.actor,
            action="cycle.request",
            target=row.id,
            detail={"segment": body.segment, "dry_run": body.dry_run},
        )
        return shown(row) | {"why_not": cycles.training(session, body.segment).why_not}

    row = await parts.store.write_async(work)
    log.info("a cycle was asked for: %s", row["why_not"], extra={"cycle": row["id"]})
    return envelope.answer(row, status=202)


@router.get("/v1/learner/cycles")
async def listing(
    caller: Operator,
    parts: PartsDep,
    segment: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """All cycles, newest first."""

    def work(session: Session) -> tuple[list[dict[str, Any]], str | None]:
        rows, following = cycles.list_cycles(session, segment=segment, cursor=cursor, limit=limit)
        return [shown(row) for row in rows], following

    rows, next_cursor = await parts.store.read_async(work)
    return envelope.answer({"data": rows, "next_cursor": next_cursor})


@router.get("/v1/learner/cycles/{cycle_id}")
async def detail(cycle_id: str, caller: Operator, parts: PartsDep) -> Response:
    """One cycle: its steps and their metrics, its verdict, and where its plots are."""

    def work(session: Session) -> dict[str, Any]:
        row = cycles.get_cycle(session, cycle_id)
        return shown(row) | {"config": row.config, "plots": _plots(session, row.version)}

    return envelope.answer(await parts.store.read_async(work))


@router.post("/v1/learner/cycles/{cycle_id}/cancel", status_code=202)
async def cancel(cycle_id: str, caller: Operator, parts: PartsDep) -> Response:
    """Ask a cycle to stop at its next checkpoint."""

    def work(session: Session) -> dict[str, Any]:
        row = cycles.cancel_cycle(session, cycle_id)
        keys.audit(session, actor=caller.actor, action="cycle.cancel", target=cycle_id, detail={})
        return shown(row)

    return envelope.answer(await parts.store.write_async(work), status=202)


def _plots(session: Session, version: int | None) -> list[str]:
    if version is None:
        return []
    try:
        files = adapters.get_adapter(session, version).manifest.get("files", {})
    except NotFound:
        return []  # a cycle knows its number before the version is in the registry
    return [f"/v1/adapters/{version}/files/{name}" for name in sorted(files) if name.startswith("plots/")]


def shown(row: Cycle) -> dict[str, Any]:
    """A cycle as operators see it."""
    return {
        "id": row.id,
        "segment": row.segment,
        "state": row.state,
        "step": row.step,
        "progress": row.progress,
        "by": row.by,
        "dry_run": row.dry_run,
        "champion": row.champion,
        "since": row.since,
        "through": row.through,
        "steps": row.steps,
        "verdict": row.verdict,
        "version": row.version,
        "reward_version": row.reward_version,
        "reason": row.reason,
        "created_at": row.created_at.isoformat(),
        "started_at": _moment(row.started_at),
        "finished_at": _moment(row.finished_at),
    }


def _moment(at: Any) -> str | None:
    return at.isoformat() if at is not None else None
