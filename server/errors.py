"""Everything that can go wrong on purpose, as one short tree.

    HoneError
    ├── Malformed            the request cannot be read
    ├── Unauthenticated      no token, or one that means nothing here
    ├── Forbidden            a known caller asks for more than its scopes allow
    ├── NotFound             unknown, or somebody else's: the same answer for both
    ├── Conflict             the world moved, or already holds something else
    ├── TooLarge             more than a stated limit allows
    ├── Invalid              well-formed, but a field's value cannot stand
    ├── Busy                 full right now; the caller may come back
    ├── Unavailable          a part is away: engine, database, disk
    ├── DeadlineExceeded     an answer took longer than it may
    ├── AdapterRejected      an adapter that must not serve
    └── SetupError           this installation cannot start; the message says how to mend it

Every error carries a stable `code`, the field it is about (`param`) when there is one, and, where it makes
sense, how many seconds to wait. This module knows nothing of HTTP: `server/api/envelope.py` maps the tree
to statuses.
"""

from __future__ import annotations


class HoneError(Exception):
    """Root of all deliberate errors: a plain sentence for people, a stable code for programs."""

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after = retry_after


class Malformed(HoneError):
    code = "malformed_request"


class Unauthenticated(HoneError):
    code = "invalid_api_key"


class Forbidden(HoneError):
    code = "insufficient_scope"


class NotFound(HoneError):
    code = "not_found"


class Conflict(HoneError):
    code = "conflict"


class TooLarge(HoneError):
    code = "too_large"


class Invalid(HoneError):
    code = "invalid_value"


class Busy(HoneError):
    code = "engine_busy"


class Unavailable(HoneError):
    code = "unavailable"


class DeadlineExceeded(HoneError):
    code = "deadline_exceeded"


class AdapterRejected(HoneError):
    code = "adapter_rejected"


class SetupError(HoneError):
    code = "setup"
