"""An evaluation as a person reads it: two small tables and a sentence on the taste. Prints, computes nothing."""

from __future__ import annotations

from typing import Any

import typer


def print_evaluation(table: dict[str, Any]) -> None:
    from rich.console import Console

    first = next(iter(table["versions"]))
    typer.echo(f"taste {table['taste']}, {table['prompts']} prompts, wins against version {first}")
    Console().print(_results(table))
    if table["wins"]:
        typer.echo(f"\nagainst version {first}, prompt by prompt: {_headline(table)}")
        Console().print(_against_the_first(table))
    if "draws" in table:
        typer.echo(f"\n{on_the_taste(table)}")


def left_out_of(asked: int, *, found: int, used: int) -> str:
    """Why fewer prompts were compared than were asked for; empty when all were."""
    reasons = [f"there are {found} different ones"] if found < asked else []
    reasons += [f"{found - used} too long for the context"] if used < found else []
    return f"asked for {asked} prompts, used {used}: {', '.join(reasons)}" if reasons else ""


def on_the_taste(table: dict[str, Any]) -> str:
    """Whether this taste can be served at all, in a sentence or two."""
    draws, first = table["draws"], next(iter(table["versions"]))
    verdict = {
        True: "There is enough to prefer: a fair taste.",
        False: "Too little to prefer: not a fair taste (ties at most 15 %, best of 16 at least 85 %).",
        None: "Whether that is fair shows with --draws 16.",
    }[draws["fair"]]
    return (
        f"of {draws['per_prompt']} replies of version {first} to each prompt, {draws['ties']:.1%} of the pairs tie; "
        f"the taste's best of {draws['best_of']} wins {draws['best_wins']['rate']:.1%} against one more. {verdict}"
    )


def _headline(table: dict[str, Any]) -> str:
    separated = table.get("separated")
    lost = "what was lost in points, and at most"
    if separated is None:
        return lost
    return f"wins on the {separated['prompts']} prompts that the taste separates, and {lost}"


def _results(table: dict[str, Any]) -> Any:
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("version", "taste", "tokens", "on topic", "well formed", "wins", "95 % CI", "ties"):
        shown.add_column(heading, justify="right")
    wins = {name.split(">")[0]: row for name, row in table["wins"].items()}
    for version, row in table["versions"].items():
        won = wins.get(version)
        shown.add_row(
            version,
            f"{row['taste_mean']:.3f}",
            f"{row['tokens_mean']:.1f}",
            _percent(row["on_topic"]),
            _percent(row["well_formed"]),
            *_won(won),
            str(won["ties"]) if won else "–",
        )
    return shown


def _against_the_first(table: dict[str, Any]) -> Any:
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    separated = table.get("separated")
    headings = ["wins", "95 % CI"] if separated else []
    for heading in ("version", *headings, "on topic lost", "at most", "well formed lost", "at most"):
        shown.add_column(heading, justify="right")
    for name, lost in table["losses"].items():
        won = _won(separated["wins"].get(name)) if separated else ()
        shown.add_row(name.split(">")[0], *won, *_lost(lost["on_topic"]), *_lost(lost["well_formed"]))
    return shown


def _won(won: dict[str, Any] | None) -> tuple[str, str]:
    if won is None:
        return "–", "–"
    return _percent(won["rate"]), f"{won['ci95'][0]:.1%} – {won['ci95'][1]:.1%}"


def _lost(lost: dict[str, float] | None) -> tuple[str, str]:
    return ("–", "–") if lost is None else (f"{100 * lost['mean']:.1f}", f"{100 * lost['upper95']:.1f}")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
