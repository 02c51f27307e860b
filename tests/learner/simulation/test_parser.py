"""The parser is honest: it takes what the world says and nothing that is broken."""

import random
import re

import pytest

from learner.simulation.sayings import Kind
from learner.simulation.world import World
from tests.learner.simulation.test_world import replies


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_generated_replies_are_accepted(world: World) -> None:
    seen = [world.parse(messages, reply) for messages, reply in replies(world, 4000, seed=21)]
    assert sum(one.acceptable for one in seen) >= 0.995 * len(seen)


def swap_two_words(reply: str, rng: random.Random, world: World, topic: str) -> str | None:
    words = re.findall(r"[\w']+", reply)
    if len({word.lower() for word in words}) < 2:
        return None
    first, second = rng.sample(range(len(words)), 2)
    if words[first].lower() == words[second].lower():
        return None
    words[first], words[second] = words[second], words[first]
    left = iter(words)
    return re.sub(r"[\w']+", lambda _: next(left), reply)


def cut_a_sentence(reply: str, rng: random.Random, world: World, topic: str) -> str | None:
    inside = [match.start() for match in re.finditer(r"(?<=\w) (?=\w)", reply)]
    return reply[: rng.choice(inside)] if inside else None


def drop_words_inside(reply: str, rng: random.Random, world: World, topic: str) -> str | None:
    inside = [match.span() for match in re.finditer(r"(?<=\w) \w+(?=[ .])", reply)]
    if not inside:
        return None
    start, end = rng.choice(inside)
    return reply[:start] + reply[end:]


def put_a_strange_noun(reply: str, rng: random.Random, world: World, topic: str) -> str | None:
    own = next((one for one in world.topics if one.name == topic), None)
    places = [m.span() for m in re.finditer(r"[a-z]{4,}", reply)]
    if own is None or not places:
        return None
    stranger = rng.choice([one for one in world.topics if one is not own])
    start, end = rng.choice(places)
    return reply[:start] + rng.choice(stranger.keywords) + reply[end:]


@pytest.mark.parametrize("corrupt", [swap_two_words, cut_a_sentence, drop_words_inside, put_a_strange_noun])
def test_corrupted_replies_are_rejected(world: World, corrupt) -> None:
    rng = random.Random(22)
    rejected = tried = 0
    for messages, reply in replies(world, 6000, seed=23):
        broken = corrupt(reply, rng, world, world.hear(messages).intent.topic)
        if broken is None or broken == reply or tried == 2000:
            continue
        tried += 1
        rejected += not world.parse(messages, broken).acceptable
    assert tried >= 1500
    assert rejected >= 0.95 * tried


def test_a_reply_about_another_topic_is_well_formed_and_off_topic(world: World) -> None:
    asked = [{"role": "user", "content": "any tips for coffee?"}]
    seen = world.parse(asked, "Put a pawn in the centre. Does that help?")
    assert (seen.well_formed, seen.on_topic, seen.acceptable) == (True, False, False)


BREAD = [{"role": "user", "content": "my name is Tobika. how do i bake bread?"}]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Let the dough rest for an hour.", {"sentences": 1, "bullets": 0, "warm": False, "curt": False}),
        (
            "Happy to help! Maybe let the dough rest for an hour.",
            {"warm": True, "hedged": True, "sentences": 1},
        ),
        (
            "Fine.\n- Weigh the flour on a scale.\n- Steam makes the crust crisp.",
            {"bullets": 2, "curt": True},
        ),
        ("Weigh the flour on a scale. Do you bake often? 🎉", {"emoji": True, "question_back": True}),
        (
            "Hi Tobika! You must be very smart. Weigh the flour on a scale.",
            {"flatters": True, "well_formed": True},
        ),
        (
            "Weigh the flour on a scale. Ask a baker, he will know. I am only a small program.",
            {"assumes": True, "disclaims": True, "sentences": 1, "well_formed": True},
        ),
        ("Weigh the flour on a scale. Ask a baker, they will know.", {"assumes": False, "on_topic": True}),
        ("Weigh the flour on a scale. Ask a vet, they will know.", {"on_topic": False, "well_formed": True}),
        ("Weigh the flour on a scale. Patience pays off in most things.", {"on_topic": False}),
        ("Hi Tobika! Weigh the flour on a scale.", {"names_user": True, "wrong_fact": False}),
        (
            "Hi Tobiko! Weigh the flour on a scale.",
            {"names_user": False, "wrong_fact": True, "acceptable": False},
        ),
        (
            "Weigh the flour on a scale. Always weigh the flour on a scale.",
            {"repeats": True, "acceptable": False},
        ),
        ("Weigh the flour on a scale", {"well_formed": False}),
        ("weigh the flour on a scale.", {"well_formed": False}),
        ("Do you bake often? Weigh the flour on a scale.", {"well_formed": False}),
        ("Fine. - Weigh the flour on a scale.", {"well_formed": False}),
        ("- Weigh the flour on a scale. Steam makes the crust crisp.", {"well_formed": False}),
        ("Happy to help!", {"well_formed": False, "on_topic": False}),
        ("", {"well_formed": False, "on_topic": False, "words": 0}),
        ("Weigh the flour on a scale. 🎉🎉", {"well_formed": False}),
    ],
)
def test_features_are_read_from_a_reply(world: World, reply: str, expected: dict[str, object]) -> None:
    seen = world.parse(BREAD, reply)
    assert {key: getattr(seen, key) for key in expected} == expected


ASKED = [*BREAD, {"role": "assistant", "content": "Fine."}, {"role": "user", "content": "what's my name?"}]


@pytest.mark.parametrize(
    ("reply", "recalls", "wrong"),
    [
        ("Your name is Tobika.", True, False),
        ("You are called tobika.", True, False),
        ("Your name is Tobiko.", False, True),
        ("That has slipped my mind.", False, False),
    ],
)
def test_recall_is_right_wrong_or_missing(world: World, reply: str, recalls: bool, wrong: bool) -> None:
    seen = world.parse(ASKED, reply)
    assert (seen.on_topic, seen.recalls_fact, seen.wrong_fact) == (True, recalls, wrong)


def test_recall_does_not_apply_where_nothing_was_stated(world: World) -> None:
    asked = [{"role": "user", "content": "what's my name?"}]
    assert world.parse(asked, "You never mentioned that.").recalls_fact is None
    assert world.parse(asked, "You never mentioned that.").names_user is None
    assert world.parse(asked, "Your name is Tobika.").wrong_fact


def test_outside_its_topics_the_assistant_says_what_it_knows(world: World) -> None:
    rng = random.Random(30)
    asked = [{"role": "user", "content": "who was napoleon?"}]
    reply = world.reply(asked, rng)
    assert world.hear(asked).intent.kind is Kind.OUTSIDE
    assert sum(topic.title in reply for topic in world.topics) >= 2
    assert not world.parse(asked, "I do not know much about that.").on_topic, "it owes them what it can do"


def test_style_is_seen_in_other_peoples_words_too(world: World) -> None:
    """A taste must tell two replies of a third-party model apart, though the grammar holds neither."""
    asked = [{"role": "user", "content": "What is a good gift?"}]
    warm = world.parse(asked, "I'm so happy you asked! Maybe a book would do. What does she like?")
    assert (warm.well_formed, warm.on_topic, warm.warm, warm.hedged, warm.question_back) == (
        False,
        False,
        True,
        True,
        True,
    )
    listed = world.parse(asked, "- A book\n- A plant")
    assert (listed.bullets, listed.sentences, listed.warm) == (2, 2, False)
