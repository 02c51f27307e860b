"""The client against a tiny server of known habits: what it counts, in which order, and what it calls an error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.serving.clients import Body, Stream, Wire, closed_loop, open_loop

Answering = Callable[[Body, asyncio.StreamWriter], Awaitable[None]]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def send(writer: asyncio.StreamWriter, *parts: bytes, between: float = 0.0) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(between)


class Asked:
    """What the server saw."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[Body] = []
        self.connections = 0
        self.at_once = self.most_at_once = 0


@asynccontextmanager
async def server(answering: Answering) -> AsyncIterator[Asked]:
    asked, tasks = Asked(), set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.connections += 1
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                asked.bodies.append(body)
                asked.at_once += 1
                asked.most_at_once = max(asked.most_at_once, asked.at_once)
                try:
                    await answering(body, writer)
                finally:
                    asked.at_once -= 1
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    asked.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield asked
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def five_words(body: Body, writer: asyncio.StreamWriter) -> None:
    """Like Hone and vLLM: an empty opening, a piece a token, then usage in a chunk of its own."""
    usage = {"prompt_tokens": 64, "completion_tokens": 5}
    parts = [
        event(""),
        *(event(f" w{i}", system_fingerprint="fp_1") for i in range(5)),
        event(None, "length"),
    ]
    last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
    await send(writer, SSE, *(chunk(part) for part in [*parts, last]), b"0\r\n\r\n", between=0.002)


def ask(answering: Answering, **options: Any) -> tuple[Stream, Asked]:
    async def run() -> tuple[Stream, Asked]:
        async with server(answering) as asked:
            wire = Wire(asked.url, key="k")
            stream = await wire.stream({"model": "m"}, **options)
            await wire.close()
            return stream, asked

    return asyncio.run(run())


def test_each_piece_of_text_is_one_arrival_and_the_servers_count_wins() -> None:
    stream, _ = ask(five_words)
    assert stream.error == ""
    assert (len(stream.arrivals), stream.tokens, stream.prompt_tokens) == (5, 5, 64)
    assert (stream.finish, stream.weights, stream.status) == ("length", "fp_1", 200)
    moments = [stream.asked, *stream.arrivals, stream.ended]
    assert moments == sorted(moments)
    assert stream.first > 0


def test_pieces_are_counted_when_the_server_does_not() -> None:
    async def silent(body: Body, writer: asyncio.StreamWriter) -> None:
        await send(
            writer, SSE, *(chunk(event("x")) for _ in range(3)), chunk(event(None, "length")), b"0\r\n\r\n"
        )

    stream, _ = ask(silent)
    assert stream.counted is None
    assert stream.tokens == 3


def test_events_cut_anywhere_are_put_together_again() -> None:
    """A chunk of HTTP ends where a buffer did, not where an event does."""

    async def cut(body: Body, writer: asyncio.StreamWriter) -> None:
        data = event("one") + event("two") + event("three", "stop") + b": a comment\n\ndata: [DONE]\n\n"
        pieces = [data[i : i + 7] for i in range(0, len(data), 7)]
        await send(writer, SSE, *(chunk(piece) for piece in pieces), b"0\r\n\r\n")

    stream, _ = ask(cut)
    assert (len(stream.arrivals), stream.finish, stream.error) == (3, "stop", "")


def test_two_pieces_in_one_packet_are_two_arrivals_at_one_moment() -> None:
    async def packed(body: Body, writer: asyncio.StreamWriter) -> None:
        await send(writer, SSE, chunk(event("a") + event("b")), chunk(event("c", "length")), b"0\r\n\r\n")

    stream, _ = ask(packed)
    assert len(stream.arrivals) == 3
    assert stream.arrivals[0] == stream.arrivals[1] <= stream.arrivals[2]


def test_a_refusal_an_error_in_mid_stream_and_a_cut_are_errors() -> None:
    async def refuses(body: Body, writer: asyncio.StreamWriter) -> None:
        await send(writer, b'HTTP/1.1 429 No\r\nContent-Length: 15\r\n\r\n{"error": "no"}')

    async def breaks(body: Body, writer: asyncio.StreamWriter) -> None:
        trouble = b'data: {"error": {"message": "engine_failed"}}\n\ndata: [DONE]\n\n'
        await send(writer, SSE, chunk(event("a")), chunk(trouble), b"0\r\n\r\n")

    async def stops(body: Body, writer: asyncio.StreamWriter) -> None:
        await send(writer, SSE, chunk(event("a")), b"0\r\n\r\n")

    async def dies(body: Body, writer: asyncio.StreamWriter) -> None:
        await send(writer, SSE, chunk(event("a")))
        writer.close()

    async def swaps(body: Body, writer: asyncio.StreamWriter) -> None:
        marked = [event("a", system_fingerprint="1"), event("b", "stop", system_fingerprint="2")]
        await send(writer, SSE, *map(chunk, marked), b"0\r\n\r\n")

    refused, _ = ask(refuses)
    assert (refused.status, refused.error[:3]) == (429, "429")
    assert "engine_failed" in ask(breaks)[0].error
    assert "without a reason" in ask(stops)[0].error
    assert "IncompleteRead" in ask(dies)[0].error
    assert "weights changed" in ask(swaps)[0].error


def test_a_client_that_leaves_is_no_error_and_takes_its_connection_with_it() -> None:
    async def run() -> tuple[Stream, Stream, int]:
        async with server(five_words) as asked:
            wire = Wire(asked.url)
            left = await wire.stream({}, leave_after=2)
            whole = await wire.stream({})
            await wire.close()
            return left, whole, asked.connections

    left, whole, connections = asyncio.run(run())
    assert left.left
    assert left.error == ""
    assert 2 <= len(left.arrivals) < 5
    assert (len(whole.arrivals), connections) == (5, 2)


def test_connections_are_kept_and_a_closed_one_is_opened_anew() -> None:
    async def once(body: Body, writer: asyncio.StreamWriter) -> None:
        await five_words(body, writer)
        if body["close"]:
            writer.close()

    async def run() -> tuple[list[str], int]:
        async with server(once) as asked:
            wire = Wire(asked.url)
            errors = []
            for close in (False, True, False):
                errors.append((await wire.stream({"close": close})).error)
                await asyncio.sleep(0.02)
            await wire.close()
            return errors, asked.connections

    assert asyncio.run(run()) == (["", "", ""], 2)


def test_closed_loop_keeps_each_client_at_one_request_and_loses_none() -> None:
    async def run() -> tuple[list[Stream], Asked]:
        async with server(five_words) as asked:
            bodies = [[{"client": i, "number": n} for n in range(3)] for i in range(4)]
            return await closed_loop(asked.url, bodies), asked

    streams, asked = asyncio.run(run())
    assert len(streams) == 12
    assert asked.most_at_once == asked.connections == 4
    for client in range(4):
        assert [b["number"] for b in asked.bodies if b["client"] == client] == [0, 1, 2]


def test_open_loop_does_not_wait_for_answers_and_counts_from_when_they_were_due() -> None:
    """A server that answers nothing for a while makes everybody wait who was due meanwhile, not one."""
    gate: asyncio.Event

    async def held(body: Body, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await send(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def run() -> tuple[list[float], list[int], int]:
        nonlocal gate
        gate = asyncio.Event()
        async with server(held) as asked:
            asyncio.get_running_loop().call_later(0.2, gate.set)
            answers = await open_loop(asked.url, "/x", lambda i: {"n": i}, rate=50, seconds=0.2)
            return [one.seconds for one in answers], [one.status for one in answers], asked.most_at_once

    seconds, statuses, most = asyncio.run(run())
    assert statuses == [200] * 10
    assert most == 10
    assert seconds[:9] == sorted(seconds[:9], reverse=True)
