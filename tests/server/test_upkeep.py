"""A running server drops what nobody can still be waiting for, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from server import upkeep
from server.errors import Unavailable
from server.store import keys
from server.store.ids import now
from server.store.tables import IdempotentAnswer
from tests.server.live import LiveServer, wait_until


def keep_answers(server: LiveServer, prefix: str, *, count: int, hours: float) -> None:
    """Answers that were given so many hours ago."""

    def work(session: Any) -> None:
        client = keys.ensure_client(session, "shop").id
        given = now() - timedelta(hours=hours)
        for i in range(count):
            session.add(
                IdempotentAnswer(
                    client_id=client, key=f"{prefix}{i}", body_hash="a", answer={}, created_at=given
                )
            )

    server.store.write(work)


def kept(server: LiveServer) -> list[str]:
    return server.store.read(lambda session: sorted(session.exec(select(IdempotentAnswer.key))))


def test_answers_that_nobody_can_retry_go_at_the_start_and_young_ones_stay(tmp_path: Path) -> None:
    server = LiveServer(tmp_path)
    keep_answers(server, "old", count=upkeep.BATCH + 1, hours=49)
    keep_answers(server, "young", count=1, hours=47)
    with server:
        wait_until(lambda: kept(server) == ["young0"])


def test_a_database_that_is_away_is_tidied_at_the_next_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "EVERY_SECONDS", 0.02)
    real, failures = upkeep.feedback.forget_answers, [Unavailable("away"), KeyError("a bug")]

    def away(session: Any, **asked: Any) -> int:
        if failures:
            raise failures.pop()
        return real(session, **asked)

    monkeypatch.setattr(upkeep.feedback, "forget_answers", away)
    with LiveServer(tmp_path) as server:
        keep_answers(server, "old", count=1, hours=49)
        wait_until(lambda: kept(server) == [])
    assert failures == []
