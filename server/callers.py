"""Who is calling: tokens in, a `Caller` out. Knows keys and sessions; does not know routes or HTTP.

    hone_sk_<id>_<secret>   an API key: a row, remembered for at most two seconds, so that a revocation is felt
    a signed token          a session: one end user's browser, bound to the key that made it

A key's row is remembered by its id and the secret is compared on every request, so a guessed secret never
costs a read and never lands in a cache.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

import jwt
from sqlmodel import Session

from server.errors import Forbidden, Unauthenticated
from server.store import keys
from server.store.session import Store
from server.store.tables import ApiKey

T = TypeVar("T")
REMEMBERED_SECONDS = 2.0
REMEMBERED_KEYS = 4096
END_USER_SCOPES = frozenset({"chat", "feedback"})
LOCAL_CLIENT = "local"
LOCAL_USER = "local"
LOCAL_SESSION_SECONDS = 3600


class Kind(StrEnum):
    """What stands behind a token."""

    KEY = "key"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Caller:
    """A known caller. `user` is set for a session: the only end user it may speak for."""

    client_id: str
    key_id: str
    actor: str
    """For the audit and the promotion log: the key's name and id."""
    scopes: frozenset[str]
    kind: Kind
    user: str | None = None
    segment: str | None = None

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def speaks_for(self, user: str | None) -> str | None:
        """The end user that this request is about. Raises Forbidden when a session names somebody else."""
        if self.kind is Kind.KEY:
            return user
        if user is not None and user != self.user:
            raise Forbidden("This session speaks for another user.", code="other_user", param="user")
        return self.user

    def lane(self, segment: str) -> str:
        """The segment that this request is about. Raises Forbidden when a session names one that is not its own.

        `default` is what clients write that know of no segments: in a session it is the session's own.
        """
        if self.segment is None or segment in (self.segment, "default"):
            return self.segment or segment
        raise Forbidden("This session belongs to another segment.", param="model")


class Remembered(Generic[T]):
    """Answers of a slow question, each kept for two seconds and asked only once at a time."""

    def __init__(self, ask: Callable[[str], Awaitable[T]]) -> None:
        self.ask = ask
        self._known: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self._asking: dict[str, asyncio.Future[T]] = {}

    async def get(self, name: str) -> T:
        known = self._known.get(name)
        if known is not None and time.monotonic() - known[0] < REMEMBERED_SECONDS:
            return known[1]
        if name not in self._asking:
            self._asking[name] = asyncio.ensure_future(self._fetch(name))
        return await asyncio.shield(self._asking[name])

    async def _fetch(self, name: str) -> T:
        asked = time.monotonic()
        try:
            answer = await self.ask(name)
        finally:
            del self._asking[name]
        self._known.pop(name, None)
        self._known[name] = (asked, answer)
        if len(self._known) > REMEMBERED_KEYS:
            self._known.popitem(last=False)
        return answer

    def forget(self) -> None:
        self._known.clear()


class Callers:
    """Turns tokens into callers, and makes session tokens."""

    def __init__(self, store: Store, *, local_sessions: bool) -> None:
        self.store = store
        self.local_sessions = local_sessions
        """Whether tokens of the loopback page mean anything here."""
        self._keys = Remembered(self._read_key)
        self._secrets = Remembered(self._read_secrets)

    async def identify(self, token: str) -> Caller:
        """Who carries this token. Raises Unauthenticated, with one and the same answer for every reason."""
        caller = await (
            self._by_key(token) if token.startswith(keys.TOKEN_PREFIX) else self._by_session(token)
        )
        if caller is None:
            raise Unauthenticated("This token is not known here, has expired or was revoked.")
        return caller

    async def open_session(
        self, caller: Caller, *, user: str, segment: str | None, seconds: int
    ) -> tuple[str, datetime]:
        """A token for one end user's browser: it may do at most what its key may, and only chat and rate."""
        scopes = sorted(caller.scopes & END_USER_SCOPES)
        return await self._sign(caller.client_id, caller.key_id, user, segment, scopes, seconds)

    async def open_local_session(self) -> tuple[str, datetime]:
        """A token for the chat page of this very machine, bound to no key."""
        client_id = await self.store.write_async(lambda session: keys.ensure_client(session, LOCAL_CLIENT).id)
        scopes = sorted(END_USER_SCOPES)
        return await self._sign(client_id, "", LOCAL_USER, None, scopes, LOCAL_SESSION_SECONDS)

    def forget(self) -> None:
        """Ask the store again: this very process has just changed a key."""
        self._keys.forget()
        self._secrets.forget()

    async def _by_key(self, token: str) -> Caller | None:
        parsed = keys.parse_token(token)
        row = await self._keys.get(parsed[0]) if parsed else None
        if row is None or not keys.verify(token, row) or not _lives(row):
            return None
        return Caller(row.client_id, row.id, f"{row.name} ({row.id})", frozenset(row.scopes), Kind.KEY)

    async def _by_session(self, token: str) -> Caller | None:
        claims = await self._claims(token)
        if claims is None:
            return None
        scopes = frozenset(claims["scopes"])
        if claims["key"]:
            row = await self._keys.get(claims["key"])
            if row is None or not _lives(row):
                return None
            scopes &= frozenset(row.scopes)
        elif not self.local_sessions:
            return None
        return Caller(
            claims["client"],
            claims["key"],
            "session",
            scopes,
            Kind.SESSION,
            user=claims["sub"],
            segment=claims.get("segment"),
        )

    async def _claims(self, token: str) -> dict[str, Any] | None:
        """What a token says, if one of the living secrets signed it."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            secret = (await self._secrets.get("")).get(str(kid))
            if secret is None:
                return None
            required = ["exp", "sub", "client", "key", "scopes"]
            claims: dict[str, Any] = jwt.decode(
                token, secret, algorithms=["HS256"], options={"require": required}
            )
        except jwt.InvalidTokenError:
            return None
        return claims

    async def _sign(
        self, client_id: str, key_id: str, user: str, segment: str | None, scopes: list[str], seconds: int
    ) -> tuple[str, datetime]:
        kid, secret = await self.store.write_async(_signing_secret)
        now = datetime.now(UTC)
        expires = now + timedelta(seconds=seconds)
        claims = {
            "sub": user,
            "client": client_id,
            "key": key_id,
            "segment": segment,
            "scopes": scopes,
            "iat": now,
            "exp": expires,
        }
        token = jwt.encode(claims, secret, algorithm="HS256", headers={"kid": kid})
        self._secrets.forget()
        return token, expires

    async def _read_key(self, key_id: str) -> ApiKey | None:
        return await self.store.read_async(lambda session: keys.find_key(session, key_id))

    async def _read_secrets(self, _: str) -> dict[str, str]:
        return await self.store.read_async(_living_secrets)


def _lives(row: ApiKey) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > datetime.now(UTC))


def _living_secrets(session: Session) -> dict[str, str]:
    return {secret.kid: secret.secret for secret in keys.session_secrets(session)}


def _signing_secret(session: Session) -> tuple[str, str]:
    newest = max(keys.session_secrets(session), key=lambda secret: secret.created_at)
    return newest.kid, newest.secret
