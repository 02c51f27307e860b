"""Every reply that the record kept, scored again under the version it names by an engine of this process.

What the server wrote beside each token is what the version itself says of it; another version says something else.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlmodel import Session, select

from server.engine.base import Answered, Engine, Prompt
from server.store.session import open_store
from server.store.tables import Reply, Turn

AT_ONCE = 64
"""Replies of one call."""
CONTRAST = 32
"""Replies of each version that another one scores, too: how far apart versions are."""


class Written(NamedTuple):
    """A reply as the record has it."""

    version: int
    item: Answered
    logprobs: Sequence[float]


def stored(data_dir: Path) -> list[Written]:
    """Every reply with tokens."""

    def work(session: Session) -> list[Written]:
        rows = session.exec(select(Reply, Turn).where(Reply.turn_id == Turn.id)).all()
        return [
            Written(
                reply.version, (Prompt(tuple(turn.prompt_token_ids)), tuple(reply.token_ids)), reply.logprobs
            )
            for reply, turn in rows
            if reply.token_ids
        ]

    store = open_store(f"sqlite:///{data_dir.absolute()}/hone.db")
    try:
        return store.read(work)
    finally:
        store.close()


def rescored(data_dir: Path, *, model: Path, dtype: str) -> dict[str, Any]:
    """Largest and mean difference in nats, over all tokens of all replies."""
    written = stored(data_dir)

    async def run() -> dict[str, Any]:
        # Only here: the engine's libraries take seconds, and memory that the client does not need.
        from server.engine.machine import local_engine
        from server.settings import Settings

        settings = Settings.apart(data_dir).model_copy(
            update={"model": str(model), "device": "cpu", "dtype": dtype, "threads": 1}
        )
        engine = local_engine(settings).engine
        try:
            for version in sorted({one.version for one in written} - {0}):
                await engine.load(version, data_dir / "adapters" / "default" / f"v{version:06d}")
            return await compared(engine, written)
        finally:
            await engine.close()

    return asyncio.run(run())


async def compared(engine: Engine, written: Sequence[Written]) -> dict[str, Any]:
    """`engine` holds every version that is named."""
    by_version: dict[int, list[Written]] = defaultdict(list)
    for one in written:
        by_version[one.version].append(one)
    own: list[float] = []
    others: list[float] = []
    for version, mine in by_version.items():
        for start in range(0, len(mine), AT_ONCE):
            own += await distances(engine, version, mine[start : start + AT_ONCE])
        others += [
            distance
            for other in by_version.keys() - {version}
            for distance in await distances(engine, other, mine[:CONTRAST])
        ]
    return {
        "rescored_replies": len(written),
        "rescored_versions": len(by_version),
        "rescore_max": round(max(own), 6),
        "rescore_mean": round(statistics.fmean(own), 6),
        "other_version_mean": round(statistics.fmean(others), 4) if others else None,
    }


async def distances(engine: Engine, version: int, written: Iterable[Written]) -> list[float]:
    """|stored - scored again| of every token."""
    mine = list(written)
    scored = await engine.score_many(version, [one.item for one in mine])
    return [
        abs(a - b)
        for one, row in zip(mine, scored, strict=True)
        for a, b in zip(one.logprobs, row, strict=True)
    ]
