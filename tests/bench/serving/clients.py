"""The one client that every server is asked with: plain sockets, streams of server-sent events, and when each came.

Knows HTTP/1.1 and OpenAI's chunks, as little of both as it takes. Connections are kept and used again. It reads all
that is there whenever something is there, and writes down the moment; what the moments mean is for `measures`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

Body = dict[str, Any]
CHAT = "/v1/chat/completions"
TIME_OUT = 600.0
"""Seconds that one stream may take: a server without batching makes the last of many wait long."""


@dataclass(slots=True)
class Stream:
    """What came back for one request. Moments are of one clock, in seconds."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    """When each piece of text came."""
    ended: float = 0.0
    status: int = 0
    prompt_tokens: int | None = None
    """As the server counted them, if it says so."""
    counted: int | None = None
    """New tokens as the server counted them, if it says so."""
    finish: str = ""
    weights: str = ""
    """The server's mark of the weights that wrote it."""
    left: bool = False
    """Whether the client went away before the end."""
    error: str = ""

    @property
    def tokens(self) -> int:
        """New tokens: the server's own count, else one for each piece of text."""
        return len(self.arrivals) if self.counted is None else self.counted

    @property
    def first(self) -> float:
        """Seconds until the first piece of text."""
        return self.arrivals[0] - self.asked

    def read(self, line: bytes, now: float) -> None:
        """One line of the event stream."""
        if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
            return
        chunk = json.loads(data)
        if problem := chunk.get("error"):
            self.error = self.error or str(problem)[:300]
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.counted = usage.get("completion_tokens")
        if mark := chunk.get("system_fingerprint"):
            if self.weights not in ("", mark):
                self.error = self.error or "the weights changed in mid-reply"
            self.weights = mark
        for choice in chunk.get("choices") or ():
            if (choice.get("delta") or {}).get("content"):
                self.arrivals.append(now)
            self.finish = choice.get("finish_reason") or self.finish


class Wire:
    """One kept connection to a server, for one request at a time."""

    def __init__(self, url: str, *, key: str = "") -> None:
        self.target = urlsplit(url)
        self.key = key
        self._pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def stream(self, body: Body, *, leave_after: int | None = None, path: str = CHAT) -> Stream:
        """Ask for a stream and read it to its end, or go away once `leave_after` pieces have come.

        Never raises for what a server may do: it stands in the stream's `error`.
        """
        seen = Stream(asked=time.perf_counter())
        try:
            async with asyncio.timeout(TIME_OUT):
                await self._stream(body, seen, path, leave_after)
        except (OSError, EOFError, ValueError, KeyError, TimeoutError) as error:
            seen.error = seen.error or f"{type(error).__name__}: {error}"[:300]
            await self.close()
        seen.ended = time.perf_counter()
        if not (seen.error or seen.left or seen.finish):
            seen.error = "the stream ended without a reason to finish"
        return seen

    async def _stream(self, body: Body, seen: Stream, path: str, leave_after: int | None) -> None:
        head, reader = await self._ask(path, body)
        seen.status = int(head.split(b" ", 2)[1])
        rest = b""
        async for data in payload(head, reader):
            now = time.perf_counter()
            if seen.status != 200:
                rest += data
                continue
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                seen.read(line, now)
            if leave_after is not None and len(seen.arrivals) >= leave_after and not seen.finish:
                seen.left = True
                break
        if seen.status != 200:
            seen.error = f"{seen.status} {rest[:200].decode(errors='replace')}"
        if seen.left or not keeps(head):
            await self.close()

    async def answer(self, path: str, body: Body) -> tuple[int, Body]:
        """Ask for a whole answer. Raises OSError or EOFError when the connection dies."""
        head, reader = await self._ask(path, body)
        data = b"".join([part async for part in payload(head, reader)])
        if not keeps(head):
            await self.close()
        return int(head.split(b" ", 2)[1]), json.loads(data or b"{}")

    async def _ask(self, path: str, body: Body) -> tuple[bytes, asyncio.StreamReader]:
        """Send a request and wait for the head of its answer."""
        data = json.dumps(body).encode()
        secret = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.target.netloc}\r\n{secret}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        kept = self._pipe is not None
        try:
            return await self._send(head.encode() + data)
        except (ConnectionError, asyncio.IncompleteReadError):
            # A server may close what was idle for long; that it did shows only now, and no request was lost.
            if not kept:
                raise
            await self.close()
            return await self._send(head.encode() + data)

    async def _send(self, data: bytes) -> tuple[bytes, asyncio.StreamReader]:
        if self._pipe is None:
            self._pipe = await asyncio.open_connection(self.target.hostname, self.target.port)
        reader, writer = self._pipe
        writer.write(data)
        await writer.drain()
        return await reader.readuntil(b"\r\n\r\n"), reader

    async def close(self) -> None:
        if self._pipe is not None:
            writer, self._pipe = self._pipe[1], None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def keeps(head: bytes) -> bool:
    """Whether the connection goes on after this answer."""
    lower = head.lower()
    framed = b"content-length:" in lower or b"transfer-encoding: chunked" in lower
    return framed and b"\r\nconnection: close" not in lower


async def payload(head: bytes, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The body of an answer as it comes, whichever way its end is marked."""
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif b"\r\ncontent-length:" in lower:
        left = int(lower.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
        while left:
            data = await reader.read(left)
            if not data:
                raise EOFError("the answer was cut off")
            left -= len(data)
            yield data
    else:
        while data := await reader.read(1 << 16):
            yield data


async def closed_loop(
    url: str, bodies: Sequence[Sequence[Body]], *, key: str = "", stop: Callable[[], bool] = lambda: False
) -> list[Stream]:
    """One client for each row of `bodies`, all at once; a client asks for its next as soon as its last has ended."""

    async def client(mine: Sequence[Body]) -> list[Stream]:
        wire = Wire(url, key=key)
        try:
            return [await wire.stream(body) for body in mine if not stop()]
        finally:
            await wire.close()

    rows = await asyncio.gather(*(client(mine) for mine in bodies))
    return [stream for row in rows for stream in row]


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer: seconds from the moment at which it should have been asked for, and its status."""

    seconds: float
    status: int


async def open_loop(
    url: str, path: str, body: Callable[[int], Body], *, rate: float, seconds: float, key: str = ""
) -> list[Answer]:
    """Ask `rate` times a second, evenly, whether or not earlier answers have come.

    A request counts from the moment at which it was due: a server (or client) that falls behind cannot hide it.
    Status 0 stands for a connection that died.
    """
    idle: list[Wire] = []
    began = time.perf_counter()

    async def one(number: int) -> Answer:
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        wire = idle.pop() if idle else Wire(url, key=key)
        try:
            status, _ = await wire.answer(path, body(number))
            idle.append(wire)
        except (OSError, EOFError, ValueError):
            status = 0
            await wire.close()
        return Answer(time.perf_counter() - due, status)

    answers = await asyncio.gather(*(one(number) for number in range(int(rate * seconds))))
    for wire in idle:
        await wire.close()
    return answers
