"""One vLLM server over HTTP: what it holds, what it generates, what it says of given ids.

Owns vLLM's routes and fields; `refusals` has its ways of saying no. Refuses to know other replicas, which adapters are
wanted, and text.

    POST /v1/completions    ids in; ids and their log probabilities out, streamed or scored
    GET  /v1/models         the base and the adapters by name, each with the path it was read from
    POST /v1/load_lora_adapter, /v1/unload_lora_adapter · GET /health, /version, /metrics
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import httpx

from server.engine.base import TopLogprob
from server.engine.refusals import (
    ADAPTER_FAULTS,
    AGAIN_SECONDS,
    FULL,
    OWN_FAULTS,
    Lost,
    complaint,
    must_be_well,
    refusal,
)
from server.errors import AdapterRejected, Busy, HoneError, Invalid, SetupError, Unavailable

T = TypeVar("T")
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
"""For questions that a well server answers at once."""
LOAD_SECONDS = 300.0
"""For reading an adapter from whatever disk it lies on, and for a score, which waits behind all that is written."""
IDLE_SECONDS = 2.5
"""How long a connection is kept for the next request. vLLM closes idle ones after five seconds; well before that, none
is taken up in the very moment in which it is being closed."""
DEAD_PEER = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""When the system gives up a peer that is gone without a word: after 25 seconds, where it can be told so."""
TOKEN = "token_id:"  # noqa: S105 vLLM's mark before an id, no secret
OLDEST = (0, 26)
"""Earlier releases may push an adapter out from under a running reply when another is loaded."""
LOAD = re.compile(rb"^vllm:num_requests_(?:running|waiting)(?:\{[^\n]*\})? ([0-9.eE+]+)", re.MULTILINE)
OWN_ENDS = frozenset({"stop", "length", "repetition"})
"""Ways in which a reply ends by itself; any other word means that the server gave it up."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event added to one reply; `ended` is vLLM's word for why it ended, or empty."""

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[TopLogprob, ...], ...]
    ended: str


class Listing(NamedTuple):
    """What a replica serves: its base's name and context, and each adapter's path by its name."""

    base: str
    context: int
    adapters: Mapping[str, str]


class Reach(NamedTuple):
    """How a server is reached, by whoever asks it. Its name holds no password, though its address may."""

    name: str
    base_url: str
    headers: Mapping[str, str]
    verify: ssl.SSLContext | bool

    @classmethod
    def of(cls, url: str, *, key: str = "") -> Reach:
        """Raises SetupError for what is no address."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # The address itself may hold a password, so it is not repeated.
            raise SetupError("HONE_VLLM_URL: each address looks like http://host:port")
        return cls(
            f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}",
            url.rstrip("/").removesuffix("/v1"),
            {"Authorization": f"Bearer {key}"} if key else {},
            # Of the environment this alone counts: SSL_CERT_FILE, for an authority of one's own.
            httpx.create_ssl_context() if parts.scheme == "https" else False,
        )


class Replica:
    """One vLLM server. The key goes into a header and nowhere else."""

    def __init__(self, url: str, *, key: str = "") -> None:
        self.name, base_url, headers, verify = Reach.of(url, key=key)
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            # A reply may wait for long in vLLM's queue: what reads it is ended by `break_off`, not by a clock.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            # The servers stand on a network of one's own: a proxy that the environment names is for the way out.
            trust_env=False,
            transport=httpx.AsyncHTTPTransport(
                verify=verify,
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE_SECONDS
                ),
                socket_options=_told_of_dead_peers(),
            ),
        )
        self._reading: set[asyncio.Timeout] = set()
        self._nothing_read = asyncio.Event()
        self._nothing_read.set()
        self._closed = False

    async def health(self) -> None:
        """Raises Lost unless the server and its engine are well."""
        must_be_well(await self._ask("GET", "/health", patience=ANSWER_SECONDS))

    async def release(self) -> tuple[int, int] | None:
        """Which release it is; nothing when it does not tell. Raises Lost."""
        response = await self._ask("GET", "/version", patience=ANSWER_SECONDS)
        return release_of(response.text) if response.is_success else None

    async def load_of_all(self) -> int:
        """Replies that it writes or holds back, whoever asked for them; 0 when it keeps no numbers. Raises Lost."""
        response = await self._ask("GET", "/metrics", patience=ANSWER_SECONDS)
        return int(sum(map(float, LOAD.findall(response.content)))) if response.is_success else 0

    async def listing(self) -> Listing:
        """What it serves. Raises Lost, and Unavailable when that is no base that Hone can use."""
        response = must_be_well(await self._ask("GET", "/v1/models", patience=ANSWER_SECONDS))
        try:
            cards = response.json()["data"]
            base = next(card for card in cards if not card.get("parent"))
            adapters = {str(card["id"]): str(card["root"]) for card in cards if card.get("parent")}
            return Listing(str(base["id"]), int(base["max_model_len"]), adapters)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise Unavailable("what it says of its models cannot be read: is it vLLM?") from error

    async def load(self, name: str, path: str) -> None:
        """Read the adapter at `path` on the server's own disk. A name that is taken is left as it is.

        Raises AdapterRejected when no vLLM could take the adapter, Unavailable when this one does not.
        """
        body = {"lora_name": name, "lora_path": path, "load_inplace": False}
        response = await self._ask("POST", "/v1/load_lora_adapter", json=body, patience=LOAD_SECONDS)
        says = complaint(response)
        if response.is_success or (response.status_code == 400 and "already been loaded" in says):
            return
        if response.status_code == 404 and says == "Not Found":  # the route itself is not there
            raise Unavailable(
                "it takes no adapters at run time: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            )
        if response.status_code in {401, 403} | FULL:
            raise refusal(response)
        lower = says.lower()
        for words, mend in OWN_FAULTS:
            if any(word in lower for word in words):
                raise Unavailable(f"{mend} (it says: {says})")
        if response.status_code == 404:
            raise Unavailable(f"it sees no adapter at {path} (HONE_VLLM_ADAPTERS)")
        # vLLM answers 500 (older ones 400) for an adapter that it cannot take, and for an engine that has died.
        await self.health()
        if any(word in lower for word in ADAPTER_FAULTS):
            raise AdapterRejected(f"vLLM cannot take the adapter: {says}")
        raise Unavailable(f"it did not load {name}: {says}")

    async def unload(self, name: str) -> None:
        """Forget an adapter; one that is not there is forgotten already."""
        body = {"lora_name": name}
        response = await self._ask("POST", "/v1/unload_lora_adapter", json=body, patience=ANSWER_SECONDS)
        if not response.is_success and response.status_code != 404:
            raise Unavailable(f"it cannot unload {name}: {complaint(response)}")

    async def score(self, name: str, token_ids: Sequence[int]) -> tuple[float, ...]:
        """Raw log probability, in nats, of each id but the first, given those before it.

        Raises as `complete` does.
        """
        # vLLM always draws at least one id more; and it reports prompts under the raw policy whatever the temperature.
        body = {
            "model": name,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 1,
            # What it keeps of this for later requests goes by an adapter's name and path. It must serve no reply: the
            # copy of the adapter may yet turn out to be a bad one.
            "cache_salt": "hone-score",
        }
        response = await self._ask("POST", "/v1/completions", json=body, patience=LOAD_SECONDS)
        if not response.is_success:
            raise refusal(response)
        try:
            rows = response.json()["choices"][0]["prompt_logprobs"]
            pairs = zip(token_ids[1:], rows[1:], strict=True)
            return tuple(float(row[str(token_id)]["logprob"]) for token_id, row in pairs)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Lost("its log probabilities cannot be read", reached=True) from error

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """Stream the replies that `body` asks for. Closing the iterator closes the connection: vLLM then cancels them.

        Raises Lacks when the name in `body` is unknown, Invalid when vLLM refuses the request, Busy when it is full,
        Lost when the stream does not come to its proper end.
        """
        self._must_be_open()
        asked = self._client.build_request("POST", "/v1/completions", json={**body, **STREAMED})
        response = await self._read(self._client.send(asked, stream=True))
        try:
            if not response.is_success:
                await self._read(response.aread())
                raise refusal(response)
            is_done = False
            async with aclosing(self._events(response)) as events:
                async for event in events:
                    if is_done := event == b"[DONE]":
                        continue  # read to the end, so that the connection can serve again
                    for piece in _pieces(event, tops=body["logprobs"]):
                        yield piece
            if not is_done:
                raise Lost("it broke off a reply", reached=True)
        finally:
            await response.aclose()

    def break_off(self) -> None:
        """End every wait for this server as Lost: a machine without power closes no connection."""
        now = asyncio.get_running_loop().time()
        for limit in self._reading:
            if not limit.expired():
                limit.reschedule(now)

    async def close(self) -> None:
        """Break off what is read, and take no more."""
        self._closed = True
        self.break_off()
        # A connection that is still being made when the pool closes would belong to nobody, and stay open.
        await self._nothing_read.wait()
        await self._client.aclose()

    async def _events(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event.

        Split as bytes and at newlines alone: text splits lines at characters, U+2028 say, that vLLM sends as they are.
        """
        rest = b""
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as blocks:
            while block := await self._read(anext(blocks, b"")):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line.removeprefix(b"data:").strip()

    async def _ask(self, method: str, path: str, *, json: Any = None, patience: float) -> httpx.Response:
        self._must_be_open()
        limits = httpx.Timeout(patience, connect=CONNECT_SECONDS)
        return await self._read(self._client.request(method, path, json=json, timeout=limits))

    def _must_be_open(self) -> None:
        if self._closed:
            raise Lost("it is no longer asked", reached=False)

    async def _read(self, step: Awaitable[T]) -> T:
        """What `step` gives, or Lost: by the network, or by `break_off`."""
        try:
            async with asyncio.timeout(0 if self._closed else None) as limit:
                self._reading.add(limit)
                self._nothing_read.clear()
                try:
                    return await step
                finally:
                    self._reading.discard(limit)
                    if not self._reading:
                        self._nothing_read.set()
        except TimeoutError as error:
            raise Lost("it has fallen silent", reached=True, silent=True) from error
        except httpx.HTTPError as error:
            reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            silent = isinstance(error, httpx.TimeoutException)
            raise Lost(
                f"{type(error).__name__}: {error}".rstrip(": "), reached=reached, silent=silent
            ) from error


STREAMED: Mapping[str, Any] = {"stream": True, "return_tokens_as_token_ids": True}
"""`tokens` then read `token_id:7`: ids and their log probabilities come in one list, aligned by construction."""


def _pieces(event: bytes, *, tops: int) -> list[Piece]:
    """One event as pieces. Raises what the server says has gone wrong, Lost when it cannot be read."""
    try:
        data = json.loads(event)
        if "error" in data:
            raise _failure(data["error"])
        return [_piece(choice, tops=tops) for choice in data["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Lost("its stream cannot be read", reached=True) from error


def _failure(told: Mapping[str, Any]) -> HoneError:
    """What stands in a stream instead of a piece: by then the status was 200, so the reason is told in words."""
    code, says = int(told.get("code") or 500), str(told.get("message", ""))
    if code == 400 and told.get("type") == "BadRequestError":
        return Invalid(f"vLLM refuses the request: {says}")
    if code in FULL:
        return Busy("vLLM is full", retry_after=AGAIN_SECONDS)
    return Lost(f"it failed: {says}", reached=True)


def _piece(choice: Mapping[str, Any], *, tops: int) -> Piece:
    told = choice.get("logprobs") or {}
    ended = choice.get("finish_reason") or ""
    if ended and ended not in OWN_ENDS:
        raise Lost(f"it ended a reply by itself ({ended})", reached=True)
    return Piece(
        index=int(choice["index"]),
        token_ids=tuple(_id(token) for token in told.get("tokens", ())),
        logprobs=tuple(float(value) for value in told.get("token_logprobs", ())),
        tops=tuple(_likeliest(row, tops) for row in told.get("top_logprobs", ())) if tops else (),
        ended=ended,
    )


def _likeliest(row: Mapping[str, float], most: int) -> tuple[TopLogprob, ...]:
    """vLLM adds the chosen id to the likeliest ones; here it counts only when it is one of them."""
    ordered = sorted(row.items(), key=lambda item: -item[1])[:most]
    return tuple(TopLogprob(_id(token), float(value)) for token, value in ordered)


def _id(token: str) -> int:
    if not token.startswith(TOKEN):
        raise ValueError("a token that is not named by its id")
    return int(token.removeprefix(TOKEN))


def release_of(text: str) -> tuple[int, int] | None:
    """The first two numbers of what `/version` says; nothing for a build between releases."""
    found = re.search(r'"version": ?"(\d+)\.(\d+)(?![^"]*dev)', text)
    return (int(found[1]), int(found[2])) if found else None


def _told_of_dead_peers() -> list[tuple[int, int, int]]:
    """Socket options: a machine without power closes no connection, and a stream that is read sends nothing."""
    counts = [
        (socket.IPPROTO_TCP, int(getattr(socket, name)), value)
        for name, value in DEAD_PEER.items()
        if hasattr(socket, name)
    ]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *counts]
