"""`hone db`: bring the record's schema up to date, check it, copy it. Always the database itself, never REST."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.words import DataDir, Verbs, make_data_dir, settings_from

app = typer.Typer(cls=Verbs, no_args_is_help=True, help="Bring the database up to date, check it, copy it.")

Database = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="HONE_DATABASE_URL",
        show_default="SQLite in the data directory",
        help="SQLAlchemy URL.",
    ),
]


@app.command()
def upgrade(data_dir: DataDir = None, database_url: Database = None) -> None:
    """Create the database, or bring it to this version's schema."""
    from server.store import migrate

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    make_data_dir(settings)
    migrate.upgrade(settings.resolved_database_url)
    typer.echo(f"the database is up to date (revision {migrate.check(settings.resolved_database_url)})")


@app.command()
def check(data_dir: DataDir = None, database_url: Database = None) -> None:
    """Say whether the schema is the one this version needs; exit code 1 when not."""
    from server.store import migrate

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    typer.echo(f"the database is up to date (revision {migrate.check(settings.resolved_database_url)})")


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="File to write; must not exist yet.")],
    data_dir: DataDir = None,
    database_url: Database = None,
) -> None:
    """Copy the record to TARGET; a running server need not be stopped."""
    from server.store import migrate

    settings = settings_from(data_dir=data_dir, database_url=database_url)
    migrate.backup(settings.resolved_database_url, target)
    typer.echo(f"the record is copied to {target}")
