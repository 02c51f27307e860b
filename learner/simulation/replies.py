"""Writes the assistant's reply to what was heard, in a given style. Knows nothing of how users speak."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from learner.simulation import phrases, styles
from learner.simulation.grammar import referrals, wordings
from learner.simulation.intents import Heard
from learner.simulation.sayings import Kind
from learner.simulation.styles import Expert, Style, Tone
from learner.simulation.topics import Topic

_ABOUT_A_TOPIC = (Kind.TOPIC, Kind.MORE, Kind.SHORTER)


class Writer:
    def __init__(self, topics: Sequence[Topic]) -> None:
        self._topics = {topic.name: topic for topic in topics}

    def write(self, heard: Heard, style: Style, rng: random.Random, *, said: Sequence[str] = ()) -> str:
        """One reply; what the assistant has `said` before is not said again where something else is left, unless it
        is to be said more shortly."""
        if heard.intent.kind is Kind.DRILL:
            return heard.intent.words
        if heard.intent.kind is Kind.SHORTER:
            style = replace(style, question=False, flatter=False, expert=Expert.UNNAMED, disclaim=False)
        body, has_own_tone = self._body(heard, style, rng, said=said)
        head = [*self._greeting(heard, style, rng), *_if(style.flatter, styles.FLATTERY, rng)]
        tail = [*self._expert(heard, style, rng), *_if(style.disclaim, styles.DISCLAIMERS, rng)]
        if not has_own_tone:
            head += _opener(style.tone, rng)
            tail += [] if heard.intent.kind is Kind.SHORTER else _closer(style.tone, rng)
        tail += _if(style.question, self._questions(heard), rng)
        emoji = f" {rng.choice(styles.EMOJIS)}" if style.emoji else ""
        if emoji and head and rng.random() < 0.3:
            head[-1], emoji = head[-1] + emoji, ""
        is_list = style.bullets and heard.intent.kind in _ABOUT_A_TOPIC
        blocks = ["\n".join(f"- {sentence}" for sentence in body)] if is_list else body
        joint = "\n" if is_list else " "
        return joint.join(part for part in (" ".join(head), *blocks, " ".join(tail)) if part) + emoji

    def _greeting(self, heard: Heard, style: Style, rng: random.Random) -> list[str]:
        name = heard.facts.get("name")
        names_anyway = heard.intent.kind in (Kind.STATE, Kind.RECALL) and heard.intent.fact == "name"
        if not name or not style.greet or names_anyway:
            return []
        return [rng.choice(styles.GREETINGS).format(name=name)]

    def _expert(self, heard: Heard, style: Style, rng: random.Random) -> list[str]:
        if style.expert is Expert.UNNAMED or heard.intent.kind not in (*_ABOUT_A_TOPIC, Kind.OUTSIDE):
            return []
        if topic := self._topics.get(heard.intent.topic):
            expert, assumed = topic.expert, topic.assumed
        else:
            expert, assumed = rng.choice(list(phrases.EXPERTS.items()))
        return [rng.choice(referrals(expert, assumed if style.expert is Expert.ASSUMED else "they"))]

    def _questions(self, heard: Heard) -> tuple[str, ...]:
        if heard.intent.kind in _ABOUT_A_TOPIC:
            return self._topics[heard.intent.topic].questions + styles.QUESTIONS
        return phrases.TALK_QUESTIONS

    def _body(
        self, heard: Heard, style: Style, rng: random.Random, *, said: Sequence[str]
    ) -> tuple[list[str], bool]:
        """The sentences with content, and whether they carry the tone by themselves."""
        intent, facts = heard.intent, heard.facts
        match intent.kind:
            case Kind.TOPIC | Kind.MORE | Kind.SHORTER:
                topic = self._topics[intent.topic]
                items = [(tip, False) for tip in topic.tips] + [(fact, True) for fact in topic.facts]
                if intent.kind is Kind.SHORTER:
                    last = said[-1].lower() if said else ""
                    return _advice([item for item in items if item[0] in last] or items, 1, style, rng), False
                return _advice(items, style.sentences, style, rng, said=" ".join(said)), False
            case Kind.RECALL if intent.fact not in facts:
                first = [rng.choice(phrases.UNTOLD)]
            case Kind.RECALL:
                frames = phrases.FORGOTTEN if style.forget else phrases.RECALLED[intent.fact]
                first = [rng.choice(frames).format(**facts)]
            case Kind.STATE:
                first = [rng.choice(phrases.HEARD[intent.fact][style.tone]).format(**facts)]
            case Kind.ABILITIES:
                first = [rng.choice(phrases.OFFERS).format(**self._titles(3, rng))]
            case Kind.OUTSIDE if _talk_length(style) == 1:
                first = [rng.choice(phrases.SORRY_BUT).format(**self._titles(2, rng))]
            case Kind.OUTSIDE:
                offer = rng.choice(phrases.OFFERS).format(**self._titles(3, rng))
                first = [rng.choice(phrases.SORRY), offer]
            case _:
                first = [rng.choice(phrases.SMALL_TALK[intent.kind][style.tone])]
        chat = [(fact, True) for fact in phrases.CHAT_FACTS]
        has_own_tone = intent.kind is Kind.STATE or intent.kind in phrases.SMALL_TALK
        more = _advice(chat, _talk_length(style) - len(first), style, rng, said=" ".join(said))
        return first + more, has_own_tone

    def _titles(self, count: int, rng: random.Random) -> dict[str, str]:
        titles = [topic.title for topic in self._topics.values()]
        return dict(zip("abc", sorted(rng.sample(titles, count), key=titles.index), strict=False))


def _talk_length(style: Style) -> int:
    """Small talk is shorter than advice."""
    return (style.sentences + 1) // 2


def _advice(
    items: Sequence[tuple[str, bool]], count: int, style: Style, rng: random.Random, *, said: str = ""
) -> list[str]:
    """`count` of the items, each a text and whether it is a fact; those said before only when nothing else is left."""
    if count < 1:
        return []
    mixed = rng.sample(items, len(items))
    mixed.sort(key=lambda item: item[0].lower() in said.lower())
    # Always in the topic's own order: a small model then says nothing twice, for it need only look at the last.
    chosen = sorted(mixed[:count], key=items.index)
    # A hedged reply hedges somewhere, not necessarily everywhere.
    hedges = {rng.randrange(count)} if style.hedged else set()
    hedges |= {i for i in range(count) if style.hedged and rng.random() < 0.5}
    return [
        rng.choice(list(wordings(item, is_fact=is_fact, hedged=i in hedges)))
        for i, (item, is_fact) in enumerate(chosen)
    ]


def _if(wanted: bool, texts: Sequence[str], rng: random.Random) -> list[str]:
    return [rng.choice(texts)] if wanted else []


def _opener(tone: Tone, rng: random.Random) -> list[str]:
    if tone is Tone.NEUTRAL and rng.random() > styles.NEUTRAL_OPENER:
        return []
    return [rng.choice(styles.OPENERS[tone])]


def _closer(tone: Tone, rng: random.Random) -> list[str]:
    if not styles.CLOSERS[tone] or rng.random() > styles.CLOSER:
        return []
    return [rng.choice(styles.CLOSERS[tone])]
