"""One uvicorn worker from its first answer to its last.

    signal -> refuse new chat -> running replies end, or are cut at the limit -> close the door -> take the app down
    a second signal -> cut at once, then the same
    one after the cut, or before the first answer -> the process ends as it is

uvicorn would close its door first: whoever shares out requests could not see why, and a vote on a reply that is being
written would find nobody. So the replies are drained before uvicorn's own shutdown begins. Knows nothing of settings.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from server.errors import HoneError, SetupError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.chat import Chat

log = logging.getLogger(__name__)
LAST_WORDS_SECONDS = 5
"""How long answers that are under way when the replies have ended (a vote, a slow reader) may still take."""
HURRIED_SECONDS = 1
"""The same, for who was asked to end twice."""


class Startup:
    """An app whose deliberate errors at start are kept for one clear line, not logged as a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.failed = False
        self.error: HoneError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        held: Message = {"type": "lifespan.startup.failed", "message": ""}

        async def hold_failure(message: Message) -> None:
            nonlocal held
            if message["type"] == "lifespan.startup.failed":
                self.failed, held = True, message
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_failure)
        except HoneError as error:
            self.error = error
            await send({"type": "lifespan.startup.failed", "message": ""})
        except Exception:
            if self.failed:
                await send(held)
            raise


def nothing() -> None:
    """What happens at a moment when nothing is to happen."""


def end_at_once(sig: int) -> None:
    """As if nobody had ever listened for the signal: no part of this process can hold that up."""
    signal.signal(sig, signal.SIG_DFL)
    signal.raise_signal(sig)


class Listener(uvicorn.Server):
    """uvicorn around Hone's app, with a drain before its shutdown.

    `on_start` is called once requests are answered, `on_stop` when it is asked to end, `on_hurry` when it is asked
    again; all from the event loop, the last two perhaps more than once. `on_insist` is called in a signal's handler.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        grace_seconds: float,
        on_start: Callable[[], None] = nothing,
        on_stop: Callable[[], None] = nothing,
        on_hurry: Callable[[], None] = nothing,
        on_insist: Callable[[int], None] = end_at_once,
    ) -> None:
        super().__init__(config)
        self.grace_seconds = grace_seconds
        self.on_start, self.on_stop, self.on_hurry, self.on_insist = on_start, on_stop, on_hurry, on_insist
        self.hurried = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self.on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In a signal's handler, in the middle of anything: only flags are set here, or everything ends."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
            if self.started:
                self._chat.stop()
            return
        self.hurried = True
        if not self.started or self._chat.is_cut:
            self.on_insist(sig)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; whether the time has come to close the door."""
        if not await super().on_tick(counter):
            return False
        if self._draining is None:
            log.info("asked to end: running replies have %g s", self.grace_seconds)
            self.on_stop()
            self._draining = asyncio.create_task(self._chat.drain(self.grace_seconds))
        if self.hurried:
            self.on_hurry()
            self._chat.cut()
        return self._draining.done()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_stop()  # a signal during the start never came to a tick
        self.config.timeout_graceful_shutdown = HURRIED_SECONDS if self.hurried else LAST_WORDS_SECONDS
        await super().shutdown(sockets)

    @property
    def _chat(self) -> Chat:
        chat: Chat = self.lifespan.state["parts"].chat
        return chat


def listen(
    app: ASGIApp,
    bound: socket.socket,
    *,
    grace_seconds: float,
    on_start: Callable[[], None],
    on_stop: Callable[[], None],
    on_hurry: Callable[[], None],
) -> None:
    """Serve on `bound` until a signal. Raises SetupError, or the app's own, when it could not start."""
    startup = Startup(app)
    config = uvicorn.Config(
        startup,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        # Addresses are the app's own business: it knows which proxies are trusted.
        proxy_headers=False,
    )
    listener = Listener(
        config, grace_seconds=grace_seconds, on_start=on_start, on_stop=on_stop, on_hurry=on_hurry
    )
    try:
        listener.run(sockets=[bound])
    except SystemExit:
        # uvicorn's way of saying that the start failed, and ours of ending at SIGTERM.
        if not startup.failed:
            raise
    if startup.failed:
        raise startup.error or SetupError("the server could not start; the lines above say why")
