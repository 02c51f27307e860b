"""What every route may ask for: the parts of this server, and who is calling.

Parts are made once in the lifespan and travel in the request's state; there are no globals.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Request

from server.artifacts import Artifacts
from server.callers import Caller, Callers, Kind
from server.chat import Chat
from server.engine.base import Engine
from server.errors import Forbidden, Unauthenticated
from server.metrics import Metrics
from server.prompts import Renderer
from server.rates import Rates
from server.serving import Serving
from server.settings import Settings
from server.store.session import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """One running server, taken apart."""

    settings: Settings
    store: Store
    artifacts: Artifacts
    engine: Engine
    renderer: Renderer
    serving: Serving
    chat: Chat
    callers: Callers
    metrics: Metrics
    key_rates: Rates
    session_rates: Rates


class State(TypedDict):
    """What the lifespan yields."""

    parts: Parts


async def get_parts(request: Request) -> Parts:
    """Not a plain function: those the framework sends through a thread, at every request."""
    parts: Parts = request.state.parts
    return parts


PartsDep = Annotated[Parts, Depends(get_parts)]


async def get_caller(request: Request) -> Caller:
    """Who calls, within their rate. Raises Unauthenticated or Busy."""
    parts: Parts = request.state.parts
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("Send `Authorization: Bearer <token>`.")
    caller = await parts.callers.identify(token.strip())
    if caller.kind is Kind.KEY:
        parts.key_rates.take(caller.key_id)
    else:
        parts.session_rates.take(f"{caller.client_id}/{caller.user}")
    return caller


def needs(scope: str) -> Callable[[Request], Coroutine[Any, Any, Caller]]:
    """A caller whose token carries `scope`. Raises Forbidden."""

    async def check(request: Request) -> Caller:
        caller = await get_caller(request)
        if not caller.may(scope):
            raise Forbidden(f"This needs a token with the scope `{scope}`.")
        return caller

    return check


needs_feedback = needs("feedback")
AnyCaller = Annotated[Caller, Depends(get_caller)]
Chatting = Annotated[Caller, Depends(needs("chat"))]
Rating = Annotated[Caller, Depends(needs_feedback)]
Operator = Annotated[Caller, Depends(needs("operator"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
