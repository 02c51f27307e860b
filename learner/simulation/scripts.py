"""What simulated users say: prompts of the world, or of a file in any of the shapes such files come in.

Also draws the line between prompts that may be rated and prompts kept for evaluation. No HTTP, no tastes.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from learner.simulation.world import World
from server.errors import SetupError

Message = dict[str, str]

_HELD_OUT_OF = 4
"""One conversation in this many is only ever evaluated on."""
_FEWEST_TO_SPLIT = 8
"""Prompts of a file; fewer are too few to be kept apart."""


@dataclass(frozen=True)
class Script:
    """The opening of a conversation, ending in a user's message, and what the user might say after the reply."""

    messages: tuple[Message, ...]
    follow_ups: tuple[str, ...] = ()


def is_held_out(messages: tuple[Message, ...]) -> bool:
    """Whether this conversation belongs to evaluation: by its words, so no choice of seeds can mix the two."""
    said = json.dumps([[message["role"], message["content"].casefold()] for message in messages])
    return hashlib.sha256(said.encode()).digest()[0] % _HELD_OUT_OF == 0


class Source(Protocol):
    """Where scripts come from: the same number and attempt give the same script."""

    def script(self, number: int, attempt: int = 0) -> Script: ...


class WorldSource:
    """The simulated world's users; `held_out` ones are never among the others, whatever the seeds."""

    def __init__(self, world: World, *, seed: int, held_out: bool) -> None:
        self._world, self._seed, self._held_out = world, seed, held_out

    def script(self, number: int, attempt: int = 0) -> Script:
        rng = random.Random(f"script:{self._seed}:{number}:{attempt}")
        while True:
            messages = tuple(self._world.prompt(rng))
            if is_held_out(messages) is self._held_out:
                return Script(messages, (self._world.prompt(rng)[-1]["content"],))


class FileSource:
    """A file's prompts, shuffled once, each used before any is used again; `held_out` as in the world.

    `shared` says that the file was too small for that, and its prompts are both rated and evaluated on.
    """

    def __init__(self, path: Path, *, seed: int, held_out: bool) -> None:
        scripts = read_scripts(path)
        ours = [script for script in scripts if is_held_out(script.messages) is held_out]
        self.shared = len(scripts) < _FEWEST_TO_SPLIT or len(ours) in (0, len(scripts))
        chosen = scripts if self.shared else ours
        self._order = random.Random(f"scripts:{seed}").sample(chosen, len(chosen))

    def __len__(self) -> int:
        return len(self._order)

    def script(self, number: int, attempt: int = 0) -> Script:
        return self._order[(number + attempt) % len(self._order)]


def read_scripts(path: Path) -> list[Script]:
    """Every prompt of a JSONL file, a JSON list, or a text file with one prompt a line.

    Raises SetupError naming the line when an object holds no prompt, and when the file holds none at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read prompts from {path}: {error}") from error
    scripts = [
        _script_of(row, where=f"{path}, {place}")
        for place, row in _rows(text, is_json=path.suffix == ".json")
    ]
    if not scripts:
        raise SetupError(f"{path} holds no prompts")
    return scripts


def _rows(text: str, *, is_json: bool) -> Iterator[tuple[str, Any]]:
    if is_json:
        try:
            whole = json.loads(text)
        except ValueError:
            whole = None
        if isinstance(whole, list):
            yield from ((f"entry {number}", row) for number, row in enumerate(whole, 1))
            return
    # Not splitlines(): it also breaks at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.strip():
            yield f"line {number}", _json_or_text(line)


def _json_or_text(line: str) -> Any:
    if not line.startswith(("{", "[", '"')):
        return line
    try:
        return json.loads(line)
    except ValueError:
        return line


def _script_of(row: Any, *, where: str) -> Script:
    if isinstance(row, str) and row.strip():
        return Script((_user(row),))
    if isinstance(row, list):
        row = {"messages": row} if all(isinstance(item, dict) for item in row) else {"turns": row}
    if isinstance(row, dict):
        script = _from_turns(row) or _from_messages(row) or _from_text(row)
        if script:
            return script
    raise SetupError(
        f"{where}: no prompt found; known shapes are {{messages}}, {{turns}}, {{instruction, input}}, {{prompt}}, "
        "{question} and plain text"
    )


def _from_turns(row: dict[str, Any]) -> Script | None:
    turns = row.get("turns")
    if not (isinstance(turns, list) and turns and all(isinstance(turn, str) and turn for turn in turns)):
        return None
    return Script((_user(turns[0]),), tuple(turns[1:]))


def _from_messages(row: dict[str, Any]) -> Script | None:
    """Chat messages under `messages`, `prompt` or `conversation`; replies after the last user message are dropped."""
    for name in ("messages", "prompt", "conversation", "conversations"):
        listed = row.get(name)
        if isinstance(listed, list) and all(isinstance(item, dict) for item in listed):
            messages = [
                {"role": str(item["role"]), "content": item["content"]}
                for item in listed
                if item.get("role") in {"system", "user", "assistant"}
                and isinstance(item.get("content"), str)
            ]
            while messages and messages[-1]["role"] != "user":
                messages.pop()
            if messages:
                return Script(tuple(messages))
    return None


def _from_text(row: dict[str, Any]) -> Script | None:
    for name in ("instruction", "prompt", "question", "query", "text"):
        text = row.get(name)
        if isinstance(text, str) and text.strip():
            given = row.get("input") or next(
                (case.get("input") for case in row.get("instances") or () if isinstance(case, dict)), ""
            )
            return Script((_user(f"{text}\n\n{given}" if given else text),))
    return None


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
