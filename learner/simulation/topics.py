"""The topics the assistant knows, read from `content/*.toml`. Knows nothing of sentences, users or replies."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Topic:
    """One subject with all that can be said of it; `content/README.md` explains each field's form."""

    name: str
    title: str
    asks: tuple[str, ...]
    nouns: tuple[str, ...]
    problems: tuple[str, ...]
    keywords: tuple[str, ...]
    tips: tuple[str, ...]
    facts: tuple[str, ...]
    questions: tuple[str, ...]
    expert: str
    """Somebody who does this for a living, with the article."""
    assumed: str
    """The pronoun that a careless speaker gives to that person."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """What people ask about: the assistant's own word for the topic is one of theirs, once it has been said."""
        return (*self.nouns, self.title)


def load_topics() -> tuple[Topic, ...]:
    """All of them, in the order of their files' names and then of their tables."""
    folder = files(__package__).joinpath("content")
    tables = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name
    )
    return tuple(
        _topic(entry) for file in tables for entry in tomllib.loads(file.read_text(encoding="utf-8"))["topic"]
    )


def _topic(entry: dict[str, Any]) -> Topic:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return Topic(**values)
