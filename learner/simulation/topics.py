"""The topics the assistant knows, read from `topics.toml`. Knows nothing of sentences, users or replies."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Topic:
    """One subject with all that can be said of it; `topics.toml` explains each field's form."""

    name: str
    title: str
    asks: tuple[str, ...]
    nouns: tuple[str, ...]
    problems: tuple[str, ...]
    keywords: tuple[str, ...]
    tips: tuple[str, ...]
    facts: tuple[str, ...]
    questions: tuple[str, ...]


def load_topics() -> tuple[Topic, ...]:
    text = files(__package__).joinpath("topics.toml").read_text(encoding="utf-8")
    return tuple(_topic(entry) for entry in tomllib.loads(text)["topic"])


def _topic(entry: dict[str, Any]) -> Topic:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return Topic(name=entry["name"], title=entry["title"], **lists)
