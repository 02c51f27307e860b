"""`hone adapters`: see what was learned, and move what serves. A running server is asked; else the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from server.cli import compare
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
from server.errors import NotFound

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
    """All versions, newest first, and under them which one serves in each segment."""
    with installation(url, key, data_dir) as hone:
        rows = hone.adapters(segment=segment, state=state)
        lanes = [] if as_json else hone.segments()
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
    print_table(columns, rows, empty="no versions of that kind" if segment or state else "no versions yet")
    for lane in lanes:
        if segment in (None, lane["name"]):
            typer.echo(_standing(lane))


HOLDS = {
    "pinned": "pinned: nothing is promoted automatically before `unpin`",
    "held": "held since a rollback: nothing is promoted automatically before `unpin` or enough newer votes",
}


def _standing(lane: Row) -> str:
    """What serves in a segment, since when, and what holds it there."""
    said = f"{lane['name']}: {_named(lane['champion'])} "
    if lane.get("serving", True):
        said += "serves" + (f" since {shown(lane['since'])} UTC" if lane.get("since") else "")
    else:
        said += f"shall serve and does not yet: {lane['pending']}"
    return " · ".join([said, *(words for hold, words in HOLDS.items() if lane[hold])])


def _named(version: int | None) -> str:
    return "the bare base (version 0)" if version == 0 else f"version {version}"


@app.command()
def show(
    version: Version,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """One version: where it comes from, what the gate said and why, how its replies are liked."""
    if version == 0:
        raise NotFound("version 0 is the bare base: it was made by nobody here, and has nothing to show")
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
    for check in (row.get("checks") or ())[:1]:
        yield "at load", f"{check['outcome']}: {check['detail']}"
    for name, value in (row.get("votes") or {}).items():
        yield name.replace("_", " "), value


app.command()(compare.compare)


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
    serves = _named(row.get("version"))
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
