"""Many requests at once over kept-alive sockets, as bytes: a client cheap enough not to be what is measured."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Flood:
    """What came back. `answers` holds (body sent, status, body received) in order of arrival."""

    answers: list[tuple[dict[str, Any], int, dict[str, Any]]] = field(default_factory=list)
    broken: int = 0
    """Requests whose connection died before an answer."""
    seconds: float = 0.0

    def with_status(self, status: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(sent, got) for sent, code, got in self.answers if code == status]


async def post_all(
    url: str,
    path: str,
    bodies: Iterable[dict[str, Any]],
    *,
    key: str,
    connections: int,
    on_answer: Callable[[Flood], None] | None = None,
) -> Flood:
    """POST every body, `connections` at a time; a connection that breaks ends that worker."""
    flood, queue = Flood(), iter(list(bodies))
    target = urlsplit(url)
    started = time.monotonic()

    async def worker() -> None:
        try:
            reader, writer = await asyncio.open_connection(target.hostname, target.port)
        except OSError:
            return
        try:
            await ask(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            flood.broken += 1
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in queue:
            payload = json.dumps(body).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {target.netloc}\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
            )
            writer.write(head.encode() + payload)
            status, answer = await read_answer(reader)
            flood.answers.append((body, status, answer))
            if on_answer:
                on_answer(flood)

    await asyncio.gather(*(worker() for _ in range(connections)))
    flood.seconds = time.monotonic() - started
    return flood


def post_all_sync(
    url: str, path: str, bodies: Iterable[dict[str, Any]], *, key: str, connections: int
) -> Flood:
    return asyncio.run(post_all(url, path, bodies, key=key, connections=connections))


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    length = next(
        int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length:")
    )
    return status, json.loads(await reader.readexactly(length) or b"{}")
