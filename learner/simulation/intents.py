"""What a user's message wants and which facts it states. Knows the users' phrases, nothing of replies.

messages -> facts stated so far + the intent of the last user turn
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from learner.simulation import sayings
from learner.simulation.outside import fixed
from learner.simulation.sayings import Kind
from learner.simulation.topics import Topic

Messages = Sequence[Mapping[str, str]]

WORD = r"[^\W\d_][\w'-]*"
_STATED = {
    "name": (
        rf"\b(?:my name is|my name's|(?:you can |people )?call me|the name is) ({WORD})",
        rf"\b(?:i am|i'm|im) (?:called )?({WORD})(?=\s*(?:[.,!?;]|$|\band\b))",
        rf"({WORD}) is my name\b",
    ),
    "town": (rf"\b(?:i live in|i am from|i'm from|i come from|my home town is) ({WORD})",),
    "dog": (rf"\b(?:my dog is called|my dog's name is|i have a dog (?:called|named)) ({WORD})",),
    "cat": (rf"\b(?:my cat is called|my cat's name is|i have a cat (?:called|named)) ({WORD})",),
}
_STATED_PATTERNS = [
    (fact, re.compile(pattern, re.IGNORECASE)) for fact, patterns in _STATED.items() for pattern in patterns
]
_NOT_NAMES = frozenset((
    "a", "the", "not", "so", "very", "really", "just", "also", "now", "in", "on", "at", "off", "from",
    "what", "that", "this", "it", "who", "here", "there", "tired", "fine", "good", "ok", "okay", "well",
    "sad", "happy", "bored", "back", "hungry", "sorry", "new", "curious", "sure", "lost", "stuck",
    "nervous", "sick", "ill", "old", "young", "great", "busy", "afraid", "done", "ready", "home", "alone",
    "lonely", "angry", "down", "scared", "late", "early", "broke", "single", "vegan", "vegetarian", "maybe",
    "later", "when", "if",
))  # fmt: skip
_NOT_NAMED = re.compile(r"[a-z].*(?:ing|ed|less|ful|ic|able|ive|ant)")
"""How words end that somebody may be, in lower case, without being called so."""
_LONG = {
    "whats": "what is", "hows": "how is", "whos": "who is", "wheres": "where is", "thats": "that is", "im": "i am",
    "ive": "i have", "dont": "do not", "doesnt": "does not", "didnt": "did not", "isnt": "is not", "cant": "can not",
    "cannot": "can not", "wont": "will not",
}  # fmt: skip
_LEADING = (
    "hi", "hello", "hey", "please", "quick question", "ok", "so", "good morning", "well", "and", "but",
    "sorry", "wait", "yes", "no", "hmm",
)  # fmt: skip
_TRAILING = ("please", "thanks", "thank you")


class Intent(NamedTuple):
    """`topic` is set for TOPIC, MORE and SHORTER, `fact` for STATE and RECALL, `words` for DRILL; else empty."""

    kind: Kind
    topic: str = ""
    fact: str = ""
    words: str = ""


class Heard(NamedTuple):
    intent: Intent
    facts: dict[str, str]
    """The newest value of each stated fact, as the user wrote it."""
    topic: str = ""
    """What was last talked about; a follow-up is about it."""


def _normal(text: str) -> str:
    words = re.sub(r"[^\w\s]", "", text.lower().replace("-", " ")).split()
    return " ".join(_LONG.get(word, word) for word in words)


class Listener:
    """Understands every phrase of the world exactly, and other people's words by their key words."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self._table = _table(tuple(topics))
        self._keywords = {word: topic.name for topic in topics for word in topic.keywords}

    def hear(self, messages: Messages) -> Heard:
        facts: dict[str, str] = {}
        intent, topic = Intent(Kind.OUTSIDE), ""
        for message in messages:
            if message["role"] != "user":
                continue
            intent, stated = self._understand(message["content"].replace("’", "'"))
            facts |= stated
            if intent.kind in (Kind.MORE, Kind.SHORTER):
                intent = intent._replace(topic=topic) if topic else Intent(Kind.ABILITIES)
            topic = intent.topic or topic
        return Heard(intent, facts, topic)

    def _understand(self, text: str) -> tuple[Intent, dict[str, str]]:
        if words := _drilled(text):
            return Intent(Kind.DRILL, words=words), {}
        if known := self._lookup(text):
            return known, {}
        stated, rest = _take_facts(text)
        if known := self._lookup(rest):
            greets = stated and known.kind in (Kind.HELLO, Kind.OKAY)
            return (Intent(Kind.STATE, fact=next(reversed(stated))) if greets else known), stated
        words_heard = _normal(rest).split()
        named = [self._keywords[word] for word in words_heard if word in self._keywords]
        if named:
            return Intent(Kind.TOPIC, topic=max(named, key=named.count)), stated
        # A word or two beside the fact ("well", "nice day") are not yet a question of their own.
        if stated and len(words_heard) <= 2:
            return Intent(Kind.STATE, fact=next(reversed(stated))), stated
        return Intent(Kind.OUTSIDE), stated

    def _lookup(self, text: str) -> Intent | None:
        """The phrase's intent, trying again without each greeting and courtesy around it."""
        plain = _normal(text)
        while plain not in self._table:
            shorter = next((plain[len(w) + 1 :] for w in _LEADING if plain.startswith(w + " ")), None)
            if shorter is None:
                shorter = next((plain[: -len(w) - 1] for w in _TRAILING if plain.endswith(" " + w)), None)
            if shorter is None:
                return None
            plain = shorter
        return self._table[plain]


def _drilled(text: str) -> str:
    head, colon, words = text.partition(": ")
    is_drill = colon and any(drill.startswith(head.lower() + ":") for drill in sayings.DRILLS)
    return words if is_drill else ""


def _take_facts(text: str) -> tuple[dict[str, str], str]:
    """The facts that a message states, in their order, and what is left of it without them."""
    found: list[tuple[int, str, str]] = []
    for fact, pattern in _STATED_PATTERNS:
        match = pattern.search(text)
        if match and _may_be_called(match.group(1)):
            found.append((match.start(), fact, match.group(1)))
            text = text[: match.start()] + " " * len(match.group(0)) + text[match.end() :]
    return {fact: value for _, fact, value in sorted(found)}, text


def _may_be_called(word: str) -> bool:
    return word.lower() not in _NOT_NAMES and not _NOT_NAMED.fullmatch(word)


@cache
def _table(topics: tuple[Topic, ...]) -> dict[str, Intent]:
    """Some fifty thousand phrases, the same for every listener to the same topics."""
    return dict(_closed_phrases(topics))


def _closed_phrases(topics: Sequence[Topic]) -> Iterator[tuple[str, Intent]]:
    """Every phrase with a fixed wording; later entries win, so the more particular come last."""
    yield from ((_normal(says), Intent(Kind.OUTSIDE)) for says in fixed())
    yield from ((_normal(says), Intent(kind)) for says, kind in sayings.moods())
    for topic in topics:
        intent = Intent(Kind.TOPIC, topic=topic.name)
        for ask, frame in itertools.product(topic.asks, sayings.ASK):
            yield _normal(frame.format(ask=ask)), intent
        for noun, frame in itertools.product(topic.subjects, sayings.ABOUT):
            yield _normal(frame.format(noun=noun)), intent
        for word, frame in itertools.product(topic.keywords, sayings.WORD_ALONE):
            yield _normal(frame.format(word=word)), intent
        for problem, frame in itertools.product(topic.problems, sayings.PROBLEM):
            yield _normal(frame.format(problem=problem)), intent
    for fact, recalls in sayings.RECALLS.items():
        yield from ((_normal(says), Intent(Kind.RECALL, fact=fact)) for says in recalls)
    yield from ((_normal(says), Intent(Kind.MORE)) for says in sayings.follow_ups())
    for kind, all_says in sayings.SAYS.items():
        yield from ((_normal(says), Intent(kind)) for says in all_says)
