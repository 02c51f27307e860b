"""`hone feedback`: what users said, newest first. Reads only."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.installation import installation
from server.cli.words import AsJson, DataDir, Key, Url, Verbs, print_json, print_table

app = typer.Typer(cls=Verbs, no_args_is_help=True, help="See what users said.")


@app.callback()
def _several() -> None:
    """See what users said."""


@app.command("list")
def list_feedback(
    segment: Annotated[str | None, typer.Option(envvar="HONE_SEGMENT", help="Only this lane.")] = None,
    kind: Annotated[
        str | None, typer.Option(envvar="HONE_KIND", help="pick, thumb, edit, rating or signal.")
    ] = None,
    user: Annotated[str | None, typer.Option(envvar="HONE_USER", help="Only this end user.")] = None,
    limit: Annotated[int, typer.Option(min=1, envvar="HONE_LIMIT", help="At most this many.")] = 50,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Votes, edits, ratings and signals."""
    given = {"segment": segment, "kind": kind, "user": user}
    with installation(url, key, data_dir) as hone:
        rows = hone.feedback(
            limit=limit, filters={name: value for name, value in given.items() if value is not None}
        )
    if as_json:
        print_json(rows)
        return
    columns = {
        "seq": "seq",
        "kind": "kind",
        "value": "value",
        "user": "user",
        "segment": "segment",
        "status": "status",
        "created_at": "when (UTC)",
        "comment": "comment",
    }
    print_table(columns, rows, empty="no feedback yet")
