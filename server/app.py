"""Puts one server together: settings in, a FastAPI app out. It makes the parts, and knows what none of them does.

create_app(settings) -> routes, doors, one table of errors
lifespan: store -> first key -> engine -> follower -> answer -> (stop) keep partials -> close in reverse
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from sqlmodel import Session
from starlette.middleware.cors import CORSMiddleware

from server.api import (
    adapters,
    chat,
    document,
    envelope,
    feedback,
    health,
    keys,
    learner,
    models,
    page,
    segments,
    sessions,
)
from server.api.deps import Parts, State
from server.api.gate import Gate
from server.api.sessions import is_loopback
from server.artifacts import Artifacts
from server.callers import LOCAL_CLIENT, Callers
from server.chat import Chat
from server.engine import Served, make_engine
from server.errors import SetupError
from server.metrics import Metrics
from server.rates import Rates
from server.serving import Serving
from server.settings import Settings
from server.store import adapters as registry
from server.store import conversations
from server.store import keys as key_rows
from server.store.session import Store, open_store
from server.upkeep import keep_tidy

log = logging.getLogger(__name__)
ALL_SCOPES = ("chat", "feedback", "operator", "admin")
ROUTES = (feedback, chat, models, sessions, adapters, segments, learner, keys, health)


def create_app(settings: Settings, *, store: Store | None = None, served: Served | None = None) -> FastAPI:
    """The whole server. Parts that are handed in are used and left open; others are made and closed here."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            yield {"parts": await open_parts(stack, settings, metrics, store=store, served=served)}
            log.info("stopping")

    app = FastAPI(
        title="Hone",
        description="A chat backend that learns from its users.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
        responses=document.ERRORS,
    )
    for room in ROUTES:
        app.include_router(room.router)
    document.install(app)
    page.mount(app)
    envelope.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=listed(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Hone-Turn-Id", "Idempotent-Replay", "Retry-After"],
        )
    app.add_middleware(Gate, metrics=metrics, max_body_bytes=settings.max_body_bytes)
    return app


async def open_parts(
    stack: AsyncExitStack,
    settings: Settings,
    metrics: Metrics,
    *,
    store: Store | None,
    served: Served | None,
) -> Parts:
    """Make every part in order; `stack` closes them in reverse."""
    if store is None:
        store = open_store(settings.resolved_database_url)
        stack.push_async_callback(asyncio.to_thread, store.close)
    await asyncio.to_thread(show_first_key, store, settings)
    await store.write_async(lambda session: registry.ensure_segment(session, "default").name)
    if interrupted := await store.write_async(conversations.mark_interrupted):
        log.warning("%d replies were cut off by the last stop", interrupted)
    stack.push_async_callback(stop, asyncio.create_task(keep_tidy(store)))
    if served is None:
        served = make_engine(settings)
        stack.push_async_callback(served.engine.close)
    artifacts = Artifacts(settings.resolved_artifacts_url, cache=settings.data_dir)
    serving = Serving(
        store=store,
        artifacts=artifacts,
        engine=served.engine,
        base=served.base,
        metrics=metrics,
        keep_resident=settings.keep_resident,
        follow_seconds=settings.follow_seconds,
    )
    stack.push_async_callback(serving.close)
    await serving.start()
    talk = Chat(
        store=store,
        serving=serving,
        engine=served.engine,
        renderer=served.renderer,
        metrics=metrics,
        reply_seconds=settings.reply_seconds,
    )
    stack.push_async_callback(talk.close)
    return Parts(
        settings=settings,
        store=store,
        artifacts=artifacts,
        engine=served.engine,
        renderer=served.renderer,
        serving=serving,
        chat=talk,
        callers=Callers(store, local_sessions=is_loopback(settings.host) and not settings.trusted_proxies),
        metrics=metrics,
        key_rates=Rates(settings.key_rate),
        session_rates=Rates(settings.session_rate),
    )


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel what runs for as long as the server does."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def show_first_key(store: Store, settings: Settings) -> None:
    """Print the admin key if this start is the first, before anything can go wrong. Raises SetupError."""
    if token := first_admin_key(store, settings):
        # Said to the terminal and never to the log, which others may keep.
        sys.stdout.write(f"Admin key, shown once and kept in {settings.admin_key_path}: {token}\n")
        sys.stdout.flush()


def first_admin_key(store: Store, settings: Settings) -> str | None:
    """On a first start, make the admin key, leave it in the data directory and return it; later None.

    Raises SetupError when the server would listen to the world without any key.
    """
    if store.read(lambda session: len(key_rows.list_keys(session))):
        return None
    if not is_loopback(settings.host):
        raise SetupError(
            f"Nobody could be told from a stranger: {settings.host} is not loopback and there is no key. "
            f"Make one first: {settings.first_key_command}"
        )

    def work(session: Session) -> str:
        return key_rows.create_client_key(session, client=LOCAL_CLIENT, name="admin", scopes=ALL_SCOPES)[1]

    token = store.write(work)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.admin_key_path.unlink(missing_ok=True)
    handle = os.open(settings.admin_key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
    return token


def listed(text: str) -> list[str]:
    """A comma-separated setting as a list."""
    return [part.strip() for part in text.split(",") if part.strip()]
