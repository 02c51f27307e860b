"""`hone adapters`: see what was learned, and move what serves. A running server is asked; else the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from server.cli.installation import Row, installation
from server.cli.words import (
    AsJson,
    DataDir,
    Key,
    Reason,
    Segment,
    Url,
    Verbs,
    print_json,
    print_table,
    shown,
)

app = typer.Typer(cls=Verbs, no_args_is_help=True, help="See adapter versions, promote them, take them back.")

Version = Annotated[int, typer.Argument(min=0, help="Version number; 0 is the bare base.")]
Expecting = Annotated[
    int | None,
    typer.Option("--expecting", min=0, envvar="HONE_EXPECTING", help="Only if this version serves now."),
]


@app.command("list")
def list_adapters(
    segment: Annotated[str | None, typer.Option(envvar="HONE_SEGMENT", help="Only this lane.")] = None,
    state: Annotated[
        str | None,
        typer.Option(envvar="HONE_STATE", help="candidate, rejected, challenger, champion or retired."),
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """All versions, newest first, and which one serves."""
    with installation(url, key, data_dir) as hone:
        rows = hone.adapters(segment=segment, state=state)
    if as_json:
        print_json(rows)
        return
    columns = {
        "version": "version",
        "segment": "segment",
        "state": "state",
        "parent": "from",
        "created_at": "made (UTC)",
    }
    print_table(columns, rows, empty="no versions yet: the bare base (version 0) serves")


@app.command()
def show(
    version: Annotated[int, typer.Argument(min=1, help="Version number.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """One version: where it comes from, what the gate said and why, how its replies are liked."""
    with installation(url, key, data_dir) as hone:
        row = hone.adapter(version)
    if as_json:
        print_json(row)
        return
    for name, value in _lines(row):
        typer.secho(f"{name:<14}", bold=True, nl=False)
        typer.echo(shown(value))


def _lines(row: Row) -> Iterator[tuple[str, object]]:
    """What a person wants to know first; the rest is in --json."""
    manifest = row.get("manifest") or {}
    for name in ("version", "segment", "state", "parent", "created_at"):
        yield name.replace("_", " "), row.get(name)
    for name in ("cycle", "reward_version", "people", "picks", "thumbs"):
        if manifest.get(name) is not None:
            yield name.replace("_", " "), manifest[name]
    verdict = row.get("verdict") or manifest.get("verdict") or {}
    if "passed" in verdict:
        yield "gate", "passed" if verdict["passed"] else "refused"
    for reason in verdict.get("reasons") or ():
        yield "", reason
    for name, value in (row.get("votes") or {}).items():
        yield name.replace("_", " "), value


@app.command()
def promote(
    version: Version,
    segment: Segment = "default",
    reason: Reason = "",
    expecting: Expecting = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let VERSION serve."""
    body = {"version": version, "reason": reason, **({} if expecting is None else {"expecting": expecting})}
    _move("promote", body, segment, url, key, data_dir, as_json=as_json)


@app.command()
def rollback(
    segment: Segment = "default",
    reason: Reason = "",
    to: Annotated[
        int | None, typer.Option("--to", min=0, envvar="HONE_TO", help="Back to this version.")
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Back to what served before; again goes further back."""
    body = {"reason": reason, **({} if to is None else {"to": to})}
    _move("rollback", body, segment, url, key, data_dir, as_json=as_json)


@app.command()
def rollforward(
    segment: Segment = "default",
    reason: Reason = "",
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Undo the last rollback."""
    _move("rollforward", {"reason": reason}, segment, url, key, data_dir, as_json=as_json)


@app.command()
def pin(
    segment: Segment = "default",
    reason: Reason = "",
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Keep what serves: nothing is promoted automatically until unpinned."""
    _move("pin", {"reason": reason}, segment, url, key, data_dir, as_json=as_json)


@app.command()
def unpin(
    segment: Segment = "default",
    reason: Reason = "",
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Allow automatic promotions again, also after a rollback."""
    _move("unpin", {"reason": reason}, segment, url, key, data_dir, as_json=as_json)


_DONE = {
    "promote": "promoted",
    "rollback": "rolled back",
    "rollforward": "rolled forward",
    "pin": "pinned",
    "unpin": "unpinned",
}


def _move(
    verb: str,
    body: Row,
    segment: str,
    url: str | None,
    key: str | None,
    data_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    with installation(url, key, data_dir) as hone:
        row, where = hone.move(verb, segment=segment, body=body), hone.where
    if as_json:
        print_json(row)
        return
    version = row.get("version")
    serves = "the bare base (version 0)" if version == 0 else f"version {version}"
    if "serving" not in row:
        when = "a server that follows this record will take it up"
    else:
        when = "it is serving" if row["serving"] else f"not serving yet: {row.get('pending') or 'loading'}"
    if verb in {"pin", "unpin"}:
        typer.echo(f"{segment}: {_DONE[verb]}; {serves} serves ({where})")
    else:
        typer.echo(
            f"{segment}: {_DONE[verb]}; champion is {serves}, was {row.get('previous')}; {when} ({where})"
        )
