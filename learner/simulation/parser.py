"""Reads a reply back into features, honestly: what the grammar does not hold is not well-formed.

Knows nothing of how replies are generated or of who likes what. Features of style are also read, by key words,
from replies of other models, so that a taste can tell two of them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from learner.simulation import styles
from learner.simulation.grammar import ANY, CHAT, Grammar, Role, Spoken, topic_key
from learner.simulation.intents import Heard
from learner.simulation.sayings import Kind
from learner.simulation.styles import Tone


@dataclass(frozen=True)
class Features:
    """What can be seen of one reply in its conversation."""

    on_topic: bool
    well_formed: bool
    repeats: bool
    words: int
    sentences: int
    """Sentences with content; greeting, opener, closer and closing question are not counted."""
    bullets: int
    warm: bool
    curt: bool
    hedged: bool
    emoji: bool
    question_back: bool
    names_user: bool | None
    """None where the user has not given a name."""
    recalls_fact: bool | None
    """None where the user has not asked for a fact that they had stated."""
    wrong_fact: bool
    """States something about the user that the user never said."""
    flatters: bool
    assumes: bool
    """Speaks of an expert as he or she, by nothing but the job."""
    disclaims: bool

    @property
    def acceptable(self) -> bool:
        return self.on_topic and self.well_formed and not self.repeats and not self.wrong_fact


_EMOJI = re.compile("|".join(styles.EMOJIS))
_PLACED_EMOJI = re.compile(rf"(?<=[.!?]) (?:{'|'.join(styles.EMOJIS)})(?=\s|$)")
_ANY_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_WARM = re.compile(
    r"\b(?:happy|glad|lovely|wonderful|great|pleasure|welcome|delighted|friend)\b|!", re.IGNORECASE
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|might|possibly|i think|i believe|not sure|probably)\b", re.IGNORECASE
)
_FLATTERY = re.compile(r"\b(?:clever|smart|genius|brilliant|admire)\b", re.IGNORECASE)
_ASSUMING = re.compile(r"\b(?:he|she)\b", re.IGNORECASE)
_DISCLAIMER = re.compile(
    r"\b(?:only a (?:small )?(?:program|model)|as an ai|i (?:can|may|could) be wrong)\b", re.IGNORECASE
)
_ORDER = list(Role)
_OFFERS = frozenset({"offer", "sorry, but"})
"""What says where it can help: owed to whoever asks for something that it can not do."""


@dataclass(frozen=True)
class _Sentence:
    text: str
    is_bullet: bool
    spoken: Spoken | None

    @property
    def role(self) -> Role:
        """The part it plays; of a sentence that the grammar does not hold, a guess."""
        if self.spoken:
            return self.spoken.line.role
        return Role.QUESTION if self.text.endswith("?") else Role.BODY


class Parser:
    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar

    def parse(self, heard: Heard, reply: str) -> Features:
        if heard.intent.kind is Kind.DRILL:
            return _drill_features(heard.intent.words, reply)
        sentences = [
            _Sentence(text, is_bullet, self._grammar.find(text)) for text, is_bullet in _split(reply)
        ]
        spoken = [sentence.spoken for sentence in sentences if sentence.spoken]
        lines = [one.line for one in spoken]
        unknown = [sentence.text for sentence in sentences if not sentence.spoken]
        said = {word.lower() for word in re.findall(r"[\w'-]+", reply)}
        name, fact = heard.facts.get("name"), heard.facts.get(heard.intent.fact)
        asked = heard.intent.kind is Kind.RECALL and fact is not None
        return Features(
            on_topic=_is_on_topic(heard, spoken),
            well_formed=_is_well_formed(reply, sentences),
            repeats=_repeats(reply, sentences),
            words=len(re.findall(r"[\w'-]+", reply)),
            sentences=sum(sentence.role is Role.BODY for sentence in sentences),
            bullets=sum(sentence.is_bullet for sentence in sentences),
            warm=any(line.tone is Tone.WARM for line in lines) or any(map(_WARM.search, unknown)),
            curt=any(line.tone is Tone.CURT for line in lines),
            hedged=any(line.hedged for line in lines) or any(map(_HEDGE.search, unknown)),
            emoji=bool(_ANY_EMOJI.search(reply)),
            question_back=any(sentence.role is Role.QUESTION for sentence in sentences),
            names_user=None if name is None else name.lower() in said,
            recalls_fact=str(fact).lower() in said if asked else None,
            wrong_fact=any(_is_wrong(one, heard) for one in spoken),
            flatters=any(line.role is Role.FLATTERY for line in lines) or any(map(_FLATTERY.search, unknown)),
            assumes=any(line.assumes for line in lines) or any(map(_ASSUMING.search, unknown)),
            disclaims=any(line.role is Role.DISCLAIMER for line in lines)
            or any(map(_DISCLAIMER.search, unknown)),
        )


def _drill_features(words: str, reply: str) -> Features:
    exact = reply.strip() == words.strip()
    return Features(
        on_topic=exact, well_formed=exact, repeats=False, words=len(reply.split()), sentences=1, bullets=0,
        warm=False, curt=False, hedged=False, emoji=False, question_back=False, names_user=None,
        recalls_fact=None, wrong_fact=False, flatters=False, assumes=False, disclaims=False,
    )  # fmt: skip


def _split(reply: str) -> list[tuple[str, bool]]:
    """Each sentence without its emoji, and whether it stands in a list."""
    found = []
    for row in _PLACED_EMOJI.sub("", reply).split("\n"):
        is_bullet = row.startswith("- ")
        found += [(text, is_bullet) for text in _SENTENCE_END.split(row[2:] if is_bullet else row) if text]
    return found


def _expected(heard: Heard) -> set[str]:
    """The keys of the sentences that answer this intent."""
    intent = heard.intent
    match intent.kind:
        case Kind.TOPIC | Kind.MORE | Kind.SHORTER:
            return {topic_key(intent.topic), "topics"}
        case Kind.RECALL if intent.fact in heard.facts:
            return {f"recalled:{intent.fact}", "forgotten", "talk", CHAT}
        case Kind.RECALL:
            return {"untold", "forgotten", "talk", CHAT}
        case Kind.STATE:
            return {f"heard:{intent.fact}", "talk", CHAT}
        case Kind.OUTSIDE:
            return {"sorry, but", "sorry", "offer", "outside", "talk", CHAT}
        case Kind.ABILITIES:
            return {"offer", "talk", CHAT}
        case _:
            return {intent.kind.value, "talk", CHAT}


def _is_on_topic(heard: Heard, spoken: list[Spoken]) -> bool:
    expected = _expected(heard)
    bodies = [one for one in spoken if one.line.role is Role.BODY]
    if bodies and all(one.line.key == CHAT for one in bodies):
        return False
    if heard.intent.kind is Kind.OUTSIDE and not any(one.line.key in _OFFERS for one in bodies):
        return False
    return bool(bodies) and all(one.line.key in expected or one.line.key == ANY for one in spoken)


def _is_well_formed(reply: str, sentences: list[_Sentence]) -> bool:
    """Every sentence is known, the parts come in their order, and a list holds all of the body or none."""
    roles = [sentence.role for sentence in sentences]
    places = [_ORDER.index(role) for role in roles]
    single = all(count == 1 for role, count in Counter(roles).items() if role is not Role.BODY)
    listed = {sentence.is_bullet for sentence in sentences if sentence.role is Role.BODY}
    return (
        all(sentence.spoken for sentence in sentences)
        and Role.BODY in roles
        and places == sorted(places)
        and single
        and len(listed) == 1
        and _has_tidy_rows(reply, has_list=True in listed)
    )


def _has_tidy_rows(reply: str, *, has_list: bool) -> bool:
    """One sentence a bullet, no empty or broken rows, nothing but bullets between the first and the last."""
    rows = reply.split("\n")
    if reply != reply.strip() or "  " in reply:
        return False
    if not has_list:
        return len(rows) == 1
    bulleted = [row.startswith("- ") for row in rows]
    first, last = bulleted.index(True), len(rows) - 1 - bulleted[::-1].index(True)
    one_each = all(
        len(_SENTENCE_END.split(_PLACED_EMOJI.sub("", row))) == 1 for row in rows[first : last + 1]
    )
    return all(bulleted[first : last + 1]) and first <= 1 and len(rows) - 1 - last <= 1 and one_each


def _repeats(reply: str, sentences: list[_Sentence]) -> bool:
    items = [s.spoken.line.item if s.spoken else s.text.lower() for s in sentences]
    slots = [value for s in sentences if s.spoken for value in s.spoken.slots.values()]
    return (
        len(set(items)) < len(items)
        or len(set(slots)) < len(slots)
        or len(_EMOJI.findall(reply)) > 2
        or bool(re.search(r"\b(\w+)( \1\b){2}", reply, re.IGNORECASE))
    )


def _is_wrong(spoken: Spoken, heard: Heard) -> bool:
    return any(
        slot not in "abc" and value.lower() != heard.facts.get(slot, "").lower()
        for slot, value in spoken.slots.items()
    )
