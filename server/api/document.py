"""What `/openapi.json` says of every route alike: the token that callers send, and the envelope of errors.

The framework would document an error body of its own, which never leaves this server (`envelope`), and no token,
because the routes read theirs by themselves (`deps`).
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

NO_TOKEN: dict[str, Any] = {"security": []}
"""For the routes that anybody may call."""
TOKEN = "token"  # noqa: S105 the name of a scheme, not a secret


class Problem(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's envelope: `code` is stable, `message` is for people, `param` names the field that is wrong."""

    error: Problem


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "Refused; 429 says in `Retry-After` when to come back."},
    "5XX": {"model": ErrorAnswer, "description": "A part of the server is away; see `Retry-After`."},
}


def install(app: FastAPI) -> None:
    """Make `/openapi.json` say it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            scheme = {"type": "http", "scheme": "bearer", "description": "An API key or a session token."}
            made["components"]["securitySchemes"] = {TOKEN: scheme}
            app.openapi_schema = made | {"security": [{TOKEN: []}]}
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
