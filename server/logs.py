"""How log lines look: plain for people, or one JSON object per line. What is logged is each room's business.

Rooms pass ids as `extra=` (turn, reply, version, cycle, …); message texts are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

IDS = ("request", "status", "code", "turn", "reply", "version", "segment", "cycle", "feedback", "actor")


class Plain(logging.Formatter):
    """`14:03:07 WARNING server.serving: cannot load (version=13 segment=default)`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={value}" for name, value in ids_of(record).items())
        return super().formatMessage(record) + (f" ({ids})" if ids else "")


class Json(logging.Formatter):
    """One object per line, for machines that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **ids_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def ids_of(record: logging.LogRecord) -> dict[str, object]:
    """The ids that the caller gave this line."""
    return {name: record.__dict__[name] for name in IDS if name in record.__dict__}


def configure(*, level: str, as_json: bool) -> None:
    """Send every log line of this process to standard error, in one look."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if as_json else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("httpx", "httpcore", "alembic", "apscheduler", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
