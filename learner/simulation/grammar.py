"""Every sentence the assistant can say, each with what it is and what it shows. Knows nothing of users.

The world renders replies from it and the parser reads them back by it: what is not in here is not well-formed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from learner.simulation import phrases, styles
from learner.simulation.intents import WORD
from learner.simulation.sayings import FACTS
from learner.simulation.styles import Tone
from learner.simulation.topics import Topic


class Role(StrEnum):
    """A sentence's part in a reply, in the order in which the parts come."""

    GREETING = "greeting"
    FLATTERY = "flattery"
    OPENER = "opener"
    BODY = "body"
    EXPERT = "expert"
    DISCLAIMER = "disclaimer"
    CLOSER = "closer"
    QUESTION = "question"


class Line(NamedTuple):
    """What a sentence is: `key` says what it talks about, `item` what it says whatever the wording."""

    role: Role
    key: str
    item: str
    tone: Tone | None = None
    hedged: bool = False
    assumes: bool = False


class Spoken(NamedTuple):
    line: Line
    slots: dict[str, str]
    """What stands in the open places: facts about the user, titles of topics."""


ANY = "any"
"""The key of sentences that fit everywhere."""
CHAT = "chat"
"""The key of those that fit wherever no topic is talked about."""


def topic_key(name: str) -> str:
    return f"topic:{name}"


def wordings(item: str, *, is_fact: bool, hedged: bool) -> Iterator[str]:
    """Every way to put one tip or fact."""
    frames: tuple[str, ...] = styles.TIP_HEDGED if hedged else styles.TIP_SURE
    if is_fact:
        frames = styles.FACT_HEDGED if hedged else styles.FACT_SURE
    return (frame.format(item=item, Item=item[0].upper() + item[1:]) for frame in frames)


def referrals(expert: str, pronoun: str) -> list[str]:
    """Every way to send the user to somebody who knows."""
    capital = expert[0].upper() + expert[1:]
    return [frame.format(expert=expert, Expert=capital, they=pronoun) for frame in styles.ASK_EXPERT]


class Grammar:
    def __init__(self, topics: Sequence[Topic]) -> None:
        self._lines: dict[str, Line] = {}
        self._slotted: list[tuple[re.Pattern[str], Line]] = []
        titles = "|".join(re.escape(topic.title) for topic in topics)
        for text, line in _all_lines(topics):
            if "{" in text:
                self._slotted.append((_pattern(text, titles), line))
            else:
                known = self._lines.setdefault(text, line)
                assert known == line, f"{text!r} says two things: {known} and {line}"

    def __len__(self) -> int:
        return len(self._lines) + len(self._slotted)

    def find(self, sentence: str) -> Spoken | None:
        if line := self._lines.get(sentence):
            return Spoken(line, {})
        for pattern, line in self._slotted:
            if match := pattern.fullmatch(sentence):
                return Spoken(line, match.groupdict())
        return None


def _pattern(text: str, titles: str) -> re.Pattern[str]:
    pattern = re.escape(text).replace(r"\{", "{").replace(r"\}", "}")
    for fact in FACTS:
        pattern = pattern.replace(f"{{{fact}}}", f"(?P<{fact}>{WORD})")
    for slot in "abc":
        pattern = pattern.replace(f"{{{slot}}}", f"(?P<{slot}>{titles})")
    return re.compile(pattern)


def _all_lines(topics: Sequence[Topic]) -> Iterator[tuple[str, Line]]:
    anywhere = {
        Role.GREETING: styles.GREETINGS,
        Role.FLATTERY: styles.FLATTERY,
        Role.DISCLAIMER: styles.DISCLAIMERS,
    }
    for role, texts in anywhere.items():
        yield from ((text, Line(role, ANY, text)) for text in texts)
    for role, by_tone in ((Role.OPENER, styles.OPENERS), (Role.CLOSER, styles.CLOSERS)):
        for tone, texts in by_tone.items():
            yield from ((text, Line(role, ANY, text, tone)) for text in texts)
    for topic in topics:
        yield from _topic_lines(topic)
    yield from ((text, Line(Role.QUESTION, "topics", text)) for text in styles.QUESTIONS)
    yield from ((text, Line(Role.QUESTION, "talk", text)) for text in phrases.TALK_QUESTIONS)
    yield from _advice_lines(CHAT, phrases.CHAT_FACTS, is_fact=True)
    for expert, assumed in phrases.EXPERTS.items():
        yield from _expert_lines("outside", expert, assumed)
    for kind, toned in phrases.SMALL_TALK.items():
        yield from _toned(kind.value, toned.items())
    for fact in FACTS:
        yield from _toned(f"heard:{fact}", phrases.HEARD[fact].items())
        yield from _bodies(f"recalled:{fact}", phrases.RECALLED[fact])
    yield from _bodies("forgotten", phrases.FORGOTTEN)
    yield from _bodies("untold", phrases.UNTOLD)
    yield from _bodies("sorry", phrases.SORRY)
    yield from _bodies("offer", phrases.OFFERS)
    yield from _bodies("sorry, but", phrases.SORRY_BUT)


def _bodies(key: str, texts: Iterable[str]) -> Iterator[tuple[str, Line]]:
    yield from ((text, Line(Role.BODY, key, key)) for text in texts)


def _toned(key: str, by_tone: Iterable[tuple[Tone, tuple[str, ...]]]) -> Iterator[tuple[str, Line]]:
    for tone, texts in by_tone:
        yield from ((text, Line(Role.BODY, key, key, tone)) for text in texts)


def _topic_lines(topic: Topic) -> Iterator[tuple[str, Line]]:
    key = topic_key(topic.name)
    yield from _advice_lines(key, topic.tips, is_fact=False)
    yield from _advice_lines(key, topic.facts, is_fact=True)
    yield from _expert_lines(key, topic.expert, topic.assumed)
    for text in topic.questions:
        yield text, Line(Role.QUESTION, key, text)


def _advice_lines(key: str, items: Iterable[str], *, is_fact: bool) -> Iterator[tuple[str, Line]]:
    for item in items:
        for hedged in (False, True):
            for text in wordings(item, is_fact=is_fact, hedged=hedged):
                yield text, Line(Role.BODY, key, item, hedged=hedged)


def _expert_lines(key: str, expert: str, assumed: str) -> Iterator[tuple[str, Line]]:
    for pronoun in ("they", assumed):
        for text in referrals(expert, pronoun):
            yield text, Line(Role.EXPERT, key, "expert", assumes=pronoun == assumed)
