"""The door that every request passes, as plain ASGI: limits of size and address, security headers, counting.

It reads no body and knows no route's meaning. Plain ASGI because a wrapping response object would hold back
streams and hide that a client has left.
"""

from __future__ import annotations

import time
from typing import cast

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import envelope
from server.errors import Malformed, TooLarge
from server.metrics import Metrics

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


class Gate:
    """Wraps the whole app. `max_body_bytes` bounds what is read of any request."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int) -> None:
        self.app = app
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            if self._declared(scope) > self.max_body_bytes:
                await envelope.respond(self._too_large())(scope, receive, send_watched)
            elif "\0" in scope["path"] or b"%00" in scope["query_string"]:
                # PostgreSQL keeps no such text, so there is nothing to find under it; only scanners send it.
                await envelope.respond(Malformed("An address holds no NUL."))(scope, receive, send_watched)
            else:
                await self.app(scope, self._bounded(receive), send_watched)
        finally:
            self._count(scope, status, time.perf_counter() - began)

    def _bounded(self, receive: Receive) -> Receive:
        """Stops reading a body without a declared length once it is too long."""
        total = 0

        async def receive_bounded() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.max_body_bytes:
                raise HTTPException(413, detail=self._too_large().message)
            return message

        return receive_bounded

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self.max_body_bytes} bytes.")

    @staticmethod
    def _declared(scope: Scope) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length":
                return int(value) if value.isdigit() else 0
        return 0

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """By the route's pattern, so that ids in paths do not make a series each."""
        route = cast(str, getattr(scope.get("route"), "path", "other"))
        self.metrics.requests.labels(scope["method"], route, status).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
