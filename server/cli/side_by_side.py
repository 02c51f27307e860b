"""Two versions' replies and what changed between them, in a terminal: two columns where there is room for two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from server.cli.compare import Case, Contrast, question_of
from server.cli.installation import Row
from server.cli.words import prose, shown
from server.manner import Manner

WIDE = 100
"""Columns of a terminal from which two replies stand side by side."""
LONGEST_QUESTION = 600
"""Characters of a prompt that are shown; replies are shown whole."""
SHARES = {
    "lists": "with a list",
    "questions": "with a question",
    "emoji": "with emoji",
    "exclamations": "with an exclamation mark",
}


class Line(NamedTuple):
    """One row of what changed."""

    name: str
    first: str
    second: str
    change: str = ""


def print_contrast(found: Contrast, console: Console | None = None) -> None:
    """Every prompt with both replies, then the counts, then what the registry knows."""
    console = console or Console()
    for number, case in enumerate(found.cases, start=1):
        console.print(_heading(case, f"{number} of {len(found.cases)}"))
        console.print(_replies(found, case, wide=console.width >= WIDE))
    console.print(
        Text(f"What changed from {_named(found.versions[0])} to {_named(found.versions[1])}", "bold")
    )
    console.print(_changes(found))
    console.print(Text(_footing(found), "dim"))


def _heading(case: Case, place: str) -> RenderableType:
    """The question; of a longer conversation also how much was said before it."""
    question = prose(question_of(case.messages)).strip()
    if len(question) > LONGEST_QUESTION:
        question = question[:LONGEST_QUESTION] + "…"
    heading = Text.assemble((f"{place}  ", "dim"), (question, "bold"))
    before = sum(message["role"] != "system" for message in case.messages) - 1
    if before > 0:
        heading.append(f"\nafter {_count(before, 'earlier message')}", "dim")
    return heading


def _replies(found: Contrast, case: Case, *, wide: bool) -> RenderableType:
    names = [_title(found, version) for version in found.versions]
    replies = [_reply(said.text, said.tokens) for said in case.replies]
    if wide:
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 3, 0, 0), header_style="cyan")
        for name in names:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*replies)
        return Padding(table, (0, 0, 1, 2))
    return Group(
        *(
            Padding(Group(Text(name, "cyan"), reply), (0, 0, 1, 2))
            for name, reply in zip(names, replies, strict=True)
        )
    )


def _reply(text: str, tokens: int) -> Text:
    words = prose(text).strip()
    body = Text(words, overflow="fold") if words else Text("(empty)", "dim")
    return body.append(f"\n{_count(tokens, 'token')}", "dim")


def _changes(found: Contrast) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("", *(_title(found, version) for version in found.versions), "change"):
        table.add_column(name, overflow="fold")
    for line in (*_manner_lines(*found.manners), *_fact_lines(*found.facts)):
        # Text, not markup: a segment's or a state's name is never read as colours.
        table.add_row(*map(Text, line))
    return table


def _manner_lines(first: Manner, second: Manner) -> Iterator[Line]:
    for unit, one, other in (
        ("tokens", first.tokens, second.tokens),
        ("words", first.words, second.words),
    ):
        yield Line(f"{unit} per reply", f"{one:.1f}", f"{other:.1f}", _signed(other - one, "{:.1f}"))
    for name, words in SHARES.items():
        one, other = getattr(first, name), getattr(second, name)
        yield Line(words, f"{one:.0%}", f"{other:.0%}", _signed(100 * (other - one), "{:.0f} points"))


def _fact_lines(first: Row, second: Row) -> Iterator[Line]:
    """What the registry says of either; a line that would be empty for both is left out."""
    says = {
        "state": lambda facts: facts.get("state"),
        "made (UTC)": lambda facts: facts.get("created_at"),
        "continues": lambda facts: f"version {facts['parent']}" if "parent" in facts else None,
        "learned from": _learned_from,
        "gate": lambda facts: {True: "passed", False: "refused"}.get(facts.get("passed")),
        "judged against its parent": _judged,
        "KL from the base": lambda facts: f"{facts['kl']:.2f} nats per reply" if "kl" in facts else None,
        "thumbs on its replies": _thumbs,
    }
    for name, say in says.items():
        one, other = say(first), say(second)
        if one or other:
            yield Line(name, shown(one), shown(other))


def _learned_from(facts: Row) -> str | None:
    votes = [_count(facts[kind], kind[:-1]) for kind in ("picks", "thumbs") if facts.get(kind)]
    if not votes:
        return None
    people = facts.get("people")
    return " and ".join(votes) + (f" by {_count(people, 'person', 'people')}" if people else "")


def _judged(facts: Row) -> str | None:
    if "win_rate" not in facts:
        return None
    said = f"wins {facts['win_rate']:.0%}"
    if "judged_on" in facts:
        said += f" of {_count(facts['judged_on'], 'prompt')}"
    return said + (f", at least {facts['win_rate_at_least']:.0%}" if "win_rate_at_least" in facts else "")


def _thumbs(facts: Row) -> str | None:
    votes = facts.get("votes") or {}
    up, down = votes.get("thumb_up", 0), votes.get("thumb_down", 0)
    return f"{up} up, {down} down" if up or down else None


def _footing(found: Contrast) -> str:
    """What these figures rest on, so that nobody takes a glance for a measurement."""
    asked = (
        "asked last by people here" if found.from_record else "built in, since nobody has asked anything yet"
    )
    said = f"{_count(len(found.cases), 'prompt')}, {asked}; identical replies: {found.identical}."
    if found.left_out:
        said += f" {_count(found.left_out, 'prompt')} too long for the context left out."
    return said + " A glance, no measurement: each version wrote one reply to each."


def _title(found: Contrast, version: int) -> str:
    return f"version {version}" + (" · serves now" if version == found.champion else "")


def _named(version: int) -> str:
    return "version 0 (the bare base)" if version == 0 else f"version {version}"


def _signed(change: float, form: str) -> str:
    """A change with its sign; one that rounds to nothing is no change."""
    size = form.format(abs(change))
    if not any(digit in size for digit in "123456789"):
        return "–"
    return ("+" if change > 0 else "−") + size


def _count(number: float, one: str, many: str | None = None) -> str:
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"
