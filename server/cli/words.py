"""What all verbs share: options that mean the same everywhere, settings made from them, errors as one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from server.errors import HoneError, SetupError
from server.settings import Settings

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="HONE_DATA_DIR",
        show_default="./data",
        help="Where the database and adapters live.",
    ),
]
VllmUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--vllm-url",
        envvar="HONE_VLLM_URL",
        show_default="none",
        help="A vLLM server of the base model, for --engine vllm; may be given several times.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="HONE_URL", show_default="the server of the data directory", help="A running Hone."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="HONE_API_KEY",
        show_default="<data-dir>/admin.key",
        show_envvar=True,
        help="API key for that server.",
    ),
]
Segment = Annotated[str, typer.Option("--segment", envvar="HONE_SEGMENT", help="The lane to act on.")]
Reason = Annotated[str, typer.Option("--reason", envvar="HONE_REASON", help="Why, for the promotion log.")]
AsJson = Annotated[bool, typer.Option("--json", envvar="HONE_JSON", help="Print JSON for programs.")]


KEPT = frozenset("\n\u200c\u200d")
"""Line ends, and the two joiners that scripts and emoji are written with."""
UNSEEN = frozenset({"Cc", "Cf", "Cs"})
"""Unicode's controls, marks such as those that turn the direction of writing, and halves of characters."""


class Verbs(TyperGroup):
    """A group whose deliberate errors end in one clear line and exit code 1, never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HoneError as error:
            typer.secho(f"error: {error.message}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from error


def settings_from(**options: object) -> Settings:
    """Settings with the given options on top; those that are None were not given. Raises SetupError."""
    from pydantic import ValidationError

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = "; ".join(f"HONE_{str(at['loc'][0]).upper()}: {at['msg']}" for at in error.errors())
        raise SetupError(f"settings cannot stand: {wrong}") from error


def joined(values: Sequence[str] | None) -> str | None:
    """An option that may be given several times, as the setting that holds them all."""
    return ",".join(values) if values else None


def make_data_dir(settings: Settings) -> None:
    """For this user alone; one that is there already stays as it is. Raises SetupError when there can be none."""
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot make the data directory {settings.data_dir}: {error.strerror}") from error


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(
    columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], *, empty: str, title: str | None = None
) -> None:
    """`columns` maps a row's key (dots go deeper) to the heading shown; `empty` is said when there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo(empty)
        return
    table = Table(title=title, box=None, header_style="bold", pad_edge=False)
    for heading in columns.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Text, not markup: what users wrote may hold brackets.
        table.add_row(*(Text(shown(dig(row, key))) for key in columns))
    Console().print(table)


def dig(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def prose(text: str) -> str:
    """What a stranger wrote, for the terminal: its lines and joined characters stay, control characters do not."""
    from unicodedata import category

    lines = "\n".join(text.expandtabs(4).splitlines())
    return "".join(char for char in lines if char in KEPT or category(char) not in UNSEEN)


def shown(value: Any) -> str:
    """A value as a cell: no `None`, no half-seconds, no control characters from strangers."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(shown(item) for item in value)
    text = str(value)
    if len(text) >= 19 and text[4:5] == "-" and text[10:11] in {"T", " "}:
        text = text[:19].replace("T", " ")
    return "".join(char if char.isprintable() else " " for char in text)
