"""The world's dialogues: the same for the same seed, rich in phrases, styles and names."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from learner.simulation.measure import association, style_shares
from learner.simulation.names import COMMON, is_reserved
from learner.simulation.outside import outside
from learner.simulation.phrases import CHAT_FACTS, EXPERTS
from learner.simulation.sayings import FACTS, RECALLS, SAYS, STATES, Kind, follow_ups
from learner.simulation.world import Focus, World


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def replies(world: World, count: int, seed: int = 0):
    """(messages so far, reply) of generated dialogues."""
    rng = random.Random(seed)
    while count > 0:
        messages = world.dialogue(rng)
        for place, message in enumerate(messages):
            if message["role"] == "assistant" and count > 0:
                count -= 1
                yield messages[:place], message["content"]


def test_the_same_seed_gives_the_same_dialogues_and_prompts() -> None:
    first, second = World(), World()
    one, two = random.Random(5), random.Random(5)
    assert [first.dialogue(one) for _ in range(200)] == [second.dialogue(two) for _ in range(200)]
    assert [first.prompt(one) for _ in range(200)] == [second.prompt(two) for _ in range(200)]
    assert first.prompt(random.Random(6)) != first.prompt(random.Random(7))


def test_a_prompt_waits_for_a_reply_and_a_dialogue_ends_with_one(world: World) -> None:
    rng = random.Random(1)
    for _ in range(300):
        assert world.prompt(rng)[-1]["role"] == "user"
        assert world.dialogue(rng)[-1]["role"] == "assistant"


def test_names_in_prompts_never_occur_in_training_dialogues(world: World) -> None:
    rng = random.Random(2)
    for _ in range(500):
        stated = world.hear(world.prompt(rng)).facts
        assert all(is_reserved(value) for value in stated.values())
        assert not {value.lower() for value in stated.values()} & {name.lower() for name in COMMON}
    for _ in range(500):
        stated = world.hear(world.dialogue(rng, focus=Focus.RECALL)).facts
        # First names of real people are known to the model on purpose; those made up are drawn apart.
        assert not any(is_reserved(value) for fact, value in stated.items() if fact != "name")


def test_most_prompts_are_new_and_every_kind_and_topic_occurs(world: World) -> None:
    rng = random.Random(3)
    prompts = [world.prompt(rng) for _ in range(3000)]
    assert len({str(prompt) for prompt in prompts}) > 2500
    heard = [world.hear(prompt).intent for prompt in prompts]
    assert {intent.kind for intent in heard} >= set(Kind) - {Kind.DRILL}
    assert {intent.topic for intent in heard if intent.topic} == {topic.name for topic in world.topics}
    assert Counter(intent.kind for intent in heard)[Kind.TOPIC] > 0.5 * len(heard)


@pytest.mark.parametrize("distance", [0, 1, 2, 4])
def test_a_recall_prompt_asks_for_a_name_stated_that_many_turns_before(world: World, distance: int) -> None:
    rng = random.Random(4)
    for _ in range(50):
        messages = world.recall_prompt(rng, distance=distance)
        assert [message["role"] for message in messages].count("assistant") == distance + 1
        heard = world.hear(messages)
        assert (heard.intent.kind, heard.intent.fact) == (Kind.RECALL, "name")
        assert "name" in heard.facts


def test_styles_are_spread_and_independent_of_each_other(world: World) -> None:
    seen = [
        world.parse(messages, reply)
        for messages, reply in replies(world, 12_000)
        if world.hear(messages).intent.kind is Kind.TOPIC
    ]
    assert len(seen) > 3000
    assert all(share >= 0.05 for shares in style_shares(seen).values() for share in shares.values())
    related = association(seen)
    # Lists are shorter here, so that they are as long as prose where they are served.
    assert 0.1 < related.pop("sentences x bullets") < 0.25
    assert max(related.values()) <= 0.15


def test_no_two_topics_share_a_keyword_or_an_expert(world: World) -> None:
    for owned in (
        [word for topic in world.topics for word in topic.keywords],
        [topic.expert for topic in world.topics] + list(EXPERTS),
        [item for topic in world.topics for item in (*topic.tips, *topic.facts)] + list(CHAT_FACTS),
    ):
        assert len(set(owned)) == len(owned)
    assert len(world.topics) >= 60


def test_every_ask_noun_and_problem_is_heard_as_its_own_topic(world: World) -> None:
    for topic in world.topics:
        says = [f"how do i {ask}?" for ask in topic.asks] + [f"any tips for {noun}?" for noun in topic.nouns]
        for text in (*says, *topic.problems):
            heard = world.hear([{"role": "user", "content": text}]).intent
            assert (heard.kind, heard.topic) == (Kind.TOPIC, topic.name), text


def test_association_is_one_for_twins_and_small_for_strangers(world: World) -> None:
    """Guards the measure itself: emoji set by warmth is seen as one axis deciding the other."""
    rng = random.Random(9)
    seen = [replace(world.parse(*pair), warm=True, curt=False) for pair in list(replies(world, 300))]
    tied = [replace(one, warm=(flag := rng.random() < 0.5), emoji=flag) for one in seen]
    assert association(tied)["tone x emoji"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("says", "kind", "topic"),
    [
        ("how do i bake bread", Kind.TOPIC, "bread"),
        ("HELLO!!", Kind.HELLO, ""),
        ("hi, my puppy bites my hands", Kind.TOPIC, "dogs"),
        ("whats the trick with espresso", Kind.TOPIC, "coffee"),
        ("what can you do", Kind.ABILITIES, ""),
        ("Thanks!", Kind.THANKS, ""),
        ("who was napoleon", Kind.OUTSIDE, ""),
        ("ключ", Kind.OUTSIDE, ""),
        ("", Kind.OUTSIDE, ""),
        ("tell me more", Kind.ABILITIES, ""),
        ("hi, my name is Tobika", Kind.STATE, ""),
        ("people call me Tobika. nice day", Kind.STATE, ""),
        ("you can call me Tobika. who was napoleon?", Kind.OUTSIDE, ""),
        ("you can call me Tobika. what if i am always late with my tasks?", Kind.TOPIC, "planning"),
        ("i'm tired", Kind.TOPIC, "sleep"),
        ("I feel sad", Kind.FEELING, ""),
        ("i'm really nervous", Kind.FEELING, ""),
        ("how do i learn to swim", Kind.TOPIC, "swimming"),
        ("Sorry, what’s my name?", Kind.RECALL, ""),
        ("please book me a flight", Kind.OUTSIDE, ""),
    ],
)
def test_a_strangers_words_are_understood(world: World, says: str, kind: Kind, topic: str) -> None:
    heard = world.hear([{"role": "user", "content": says}])
    assert (heard.intent.kind, heard.intent.topic) == (kind, topic)


def test_more_means_more_of_the_last_topic(world: World) -> None:
    asked = [{"role": "user", "content": "any tips for chess?"}, {"role": "assistant", "content": "Listen."}]
    heard = world.hear([*asked, {"role": "user", "content": "tell me more"}])
    assert (heard.intent.kind, heard.intent.topic) == (Kind.MORE, "chess")


def test_what_lies_outside_is_never_taken_for_a_topic(world: World) -> None:
    rng = random.Random(4)
    heard = {
        says: world.hear([{"role": "user", "content": says}]) for says in (outside(rng) for _ in range(4000))
    }
    assert {says: one for says, one in heard.items() if one.intent.kind is not Kind.OUTSIDE} == {}


def test_a_follow_up_is_about_what_was_talked_of(world: World) -> None:
    asked = [{"role": "user", "content": "any tips for chess?"}, {"role": "assistant", "content": "Listen."}]
    for says in (*follow_ups(), *SAYS[Kind.MORE], *SAYS[Kind.SHORTER]):
        assert world.hear([*asked, {"role": "user", "content": says}]).intent.topic == "chess", says


@pytest.mark.parametrize("fact", FACTS)
def test_a_bare_statement_is_heard_however_it_is_typed(world: World, fact: str) -> None:
    for stated in STATES[fact]:
        for typed in (stated, f"{stated}.", f"{stated}!!", stated.replace("'", "’"), stated.capitalize()):
            for name in ("Tobika", "zorblax", "ÉMILE"):
                heard = world.hear([{"role": "user", "content": typed.format(**{fact: name})}])
                assert (heard.intent.kind, heard.facts) == (Kind.STATE, {fact: name}), typed


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_may_be_stated_and_asked_for_at_once(world: World, fact: str) -> None:
    for asks in RECALLS[fact]:
        says = f"{STATES[fact][0].format(**{fact: 'Tobika'})}. {asks}"
        heard = world.hear([{"role": "user", "content": says}])
        assert (heard.intent.kind, heard.facts) == (Kind.RECALL, {fact: "Tobika"}), says


def test_the_assistants_own_word_for_a_topic_is_understood(world: World) -> None:
    for topic in world.topics:
        for says in (topic.title, f"Tell me about {topic.title}.", f"help with {topic.title}"):
            assert world.hear([{"role": "user", "content": says}]).intent.topic == topic.name, says


def test_shorter_says_one_thing_that_was_just_said(world: World) -> None:
    rng = random.Random(6)
    for _ in range(100):
        asked = [{"role": "user", "content": f"how do i {rng.choice(rng.choice(world.topics).asks)}?"}]
        told = [*asked, {"role": "assistant", "content": world.reply(asked, rng)}]
        shorter = [*told, {"role": "user", "content": "shorter please"}]
        brief = world.parse(shorter, reply := world.reply(shorter, rng))
        assert brief.acceptable
        assert brief.sentences == 1
        assert not any((brief.flatters, brief.disclaims, brief.question_back, brief.assumes))
        items = [item for topic in world.topics for item in topic.tips + topic.facts if item in reply.lower()]
        assert items
        assert any(item in told[-1]["content"].lower() for item in items), reply


def test_no_two_kinds_share_a_phrase() -> None:
    said = [says for kind in SAYS for says in set(SAYS[kind])] + [
        says for one in RECALLS.values() for says in one
    ]
    assert [says for says, count in Counter(said).items() if count > 1] == []


@pytest.mark.parametrize(
    ("says", "facts"),
    [
        ("my name is Tobika", {"name": "Tobika"}),
        ("Hi, I'm tobika. how do i bake bread?", {"name": "tobika"}),
        ("i am fine", {}),
        ("yes, that is my name", {}),
        ("I am allergic. what now?", {}),
        ("I have a dog called Rufi, and I live in Belmo", {"town": "Belmo", "dog": "Rufi"}),
        ("my name is Ana, call me Ann", {"name": "Ana"}),
        ("José is my name", {"name": "José"}),
    ],
)
def test_facts_are_heard_as_the_user_writes_them(world: World, says: str, facts: dict[str, str]) -> None:
    assert world.hear([{"role": "user", "content": says}]).facts == facts


def test_the_newest_statement_of_a_fact_counts(world: World) -> None:
    messages = [{"role": "user", "content": "my name is Ana"}, {"role": "user", "content": "my name is Bela"}]
    assert world.hear(messages).facts == {"name": "Bela"}


def test_every_kind_of_fact_can_be_stated_and_asked_for(world: World) -> None:
    rng = random.Random(8)
    asked = Counter(world.hear(world.dialogue(rng, focus=Focus.RECALL)).intent.fact for _ in range(800))
    assert set(FACTS) <= set(asked)
