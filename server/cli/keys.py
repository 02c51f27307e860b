"""`hone keys`: make, list and revoke API keys. A token is printed once, by the command that makes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from server.cli.installation import installation
from server.cli.words import AsJson, DataDir, Key, Url, Verbs, print_json, print_table

app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Make, list and revoke API keys.")


class Scope(StrEnum):
    CHAT = "chat"
    FEEDBACK = "feedback"
    OPERATOR = "operator"
    ADMIN = "admin"


@app.command()
def create(
    client: Annotated[
        str, typer.Option(envvar="HONE_CLIENT", help="The frontend it belongs to; made when new.")
    ],
    name: Annotated[str, typer.Option(envvar="HONE_NAME", help="What to call the key.")] = "key",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(envvar="HONE_SCOPE", help="May be given several times.", show_default="chat, feedback"),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(min=0.001, max=36_500, envvar="HONE_DAYS", help="Expires after this many days."),
    ] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once."""
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    body = {
        "client": client,
        "name": name,
        "scopes": [str(one) for one in scope or (Scope.CHAT, Scope.FEEDBACK)],
        **({} if expires is None else {"expires_at": expires}),
    }
    with installation(url, key, data_dir) as hone:
        made = hone.create_key(body)
    if as_json:
        print_json(made)
        return
    # The token alone on standard output, so that `KEY=$(hone keys create …)` works.
    typer.echo("Keep this key; it is not shown again:", err=True)
    typer.echo(made["token"])


@app.command("list")
def list_keys(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """All keys, without their secrets."""
    with installation(url, key, data_dir) as hone:
        rows = hone.keys()
    if as_json:
        print_json(rows)
        return
    columns = {
        "id": "id",
        "client": "client",
        "name": "name",
        "scopes": "scopes",
        "created_at": "made (UTC)",
        "expires_at": "expires",
        "revoked_at": "revoked",
    }
    print_table(columns, rows, empty="no keys yet: the first `hone serve` makes one")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `hone keys list` shows it: key_…")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """End a key, and all sessions made with it, within two seconds."""
    with installation(url, key, data_dir) as hone:
        hone.revoke_key(key_id)
    typer.echo(f"{key_id} is revoked")
