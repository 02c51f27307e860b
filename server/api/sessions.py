"""Session tokens: what a frontend's server hands to one end user's browser, and what the local page gives itself."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from fastapi import APIRouter, Request, Response

from server.api import document, envelope
from server.api.deps import Chatting, PartsDep
from server.api.schemas import SessionBody
from server.callers import Kind
from server.errors import Forbidden

router = APIRouter(tags=["sessions"])
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


@router.post("/v1/sessions", status_code=201)
async def open_session(body: SessionBody, caller: Chatting, parts: PartsDep) -> Response:
    """A token that may chat as one user and rate that user's own replies, nothing else."""
    if caller.kind is not Kind.KEY:
        raise Forbidden("Only an API key opens sessions.")
    if body.segment is not None:
        await parts.serving.post(body.segment)
    token, expires = await parts.callers.open_session(
        caller, user=body.user, segment=body.segment, seconds=body.ttl_s
    )
    answer = {"token": token, "user": body.user, "segment": body.segment, "expires_at": expires.isoformat()}
    return envelope.answer(answer, status=201)


@router.post("/v1/sessions/local", status_code=201, openapi_extra=document.NO_TOKEN)
async def open_local_session(request: Request, parts: PartsDep) -> Response:
    """A token for the chat page of this machine. Refused to anything that is not clearly this machine."""
    if not parts.callers.local_sessions:
        raise Forbidden("Local sessions exist only on a server that listens on loopback.", code="not_local")
    refuse_strangers(request)
    token, expires = await parts.callers.open_local_session()
    return envelope.answer({"token": token, "expires_at": expires.isoformat()}, status=201)


def refuse_strangers(request: Request) -> None:
    """Raises Forbidden unless peer, Host and Origin are all loopback and nobody forwarded the request.

    Host guards against DNS that was made to point here, Origin against other pages in the same browser.
    """
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    peer = request.client.host if request.client else ""
    if (
        not is_loopback(peer)
        or not is_loopback(_named(f"//{host}").hostname or "")
        or (origin is not None and _named(origin).netloc != host)
        or any(name in request.headers for name in FORWARDED)
    ):
        raise Forbidden("Only a page of this very machine may open a local session.", code="not_local")


def _named(address: str) -> SplitResult:
    """An address taken apart; one that is none names nobody."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def is_loopback(host: str) -> bool:
    """Whether an address or name can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
