"""What a server tidies while it runs: answers kept for retries that nobody can still be waiting for.

Once at the start and then every hour, in batches so short that no vote waits for them. Nothing that users said or
were shown is ever dropped here; several servers may tidy one record at once.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from server.errors import HoneError
from server.store import feedback
from server.store.ids import now
from server.store.session import Store

log = logging.getLogger(__name__)
RETRY_HOURS = 48
"""How long a request may be retried under its `Idempotency-Key`."""
EVERY_SECONDS = 3600.0
BATCH = 500
"""Rows that go in one transaction."""


async def keep_tidy(store: Store) -> None:
    """Tidy now and then every hour, until cancelled. A database that is away is tidied an hour later."""
    while True:
        try:
            if dropped := await forget_old_answers(store):
                log.info("dropped %d answers kept for retries", dropped)
        except HoneError as error:
            log.warning("cannot tidy the record: %s", error.message)
        except Exception:
            log.exception("tidying the record failed")
        await asyncio.sleep(EVERY_SECONDS)


async def forget_old_answers(store: Store) -> int:
    """Drop every answer whose time for retries is over; how many there were."""
    before, dropped = now() - timedelta(hours=RETRY_HOURS), 0
    while True:
        gone = await store.write_async(lambda s: feedback.forget_answers(s, before=before, limit=BATCH))
        dropped += gone
        if gone < BATCH:
            return dropped
