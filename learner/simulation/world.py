"""The simulated world: users who ask an everyday helper, and the helper's replies in every style.

The world's only randomness is the generator passed in. It knows nothing of tokens, models, votes or HTTP.

dialogue(rng) -> messages · prompt(rng) -> messages that wait for a reply · parse(messages, reply) -> Features
"""

from __future__ import annotations

import random
import re
from enum import StrEnum

from learner.simulation import names, sayings
from learner.simulation.grammar import Grammar
from learner.simulation.intents import Heard, Listener, Messages
from learner.simulation.outside import outside
from learner.simulation.parser import Features, Parser
from learner.simulation.replies import Writer
from learner.simulation.sayings import FACTS, Kind
from learner.simulation.styles import Style, draw_style
from learner.simulation.topics import Topic, load_topics

Message = dict[str, str]

_CHAT = (Kind.HELLO, Kind.HOW_ARE_YOU, Kind.THANKS, Kind.BYE, Kind.WHO, Kind.ABILITIES, Kind.PRAISE,
         Kind.COMPLAINT, Kind.OKAY, Kind.FEELING)  # fmt: skip


_SHORT = {
    "what is": "what's", "how is": "how's", "who is": "who's", "where is": "where's", "that is": "that's",
    "i am": "i'm", "do not": "don't", "does not": "doesn't", "did not": "didn't", "can not": "can't",
}  # fmt: skip


class Focus(StrEnum):
    """What a training dialogue is for."""

    PLAIN = "plain"
    RECALL = "recall"
    DRILL = "drill"
    """A bare exercise in copying: without it small models learn to copy last."""


class World:
    def __init__(self, topics: tuple[Topic, ...] | None = None) -> None:
        self.topics = topics or load_topics()
        self._listener = Listener(self.topics)
        self._grammar = Grammar(self.topics)
        self._parser = Parser(self._grammar)
        self._writer = Writer(self.topics)

    def dialogue(self, rng: random.Random, *, focus: Focus | None = None) -> list[Message]:
        """A whole conversation, ending in a reply; without a focus a plain or a recall dialogue."""
        focus = focus or rng.choice((Focus.PLAIN, Focus.PLAIN, Focus.RECALL))
        if focus is Focus.DRILL:
            return self._answered([_user(_drill(rng))], rng)
        facts = _draw_facts(rng, reserved=False, share=1.0 if focus is Focus.RECALL else 0.55)
        messages = _system(rng)
        if focus is Focus.RECALL:
            distance = rng.choice((0, 0, 1, 1, 2, 3, 4))
            return self._recall(messages, facts, rng, distance=distance, at_once=rng.random() < 0.06)
        stating = list(facts)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            says = self._says(messages, rng)
            if stating and rng.random() < 0.7:
                says = _with_fact(stating.pop(), facts, says, rng)
            messages = self._answered([*messages, _user(_casual(says, rng))], rng)
        return messages

    def prompt(self, rng: random.Random) -> list[Message]:
        """A conversation that waits for a reply; the names in it never occur in training dialogues."""
        facts = _draw_facts(rng, reserved=True, share=0.7)
        messages: list[Message] = []
        if facts and rng.random() < 0.22:
            distance = rng.choice((0, 0, 0, 1, 2))
            return self._recall(
                messages, facts, rng, distance=distance, at_once=rng.random() < 0.06, answered=False
            )
        stating = list(facts)
        turns = rng.choice((1, 1, 1, 1, 2))
        for turn in range(turns):
            is_last = turn == turns - 1
            says = self._says(messages, rng)
            if stating and (is_last or rng.random() < 0.5):
                says = _with_fact(stating.pop(), facts, says, rng)
            messages.append(_user(_casual(says, rng)))
            if not is_last:
                messages = self._answered(messages, rng)
        return messages

    def recall_prompt(self, rng: random.Random, *, distance: int) -> list[Message]:
        """States a name never seen in training, talks of something else for `distance` turns, asks for it."""
        facts = {"name": names.draw_name(rng, reserved=True)}
        return self._recall([], facts, rng, distance=distance, answered=False)

    def reply(self, messages: Messages, rng: random.Random, *, style: Style | None = None) -> str:
        """The reply that the world's assistant gives, in a style of its own or the given one."""
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        return self._writer.write(self.hear(messages), style or draw_style(rng), rng, said=said)

    def hear(self, messages: Messages) -> Heard:
        return self._listener.hear(messages)

    def parse(self, messages: Messages, reply: str) -> Features:
        return self._parser.parse(self.hear(messages), reply)

    def _answered(self, messages: list[Message], rng: random.Random) -> list[Message]:
        return [*messages, {"role": "assistant", "content": self.reply(messages, rng)}]

    def _recall(
        self,
        messages: list[Message],
        facts: dict[str, str],
        rng: random.Random,
        *,
        distance: int,
        at_once: bool = False,
        answered: bool = True,
    ) -> list[Message]:
        """State the facts, talk of something else for `distance` turns, ask for one; or state it and ask `at_once`."""
        asked = rng.choice(list(facts))
        for fact in facts:
            if at_once and fact == asked:
                continue
            says = "" if rng.random() < 0.6 else self._says(messages, rng)
            messages = self._answered(
                [*messages, _user(_casual(_with_fact(fact, facts, says, rng), rng))], rng
            )
        for _ in range(0 if at_once else distance):
            messages = self._answered([*messages, _user(_casual(self._says(messages, rng), rng))], rng)
        # Now and then for something never told, so that copying is not the only answer.
        if answered and not at_once and rng.random() < 0.1:
            asked = rng.choice(FACTS)
        says = rng.choice(sayings.RECALLS[asked])
        says = _with_fact(asked, facts, says, rng) if at_once else says
        messages = [*messages, _user(_casual(says, rng))]
        return self._answered(messages, rng) if answered else messages

    def _says(self, messages: Messages, rng: random.Random) -> str:
        """What a user says next: mostly about a topic, sometimes small talk or something far away."""
        draw = rng.random()
        if draw < 0.25 and self.hear(messages).topic:
            return _follows_up(rng)
        if 0.25 <= draw < 0.36:
            return _chats(rng)
        if 0.36 <= draw < 0.48:
            return outside(rng)
        return _asks_about(rng.choice(self.topics), rng)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _system(rng: random.Random) -> list[Message]:
    return [{"role": "system", "content": rng.choice(sayings.SYSTEM)}] if rng.random() < 0.25 else []


def _asks_about(topic: Topic, rng: random.Random) -> str:
    form = rng.random()
    if form < 0.3:
        says = rng.choice(sayings.ASK).format(ask=rng.choice(topic.asks))
    elif form < 0.42:
        says = rng.choice(sayings.WORD_ALONE).format(word=rng.choice(topic.keywords))
    elif form < 0.54:
        says = rng.choice(sayings.AMID).format(word=rng.choice(topic.keywords))
    elif form < 0.8:
        says = rng.choice(sayings.ABOUT).format(noun=rng.choice(topic.subjects))
    else:
        says = rng.choice(sayings.PROBLEM).format(problem=rng.choice(topic.problems))
    if rng.random() < 0.2:
        says = rng.choice(sayings.PREFIXES) + says
    if rng.random() < 0.1 and not says.endswith(("?", ".")):
        says += rng.choice(sayings.SUFFIXES)
    return says


def _chats(rng: random.Random) -> str:
    kind = rng.choice(_CHAT)
    if kind in sayings.MOOD_WORDS and rng.random() < 0.5:
        return rng.choice(sayings.MOODS).format(mood=rng.choice(sayings.MOOD_WORDS[kind]))
    return rng.choice(sayings.SAYS[kind])


def _follows_up(rng: random.Random) -> str:
    if rng.random() < 0.25:
        frame = rng.choice(sayings.FOLLOW_UPS)
        return frame.format(**{place: rng.choice(words) for place, words in sayings.FOLLOW_UP_WORDS.items()})
    return rng.choice(sayings.SAYS[rng.choice((Kind.MORE, Kind.MORE, Kind.SHORTER))])


def _drill(rng: random.Random) -> str:
    words = [names.draw_name(rng, reserved=False) for _ in range(rng.randint(1, 5))]
    if rng.random() < 0.3:
        words = [word.lower() for word in words]
    return rng.choice(sayings.DRILLS).format(words=" ".join(words))


def _draw_facts(rng: random.Random, *, reserved: bool, share: float) -> dict[str, str]:
    """The facts that a user will state: a name first of all, now and then another."""
    if rng.random() >= share:
        return {}
    kinds = rng.choices(
        (("name",), ("town",), ("dog",), ("cat",), ("town", "name"), ("dog", "name"), ("cat", "name")),
        weights=(72, 6, 5, 5, 4, 4, 4),
    )[0]
    facts = {kind: names.draw_name(rng, reserved=reserved) for kind in kinds}
    if "name" in facts and not reserved and rng.random() < 0.25:
        facts["name"] = rng.choice(names.COMMON)
    return facts


def _with_fact(fact: str, facts: dict[str, str], says: str, rng: random.Random) -> str:
    stated = rng.choice(sayings.STATES[fact]).format(**facts)
    hello = rng.choice(("", "", "hi, ", "hello, ", "hey, "))
    return f"{hello}{stated}. {says}" if says else f"{hello}{stated}"


def _casual(text: str, rng: random.Random) -> str:
    """The same words as a hurried or a careful person types them."""
    if rng.random() < 0.25:
        for full, short in _SHORT.items():
            text = re.sub(rf"\b{full}\b", short, text)
    manner = rng.random()
    if manner < 0.18:
        text = text.lower()
    elif manner < 0.6:
        text = text[0].upper() + text[1:]
        text = re.sub(r"\bi\b", "I", text)
        text = re.sub(r"(?<=[.?] )[a-z]", lambda match: match.group().upper(), text)
    if rng.random() < 0.4:
        text = text.rstrip("?.!")
    elif text.endswith(("?", "!")):
        text += rng.choice(("", "", "", "", "", text[-1]))
    else:
        text += rng.choice((".", "", "", "!"))
    # Telephones type the curly one.
    return text.replace("'", "’") if rng.random() < 0.2 else text
