"""A deployed Hone as a stranger sees it: REST and nothing else. Patient with restarts, honest about refusals.

A busy or absent server is asked again, as `Retry-After` says, until patience runs out: soon where nobody has ever
answered, for that is most often a wrong address. A vote carries an idempotency key made from what it is about, so
asking again never votes twice. Knows nothing of tastes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from server.errors import Conflict, Forbidden, HoneError, Invalid, NotFound, Unauthenticated, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

OnProgress = Callable[[int], None]
"""Called with how many more votes (or replies) are done."""

_TOO_LONG = {"prompt_too_long", "too_large", "context_length_exceeded"}
_COME_BACK = {429, 502, 503, 504}
_NOBODY_THERE = {502, 504}
"""What a proxy says in the name of a server that it does not reach."""
_LONGEST_WAIT = 30.0
_FIRST_PATIENCE = 10.0
"""Seconds until a server that has not answered once is given up."""
_REFUSALS: dict[int, type[HoneError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
}


@dataclass(frozen=True)
class Shown:
    """One reply as its user sees it."""

    reply_id: str
    text: str


@dataclass(frozen=True)
class Answered:
    """What came back for one request; `comparison_id` is set when the replies may be compared."""

    conversation_id: str
    comparison_id: str | None
    replies: tuple[Shown, ...]
    completion_tokens: int


class Hone:
    """An installation at `url`. Use as `async with`; every call raises HoneError with the server's own words."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        connections: int = 16,
        patience: float = 120.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _checked_url(url)
        self.connections = connections
        self._patience = patience
        self._met = False
        """Whether this server has ever answered."""
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {_checked_key(key)}"},
            timeout=httpx.Timeout(300.0, connect=10.0),
            limits=httpx.Limits(max_connections=connections),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def chat(self, messages: list[dict[str, str]], **fields: Any) -> Answered:
        """One turn. `fields` go into the request as they are, those that are None left out."""
        body = {"messages": messages, **{name: value for name, value in fields.items() if value is not None}}
        got = await self._ask("POST", "/v1/chat/completions", json=body)
        return Answered(
            conversation_id=got["hone"]["conversation_id"],
            comparison_id=got["hone"]["comparison_id"],
            replies=tuple(
                Shown(choice["reply_id"], choice["message"]["content"] or "")
                for choice in sorted(got["choices"], key=lambda choice: choice["index"])
            ),
            completion_tokens=(got.get("usage") or {}).get("completion_tokens", 0),
        )

    async def pick(self, comparison_id: str, value: str, *, user: str) -> None:
        body = {"kind": "pick", "comparison_id": comparison_id, "value": value, "user": user}
        await self._vote(body, f"pick-{comparison_id}")

    async def thumb(self, reply_id: str, value: str, *, user: str) -> None:
        body = {"kind": "thumb", "reply_id": reply_id, "value": value, "user": user}
        await self._vote(body, f"thumb-{reply_id}")

    async def newest_vote(self, user: str, segment: str) -> int:
        """Place in the record of the last vote of `user`; 0 for none. Needs the scope operator."""
        asked = {"user": user, "segment": segment, "limit": 1}
        rows = (await self._ask("GET", "/v1/feedback", params=asked))["data"]
        return int(rows[0]["seq"]) if rows else 0

    async def champion(self, segment: str) -> int:
        """Version that serves `segment` by the promotion log; 0 is the bare base."""
        rows = (await self._ask("GET", "/v1/segments"))["data"]
        found = next((row["champion"] for row in rows if row["name"] == segment), None)
        if found is None:
            raise NotFound(f"there is no segment {segment!r}", code="unknown_segment")
        return int(found)

    async def _vote(self, body: dict[str, Any], idempotency_key: str) -> None:
        await self._ask("POST", "/v1/feedback", json=body, headers={"Idempotency-Key": idempotency_key})

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                response = await self._client.request(method, path, **request)
            except httpx.TransportError as error:
                reason, wait = f"{type(error).__name__}: {error}", None
            else:
                self._met |= response.status_code not in _NOBODY_THERE
                if response.status_code not in _COME_BACK:
                    return _body_of(response)
                reason, wait = _words_of(response)[0], _retry_after(response)
            wait = min(0.25 * 2**attempt, 8.0) if wait is None else wait
            patience = self._patience if self._met else min(self._patience, _FIRST_PATIENCE)
            if time.monotonic() + wait > began + patience:
                raise Unavailable(self._given_up(reason))
            attempt += 1
            await asyncio.sleep(wait)

    def _given_up(self, reason: str) -> str:
        if self._met:
            return f"{self.url} does not answer: {reason}"
        return (
            f"no server answers at {self.url} ({reason}): start one with `make serve` or `hone serve`, or give "
            "the address of one that runs with --url"
        )


def _checked_url(url: str) -> str:
    """`url` without its last slash. Raises Invalid for what can be no address, which no patience would mend."""
    try:
        address = httpx.URL(url)
        sound = address.scheme in ("http", "https") and address.host and 0 < (address.port or 1) < 65536
    except (httpx.InvalidURL, ValueError):  # the latter from international host names
        sound = False
    if not sound:
        raise Invalid(f"{url!r} is not an address: one looks like http://127.0.0.1:8000", param="url")
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    """Raises Unauthenticated for what no header can carry: a key is of letters, digits and signs of ASCII."""
    if key.isascii() and key.isprintable() and key.strip():
        return key
    raise Unauthenticated("the key is not one of Hone's: it is empty, or holds characters that no key has")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds the server asks for; None when it says nothing usable (a date, for one)."""
    try:
        wait = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return min(max(wait, 0.0), _LONGEST_WAIT) if math.isfinite(wait) else None


def _body_of(response: httpx.Response) -> dict[str, Any]:
    if response.is_success:
        try:
            return dict(response.json())
        except (ValueError, TypeError) as error:
            raise HoneError(f"{response.url} answered something that is not Hone's") from error
    message, code = _words_of(response)
    raise _REFUSALS.get(response.status_code, HoneError)(message, code=code)


def _words_of(response: httpx.Response) -> tuple[str, str | None]:
    """Message and code of an error; a proxy's page in between may hold neither."""
    try:
        error = response.json()["error"]
        return f"{error['message']} ({error['code']})", error["code"]
    except (ValueError, KeyError, TypeError):
        return f"{response.request.method} {response.url} answered {response.status_code}", None


async def ask_unless_too_long(hone: Hone, messages: list[dict[str, str]], **fields: Any) -> Answered | None:
    """The answer; None when these messages cannot fit, which is no reason to stop."""
    try:
        return await hone.chat(messages, **fields)
    except HoneError as error:
        if error.code in _TOO_LONG:
            return None
        raise


async def in_parallel(
    work: Callable[[Item], Awaitable[Result]], items: Iterable[Item], *, width: int
) -> list[Result]:
    """Results in the items' order, at most `width` at a time; the first error stops all and is raised as it is."""
    numbered = enumerate(items)
    results: dict[int, Result] = {}

    async def worker() -> None:
        for place, item in numbered:
            results[place] = await work(item)

    workers = [asyncio.create_task(worker()) for _ in range(width)]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[place] for place in sorted(results)]
