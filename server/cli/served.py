"""Operator verbs over REST, for an installation whose server answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

from server.cli.installation import Row
from server.errors import Busy, HoneError, Unavailable

PATIENCE_SECONDS = 120.0
"""How long a full queue is waited for."""
REPLY_SECONDS = 300.0
"""How long one reply may take."""


def answers(url: str) -> bool:
    """Whether a Hone is alive there."""
    try:
        return httpx.get(f"{url.rstrip('/')}/healthz", timeout=2).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False


class Served:
    """`Installation` by way of a server's own API: its checks, its audit, its answer whether it serves yet."""

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.where = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.where, headers={"Authorization": f"Bearer {key}"}, timeout=30, transport=transport
        )

    def close(self) -> None:
        self._client.close()

    def adapters(self, *, segment: str | None, state: str | None) -> list[Row]:
        return self._all("/v1/adapters", segment=segment, state=state)

    def adapter(self, version: int) -> Row:
        return self._ask("GET", f"/v1/adapters/{version}")

    def segments(self) -> list[Row]:
        return self._all("/v1/segments")

    def move(self, verb: str, *, segment: str, body: Row) -> Row:
        return self._ask("POST", f"/v1/segments/{quote(segment, safe='')}/{verb}", json=body)

    def feedback(self, *, limit: int, filters: Row) -> list[Row]:
        return self._all("/v1/feedback", limit=limit, **filters)

    def keys(self) -> list[Row]:
        return self._all("/v1/keys")

    def create_key(self, body: Row) -> Row:
        return self._ask("POST", "/v1/keys", json=body)

    def revoke_key(self, key_id: str) -> None:
        self._ask("DELETE", f"/v1/keys/{quote(key_id, safe='')}")

    def turns(self, *, segment: str, train: bool) -> Iterator[Row]:
        """What was asked, newest first, fetched page by page as it is read."""
        asked: Row = {"segment": segment, "train": train}
        while True:
            page = self._ask("GET", "/v1/turns", params=asked)
            yield from page["data"]
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]

    def chat(self, body: Row) -> Row:
        """A whole answer; while the server is busy it is asked again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._ask("POST", "/v1/chat/completions", json=body, timeout=REPLY_SECONDS)
            except Busy as busy:
                wait = busy.retry_after or 1.0
                if time.monotonic() + wait > deadline:
                    raise
            time.sleep(wait)

    def _all(self, path: str, *, limit: int | None = None, **params: Any) -> list[Row]:
        """Every row of a list, or the first `limit`, page by page."""
        rows: list[Row] = []
        asked = {name: value for name, value in params.items() if value is not None}
        while limit is None or len(rows) < limit:
            size = {} if limit is None else {"limit": min(limit - len(rows), 200)}
            page = self._ask("GET", path, params={**asked, **size})
            rows += page["data"]
            if page.get("next_cursor") is None:
                break
            asked["cursor"] = page["next_cursor"]
        return rows[:limit]

    def _ask(self, method: str, path: str, **request: Any) -> Row:
        try:
            response = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.where} does not answer: {error or type(error).__name__}") from error
        try:
            body = response.json() if response.content else {}
        except ValueError:
            body = {}
        if response.is_success:
            return dict(body)
        said = body.get("error") if isinstance(body, dict) else None
        if isinstance(said, dict):
            words, code = f"{said.get('message')} ({said.get('code')})", said.get("code")
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                wait = response.headers.get("Retry-After", "")
                raise Busy(words, code=code, retry_after=float(wait) if wait.isdecimal() else None)
            raise HoneError(words, code=code)
        raise HoneError(f"{method} {self.where}{path} answered {response.status_code}")
