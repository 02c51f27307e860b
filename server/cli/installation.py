"""What an operator's verbs act on: a running server over REST, or, when none answers, the record itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from server.cli.words import settings_from
from server.errors import HoneError, SetupError
from server.settings import Settings

if TYPE_CHECKING:
    from server.cli.served import Served

Row = dict[str, Any]


class Installation(Protocol):
    """The verbs both ways can do. Rows have the API's shapes; every method raises HoneError."""

    where: str
    """Said to the operator: a URL or a database."""

    def adapters(self, *, segment: str | None, state: str | None) -> list[Row]: ...

    def adapter(self, version: int) -> Row: ...

    def segments(self) -> list[Row]:
        """With `serving` and `pending` where a server was asked."""

    def move(self, verb: str, *, segment: str, body: Row) -> Row:
        """`verb` is promote, rollback, rollforward, pin or unpin; the new row of the promotion log comes back."""

    def feedback(self, *, limit: int, filters: Row) -> list[Row]: ...

    def keys(self) -> list[Row]: ...

    def create_key(self, body: Row) -> Row:
        """With the whole token under `token`: the only time it is ever shown."""

    def revoke_key(self, key_id: str) -> None: ...

    def close(self) -> None: ...


def open_installation(settings: Settings, *, url: str | None, key: str | None) -> Installation:
    """The server at `url`; else the one that serves this data directory; else its database."""
    from server.cli.served import Served, answers

    target = url or settings.answering_url
    if target is not None and answers(target):
        return Served(target, key or read_admin_key(settings.admin_key_path))
    if url is not None:
        raise SetupError(
            f"nothing answers at {url}; start the server, or leave --url out to use the database"
        )
    from server.cli.stored import Stored

    return Stored(settings)


def read_admin_key(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise HoneError(f"no key: give --key, set HONE_API_KEY, or let {path} be readable") from error


@contextmanager
def installation(url: str | None, key: str | None, data_dir: Path | None) -> Iterator[Installation]:
    """`open_installation` for the length of one command, found by its options."""
    opened = open_installation(settings_from(data_dir=data_dir), url=url, key=key)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def running_server(url: str | None, key: str | None, data_dir: Path | None) -> Iterator[Served]:
    """For a command that the record alone cannot serve. Raises SetupError when no server answers."""
    from server.cli.served import Served, answers

    settings = settings_from(data_dir=data_dir)
    target = url or settings.answering_url
    if target is None or not answers(target):
        where = f"nothing answers at {target}" if target else f"no server serves {settings.data_dir}"
        raise SetupError(
            f"{where}: this needs a running one; start it with `hone serve`, or name it with --url"
        )
    server = Served(target, key or read_admin_key(settings.admin_key_path))
    try:
        yield server
    finally:
        server.close()
