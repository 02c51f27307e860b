"""Errors as HTTP: one envelope everywhere, the one that OpenAI's clients parse, and one table of statuses.

    {"error": {"message", "type", "code", "param"}}

The only place where Hone's error tree meets a status code. It knows nothing of routes.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server import errors

log = logging.getLogger(__name__)

STATUS: dict[type[errors.HoneError], tuple[int, str]] = {
    errors.Malformed: (400, "invalid_request_error"),
    errors.Unauthenticated: (401, "authentication_error"),
    errors.Forbidden: (403, "permission_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.Conflict: (409, "invalid_request_error"),
    errors.TooLarge: (413, "invalid_request_error"),
    errors.Invalid: (422, "invalid_request_error"),
    errors.Busy: (429, "rate_limit_error"),
    errors.Unavailable: (503, "server_error"),
    errors.DeadlineExceeded: (504, "server_error"),
    errors.AdapterRejected: (409, "invalid_request_error"),
    errors.SetupError: (503, "server_error"),
}
to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
BAD_REQUEST_CODES = {"prompt_too_long"}
"""Codes of `Invalid` that OpenAI answers with 400, where its clients look for them."""
STOPPING = "stopping"
"""Code of what is refused because this server ends."""
CLIENT_LEFT = 499
"""Counted, never sent."""
OF_THE_FRAMEWORK = {
    400: "malformed_request",
    404: "unknown_route",
    405: "method_not_allowed",
    413: "too_large",
}


def status_of(error: errors.HoneError) -> tuple[int, str]:
    """Status and OpenAI `type` of an error, by its nearest class in the tree."""
    if error.code in BAD_REQUEST_CODES:
        return STATUS[errors.Malformed]
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500, "server_error"


def body(message: str, *, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The envelope itself."""
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def of(error: BaseException) -> dict[str, Any]:
    """The envelope of any error; one that nobody meant is not described to the caller."""
    if isinstance(error, errors.HoneError):
        return body(error.message, kind=status_of(error)[1], code=error.code, param=error.param)
    return body("Something went wrong in the server; it was logged.", kind="server_error", code="internal")


def respond(error: errors.HoneError) -> Response:
    """The whole answer, with `Retry-After` wherever coming back makes sense."""
    status, _ = status_of(error)
    headers = {}
    if status in {429, 503}:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if error.code == STOPPING:
        headers["Connection"] = "close"  # the caller's next request then goes to a server that stays
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return answer(of(error), status=status, headers=headers)


def answer(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Plain data as JSON, without a second pass through models."""
    return Response(
        to_json(content).encode(), status_code=status, headers=headers, media_type="application/json"
    )


def install(app: FastAPI) -> None:
    """Make every error of `app` leave through the envelope."""
    app.add_exception_handler(errors.HoneError, _deliberate)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _unforeseen)


async def _deliberate(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.HoneError)
    if isinstance(error, errors.Unavailable) and error.code != STOPPING:
        log.warning("%s %s: %s", request.method, request.url.path, error.message, extra={"code": error.code})
    return respond(error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return respond(explain(error.errors()[0]))


def explain(problem: dict[str, Any]) -> errors.HoneError:
    """The first of pydantic's complaints: an unreadable body is malformed, a wrong field is invalid."""
    # The first part says where: body, query, path or header. A field may bear such a name itself.
    place = [str(part) for part in problem["loc"][1:]]
    if problem["type"] == "json_invalid":
        return errors.Malformed(f"The body is not JSON: {problem['ctx']['error']}.")
    if not place:
        if problem["type"] in {"missing", "model_attributes_type", "model_type", "dict_type"}:
            return errors.Malformed("The body must be a JSON object (Content-Type: application/json).")
        return errors.Invalid(str(problem["msg"]))
    param = ".".join(place)
    code = {"missing": "missing_field", "extra_forbidden": "unknown_field"}.get(problem["type"])
    return errors.Invalid(f"{param}: {problem['msg']}", code=code, param=param)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = OF_THE_FRAMEWORK.get(error.status_code, "http_error")
    message = {
        "unknown_route": f"There is nothing at {request.url.path}.",
        "method_not_allowed": f"{request.method} is not allowed at {request.url.path}.",
    }.get(code, str(error.detail))
    envelope = body(message, kind="invalid_request_error", code=code)
    return answer(envelope, status=error.status_code, headers=dict(error.headers or {}))


async def _left(request: Request, error: Exception) -> Response:
    """Nobody reads this: it keeps callers that leave out of the log and apart from the server's own failures."""
    return Response(status_code=CLIENT_LEFT)


async def _unforeseen(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this answer, and the server logs it with its traceback."""
    return answer(of(error), status=500)
