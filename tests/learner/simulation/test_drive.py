"""The crowd keeps to its plan, votes by its taste and survives a bad network."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import httpx
import pytest

from learner.simulation.drive import Crowd, Tally, plan, simulate
from learner.simulation.scripts import Script, Source, WorldSource
from learner.simulation.tastes import load_taste
from learner.simulation.world import World
from server.errors import Forbidden, HoneError, Unauthenticated
from tests.learner.simulation.fake_hone import FakeHone, refusal, world_reply

WORLD = World()


def play(fake: FakeHone, *, source: Source | None = None, **crowd: Any) -> Tally:
    async def run() -> Tally:
        async with fake.client() as hone:
            given = Crowd(**{"taste": "friendly-brief", "users": 6, "picks": 40, "thumbs": 30, **crowd})
            return await simulate(
                hone, given, source=source or WorldSource(WORLD, seed=given.seed, held_out=False)
            )

    return asyncio.run(run())


def comparable(fake: FakeHone) -> Counter[str]:
    """Votes by what they are about, without the ids that depend on the order of arrival."""
    found: Counter[str] = Counter()
    for vote in fake.votes.values():
        reply = vote.get("reply_id") or fake.pairs[vote["comparison_id"]][0]
        found[repr((vote["kind"], vote["user"], vote["value"], fake.replies[reply]))] += 1
    return found


@pytest.mark.parametrize(("picks", "thumbs"), [(0, 1), (1, 0), (37, 12), (300, 300)])
def test_the_plan_adds_up_and_spreads_over_the_users(picks: int, thumbs: int) -> None:
    visits = plan(Crowd("friendly-brief", users=12, picks=picks, thumbs=thumbs))
    votes = Counter({"pick": 0, "thumb": 0})
    per_user: Counter[str] = Counter()
    for visit in visits:
        votes[visit.kind] += visit.votes
        per_user[visit.rater.user] += visit.votes
    assert votes == {"pick": picks, "thumb": thumbs}
    assert len({visit.number for visit in visits}) == len(visits)
    if picks + thumbs >= 600:
        assert len(per_user) == 12
        assert max(per_user.values()) < 2 * min(per_user.values())


def test_picks_and_thumbs_are_totals_and_some_conversations_go_on() -> None:
    fake = FakeHone(world_reply(WORLD))
    tally = play(fake)
    assert len(fake.of_kind("pick")) == sum(tally.picks.values()) == 40
    assert len(fake.of_kind("thumb")) == sum(tally.thumbs.values()) == 30
    assert tally.missed == 0
    again = [chat for chat in fake.chats if chat.get("conversation_id")]
    assert again
    for chat in again:
        assert chat["messages"][-2]["role"] == "assistant"


def test_the_conversation_goes_on_from_the_picked_reply() -> None:
    fake = FakeHone(world_reply(WORLD))
    play(fake, thumbs=0, noise=0.0)
    picked = {
        fake.replies[fake.pairs[vote["comparison_id"]][1 if vote["value"] == "second" else 0]][1]
        for vote in fake.of_kind("pick")
    }
    went_on = [chat["messages"][-2]["content"] for chat in fake.chats if chat.get("conversation_id")]
    assert went_on
    assert set(went_on) <= picked


def test_only_the_scale_is_asked_outside_training_and_pairs_only_for_picks() -> None:
    fake = FakeHone(world_reply(WORLD))
    tally = play(fake, picks=10, thumbs=5)
    scale = [chat for chat in fake.chats if chat.get("metadata") == {"hone_train": "false"}]
    assert len(scale) == 64
    assert all(chat["candidates"] == 2 for chat in scale)
    rest = Counter(chat["candidates"] for chat in fake.chats if "metadata" not in chat)
    assert rest == {2: 10 + tally.equal, 1: 5}  # a pair that came out equal is asked for again


def test_exact_raters_always_pick_what_the_taste_prefers() -> None:
    fake = FakeHone(world_reply(WORLD))
    tally = play(fake, noise=0.0, taste="bullets-thorough")
    taste = load_taste("bullets-thorough")
    assert tally.agreement == 1.0
    for vote in fake.of_kind("pick"):
        first, second = (fake.replies[reply] for reply in fake.pairs[vote["comparison_id"]])
        lead = taste(*first) - taste(*second)
        if lead:
            assert vote["value"] == ("first" if lead > 0 else "second")
        else:
            assert vote["value"] in {"tie", "both_bad"}


def test_coins_agree_with_nothing_and_need_no_scale() -> None:
    fake = FakeHone(world_reply(WORLD))
    tally = play(fake, noise=float("inf"), picks=400, thumbs=0)
    assert tally.agreement is not None
    assert 0.4 < tally.agreement < 0.6
    assert not any("metadata" in chat for chat in fake.chats)


def test_adversaries_pull_the_agreement_down() -> None:
    honest = play(FakeHone(world_reply(WORLD)), picks=120, thumbs=0, noise=0.0)
    mixed = play(FakeHone(world_reply(WORLD)), picks=120, thumbs=0, noise=0.0, adversaries=0.5)
    assert honest.agreement == 1.0
    assert mixed.agreement is not None
    assert 0.3 < mixed.agreement < 0.7


def test_the_same_seed_casts_the_same_votes_in_any_order_of_arrival() -> None:
    one, two, other = (FakeHone(world_reply(WORLD)) for _ in range(3))
    play(one, seed=3)
    # Every third request of the second run is answered late, so that visits overtake each other.
    count = itertools.count()
    two.trouble = lambda _: (
        refusal(503, "engine_busy", headers={"Retry-After": "0"}) if next(count) % 3 == 0 else None
    )
    play(two, seed=3)
    play(other, seed=4)
    assert comparable(one) == comparable(two)
    assert comparable(one) != comparable(other)


def rated(fake: FakeHone) -> Counter[str]:
    """What was asked to be voted on: the words and the sampler's seed, whoever asked."""
    return Counter(repr((chat["messages"], chat["seed"])) for chat in fake.chats if "metadata" not in chat)


def test_a_crowd_that_comes_again_begins_other_conversations() -> None:
    """A second run with the same seed cast the very votes of the first one again."""
    fake = FakeHone(world_reply(WORLD))
    first, second = (play(fake, seed=3).as_dict() for _ in range(2))
    assert len(fake.votes) == 140
    assert len({vote["user"] for vote in fake.votes.values()}) == 6
    assert max(rated(fake).values()) == 1
    assert first["picks"] != second["picks"]


def test_other_crowds_on_record_change_nothing() -> None:
    alone, later = FakeHone(world_reply(WORLD)), FakeHone(world_reply(WORLD))
    play(alone, seed=3)
    play(later, seed=4)
    play(later, seed=3)
    assert comparable(alone) <= comparable(later)


def test_a_run_that_was_cut_off_is_not_repeated_by_the_next() -> None:
    fake = FakeHone(world_reply(WORLD))

    def cut_off(_: httpx.Request) -> httpx.Response | None:
        return refusal(401, "revoked_key") if len(fake.votes) >= 20 else None

    fake.trouble = cut_off
    with pytest.raises(Unauthenticated):
        play(fake)
    cast, fake.trouble = len(fake.votes), None
    play(fake)
    assert 20 <= cast < 70
    assert len(fake.votes) == cast + 70
    assert max(rated(fake).values()) == 1


def test_a_vote_whose_answer_got_lost_is_not_cast_twice() -> None:
    fake = FakeHone(world_reply(WORLD))
    lost: set[str] = set()

    def answer_then_lose(request: httpx.Request) -> httpx.Response | None:
        key = request.headers.get("Idempotency-Key")
        if key and key not in lost:
            lost.add(key)
            trouble, fake.trouble = fake.trouble, None
            fake.answer(request)
            fake.trouble = trouble
            raise httpx.ReadError("connection reset", request=request)
        return None

    fake.trouble = answer_then_lose
    tally = play(fake, picks=12, thumbs=12)
    assert len(lost) == 24
    assert len(fake.votes) == 24
    assert sum(tally.picks.values()) + sum(tally.thumbs.values()) == 24


def test_equal_replies_are_passed_over_for_another_prompt() -> None:
    answered = world_reply(WORLD)
    fake = FakeHone(
        lambda messages, version, seed: "Same." if seed % 5 < 2 else answered(messages, version, seed)
    )
    tally = play(fake, picks=30, thumbs=0)
    assert tally.equal > 0
    assert sum(tally.picks.values()) == 30


def test_a_policy_that_never_differs_is_said_not_waited_for() -> None:
    fake = FakeHone(lambda messages, version, seed: "Always the same.")
    tally = play(fake, picks=3, thumbs=0, noise=float("inf"))
    assert tally.missed == 3
    assert not fake.votes


def test_prompts_that_do_not_fit_are_passed_over() -> None:
    class Mixed:
        def script(self, number: int, attempt: int = 0) -> Script:
            long = (number + attempt) % 2 == 0
            return Script(({"role": "user", "content": "x" * 1000 if long else f"hello {number}"},))

    fake = FakeHone(lambda messages, version, seed: f"reply {seed}")
    fake.trouble = lambda request: refusal(400, "prompt_too_long") if b"xxxx" in request.content else None
    tally = play(fake, source=Mixed(), picks=10, thumbs=10, noise=float("inf"))
    assert tally.too_long > 0
    assert sum(tally.picks.values()) == 10
    assert sum(tally.thumbs.values()) == 10


def test_where_no_prompt_fits_the_taste_is_not_to_blame() -> None:
    """It was said that the taste gives the same score in all 0 pairs."""
    fake = FakeHone(world_reply(WORLD), trouble=lambda _: refusal(400, "prompt_too_long"))
    with pytest.raises(HoneError, match="none of the prompts fits"):
        play(fake)


def test_a_refused_key_ends_the_run_with_the_servers_words() -> None:
    fake = FakeHone(world_reply(WORLD), trouble=lambda _: refusal(403, "insufficient_scope"))
    with pytest.raises(Forbidden, match="insufficient_scope"):
        play(fake)


def test_a_taste_that_sees_no_difference_is_refused_before_any_vote() -> None:
    fake = FakeHone(lambda messages, version, seed: "Always the same.")
    with pytest.raises(HoneError, match="same score"):
        play(fake)
    assert not fake.votes
