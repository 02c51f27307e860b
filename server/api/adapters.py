"""Adapter versions for operators: what there is, what made it, and what its reports show."""

from __future__ import annotations

import asyncio
import re
from pathlib import PurePosixPath
from typing import Any, Literal

from fastapi import APIRouter, Response
from sqlmodel import Session

from server.api import envelope
from server.api.deps import Operator, PartsDep
from server.api.schemas import Version
from server.errors import NotFound
from server.store import adapters

router = APIRouter(tags=["adapters"])
State = Literal["candidate", "rejected", "challenger", "champion", "retired"]
REPORTS = re.compile(r"plots/[A-Za-z0-9_-]+\.svg|samples\.md|metrics\.jsonl")
"""The only files of an adapter folder that are shown: reports, never weights."""
MEDIA = {".svg": "image/svg+xml", ".md": "text/markdown; charset=utf-8", ".jsonl": "application/x-ndjson"}


@router.get("/v1/adapters")
async def listing(
    caller: Operator, parts: PartsDep, segment: str | None = None, state: State | None = None
) -> Response:
    """Published versions, newest first."""

    def work(session: Session) -> list[dict[str, Any]]:
        rows = [summary(session, row) for row in adapters.list_adapters(session, segment=segment)]
        return [row for row in rows if state is None or row["state"] == state]

    rows = await parts.store.read_async(work)
    return envelope.answer({"data": rows, "next_cursor": None})


@router.get("/v1/adapters/{version}")
async def detail(version: Version, caller: Operator, parts: PartsDep) -> Response:
    """One version: manifest, lineage, verdict, checks at load, and the votes on its replies."""

    return envelope.answer(await parts.store.read_async(lambda session: shown(session, version)))


@router.get("/v1/adapters/{version}/files/{name:path}")
async def report(version: Version, name: str, caller: Operator, parts: PartsDep) -> Response:
    """A plot, the transcripts or the metrics of a version."""
    row = await parts.store.read_async(lambda session: _files(session, version))
    if not REPORTS.fullmatch(name) or name not in row[1]:
        raise NotFound(f"v{version} has no report {name!r}.", code="unknown_file")
    folder = await parts.artifacts.fetch_async(row[0])
    try:
        content = await asyncio.to_thread((folder / name).read_bytes)
    except OSError as error:
        raise NotFound(f"v{version} has lost its report {name!r}.", code="unknown_file") from error
    # A picture may carry scripts; shown by itself, it must not run them here.
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
    return Response(content, media_type=MEDIA[PurePosixPath(name).suffix], headers=headers)


def _files(session: Session, version: int) -> tuple[str, dict[str, str]]:
    row = adapters.get_adapter(session, version)
    return row.path, row.manifest.get("files", {})


def shown(session: Session, version: int) -> dict[str, Any]:
    """Everything about a version. Raises NotFound."""
    row = adapters.get_adapter(session, version)
    return summary(session, row) | {
        "manifest": row.manifest,
        "metrics": row.manifest.get("metrics", {}),
        "verdict": row.manifest.get("verdict"),
        "lineage": adapters.lineage(session, version),
        "checks": [
            {"outcome": check.outcome, "detail": check.detail, "at": check.at.isoformat()}
            for check in adapters.checks(session, version)
        ],
        "votes": adapters.votes_on(session, version),
        "files": [
            f"/v1/adapters/{version}/files/{name}"
            for name in sorted(row.manifest.get("files", {}))
            if REPORTS.fullmatch(name)
        ],
    }


def summary(session: Session, row: adapters.Adapter) -> dict[str, Any]:
    """A version in a list."""
    return {
        "version": row.version,
        "segment": row.segment,
        "state": adapters.adapter_state(session, row),
        "parent": row.parent,
        "cycle": row.cycle_id,
        "passed": row.passed,
        "created_at": row.created_at.isoformat(),
    }
