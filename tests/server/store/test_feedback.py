"""Feedback is counted once, owned by its user, gapless, and never changed afterwards."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from learner.collect import Scope, collect
from learner.config import CollectConfig
from server.errors import Conflict, NotFound
from server.store import adapters, conversations, cycles, feedback
from server.store.feedback import NewFeedback
from server.store.session import Store
from server.store.tables import EndUser, IdempotentAnswer
from tests.server.store.conftest import Talk

FAR = datetime(2100, 1, 1, tzinfo=UTC)


def test_one_user_has_one_live_vote_on_a_pair_and_history_stays(talk: Talk, store: Store) -> None:
    pair = talk.turn().comparison_id
    talk.vote(pair, "first")
    talk.vote(pair, "tie")
    assert [(vote.seq, vote.value) for vote in talk.live()] == [(2, "tie")]
    rows, _ = store.read(lambda s: feedback.list_feedback(s, filters={}))
    assert [row["value"] for row in rows] == ["tie", "first"]


def test_a_retracted_vote_no_longer_counts_and_the_one_before_it_does(talk: Talk) -> None:
    pair = talk.turn().comparison_id
    talk.vote(pair, "first")
    second = talk.vote(pair, "second")
    assert talk.retract(second.id).status == "retracted"
    assert [vote.value for vote in talk.live()] == ["first"]
    talk.retract(second.id)
    talk.vote(pair, "tie")
    assert [(vote.seq, vote.value) for vote in talk.live()] == [(4, "tie")]


def test_what_was_read_once_reads_the_same_whatever_came_later(talk: Talk) -> None:
    pair = talk.turn().comparison_id
    first = talk.vote(pair, "first")
    talk.retract(first.id)
    talk.vote(pair, "second")
    assert [vote.value for vote in talk.live(through_seq=1)] == ["first"]
    assert talk.live(through_seq=2) == []
    assert [vote.value for vote in talk.live(after_seq=1, through_seq=3)] == ["second"]


@pytest.mark.parametrize("value", ["first", "up"])
def test_a_vote_on_somebody_elses_reply_is_answered_like_one_on_an_unknown_reply(
    talk: Talk, store: Store, value: str
) -> None:
    turn = talk.turn()
    target = turn.comparison_id if value == "first" else turn.reply_ids[0]
    code = "unknown_comparison" if value == "first" else "unknown_reply"
    stranger = store.read(lambda s: conversations.find_user(s, client_id=talk.client_id, name="never seen"))
    for asked in (
        {"target": "cmp_none"},
        {"target": target, "user_id": stranger},
        {"target": target, "client_id": "client_other"},
    ):
        with pytest.raises(NotFound) as refused:
            talk.vote(value=value, **asked)
        assert refused.value.code == code
    assert store.read(feedback.newest_seq) == 0


@pytest.mark.parametrize("named", ["turn", "reply"])
def test_a_pick_on_somebody_elses_turn_does_not_learn_that_it_exists(
    talk: Talk, store: Store, named: str
) -> None:
    """It was answered `not_a_pair`, which told any client which turns of other clients there are."""
    turn = talk.turn("ada", pair=False)
    talk.turn("bob")
    target = turn.turn_id if named == "turn" else turn.reply_ids[0]
    find = lambda name: store.read(  # noqa: E731
        lambda s: conversations.find_user(s, client_id=talk.client_id, name=name)
    )
    for stranger in ({"user_id": find("bob")}, {"client_id": "client_other"}):
        with pytest.raises(NotFound) as refused:
            talk.vote(target, **stranger)
        assert refused.value.code == "unknown_comparison"
    for owner in (None, find("ada")):
        with pytest.raises(Conflict) as own:
            talk.vote(target, user_id=owner)
        assert own.value.code == "not_a_pair"


def test_a_pick_needs_a_pair_that_shows_two_different_replies(talk: Talk, store: Store) -> None:
    turn = talk.turn()
    with pytest.raises(Conflict) as not_a_pair:
        talk.vote(talk.turn(pair=False).turn_id)
    assert not_a_pair.value.code == "not_a_pair"
    store.write(lambda s: conversations.void_comparison(s, comparison_id=turn.comparison_id or ""))
    with pytest.raises(Conflict) as void:
        talk.vote(turn.comparison_id)
    assert void.value.code == "void_comparison"


def test_a_retried_request_gets_its_first_answer_and_adds_nothing(talk: Talk, store: Store) -> None:
    pair = talk.turn().comparison_id or ""

    def give(body_hash: str) -> tuple[dict[str, Any], bool]:
        def work(session: Any) -> tuple[dict[str, Any], bool]:
            def make() -> dict[str, Any]:
                body = NewFeedback("pick", "comparison", pair, value="first")
                return {"id": feedback.append(session, client_id=talk.client_id, user_id=None, body=body).id}

            return feedback.idempotent(
                session, client_id=talk.client_id, key="k", body_hash=body_hash, make=make
            )

        return store.write(work)

    first, replayed = give("a")
    assert not replayed
    assert give("a") == (first, True)
    with pytest.raises(Conflict) as refused:
        give("b")
    assert refused.value.code == "idempotency_conflict"
    assert store.read(feedback.newest_seq) == 1


def test_old_answers_are_forgotten_oldest_first_and_a_few_at_a_time(talk: Talk, store: Store) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def fill(session: Any) -> None:
        for hour in range(5):
            session.add(
                IdempotentAnswer(
                    client_id=talk.client_id, key=f"k{hour}", body_hash="a", answer={},
                    created_at=noon + timedelta(hours=hour),
                )
            )  # fmt: skip

    def left() -> list[str]:
        return store.read(lambda s: sorted(s.exec(select(IdempotentAnswer.key))))

    def forget() -> int:
        before = noon + timedelta(hours=3)
        return store.write(lambda s: feedback.forget_answers(s, before=before, limit=2))

    store.write(fill)
    assert forget() == 2
    assert left() == ["k2", "k3", "k4"]
    assert (forget(), forget()) == (1, 0)
    assert left() == ["k3", "k4"]


def test_seq_is_gapless_although_every_third_vote_is_refused(talk: Talk, store: Store) -> None:
    pairs = [talk.turn(f"user {i}").comparison_id or "" for i in range(8)]

    async def crowd() -> list[Any]:
        targets = [pairs[i % 8] if i % 3 else "cmp_none" for i in range(300)]
        bodies = [NewFeedback("pick", "comparison", target, value="first") for target in targets]
        return await asyncio.gather(
            *(
                store.write_async(
                    lambda s, body=body: feedback.append(s, client_id=talk.client_id, user_id=None, body=body)
                )
                for body in bodies
            ),
            return_exceptions=True,
        )

    answers = asyncio.run(crowd())
    assert sum(isinstance(answer, NotFound) for answer in answers) == 100
    rows, _ = store.read(lambda s: feedback.list_feedback(s, filters={}, limit=500))
    assert sorted(row["seq"] for row in rows) == list(range(1, 201))
    assert len(talk.live()) == 8


def test_labels_are_counted_without_skips_and_without_turns_kept_out_of_training(
    talk: Talk, store: Store
) -> None:
    talk.vote(talk.turn().comparison_id, "skip")
    talk.vote(talk.turn(train=False).comparison_id, "first")
    talk.vote(talk.turn().comparison_id, "second")
    talk.vote(talk.turn().reply_ids[0], "down")
    count = lambda **asked: store.read(lambda s: feedback.count_live_votes(s, segment="default", **asked))  # noqa: E731
    assert (count(), count(after_seq=3), count(most=1), count(through_seq=2)) == (2, 1, 1, 0)


def ran(store: Store, state: str, through: int) -> str:
    """A cycle that read until `through` and made version 5."""
    epoch = store.write(lambda s: cycles.acquire_lease(s, name="learner", holder="t"))
    assert epoch is not None
    asked = store.write(lambda s: cycles.request_cycle(s, segment="default", by="t"))
    config = {"salt": "x", "collect": {"judge_share": 0.0}}
    store.write(
        lambda s: cycles.begin(
            s, cycle_id=asked.id, epoch=epoch, champion=0, since=0, through=through, config=config
        )
    )
    store.write(
        lambda s: cycles.end_cycle(s, cycle_id=asked.id, epoch=epoch, state=state, reason="", version=5)
    )
    store.write(lambda s: cycles.release_lease(s, name="learner", epoch=epoch))
    return asked.id


def test_a_receipt_names_the_cycles_that_read_the_vote_and_only_those(talk: Talk, store: Store) -> None:
    kept, taken_back, later = (talk.vote(talk.turn(f"u{i}").comparison_id) for i in range(3))
    talk.retract(taken_back.id)
    early, promoted = ran(store, "refused", 2), ran(store, "promoted", 4)
    ran(store, "failed", 4)

    def used(vote: feedback.Receipt) -> tuple[feedback.Use, ...]:
        return talk.receipt(vote).used_in

    assert [(use.cycle, use.version, use.role) for use in used(kept)] == [
        (early, 5, "train"),
        (promoted, 5, "train"),
    ]
    assert [use.cycle for use in used(taken_back)] == [early]
    assert [use.cycle for use in used(later)] == [promoted]


def test_receipts_and_counts_agree_with_what_a_cycle_reads(talk: Talk, store: Store) -> None:
    """Receipts named cycles that had dropped the vote, and the learner began cycles for votes that it dropped."""
    pick_of = lambda **turn: talk.vote(talk.turn(**turn).comparison_id)  # noqa: E731
    thumb_of = lambda **turn: talk.vote(talk.turn(**turn).reply_ids[0], "up")  # noqa: E731
    void = talk.turn()
    votes = [
        *(vote(**turn) for vote in (pick_of, thumb_of) for turn in (
            {}, {"train": False}, {"purpose": "pinned"}, {"state": "cancelled"}, {"state": "interrupted"},
        )),
        talk.vote(void.comparison_id), talk.vote(void.reply_ids[1], "down"),
        talk.vote(talk.turn().comparison_id, "skip"),
        thumb_of(template_hash="old"), thumb_of(pair=False), thumb_of(pair=False, state="cancelled"),
    ]  # fmt: skip
    store.write(lambda s: conversations.void_comparison(s, comparison_id=void.comparison_id or ""))
    store.write(
        lambda s: adapters.register(
            s, version=5, segment="default", parent=0, cycle_id=None, path="p", manifest={"template_hash": "t"},
            manifest_sha256="5", passed=True,
        )
    )  # fmt: skip
    through = store.read(feedback.newest_seq)
    ran(store, "promoted", through)
    scope = Scope("default", since=0, through=through, until=FAR, salt="x", template_hash="t")
    read = store.read(lambda s: collect(s, scope=scope, config=CollectConfig()))
    seqs = {label.seq for label in (*read.comparisons, *read.thumbs)}
    receipts = [talk.receipt(vote) for vote in votes]
    named = {seq for seq, found in enumerate(receipts, start=1) if found.used_in}
    assert named == seqs == {1, 6, 12, 15}
    counted = store.read(lambda s: feedback.count_live_votes(s, segment="default"))
    assert counted == len(seqs)


def test_a_pick_on_a_pair_that_became_void_is_not_said_to_count(talk: Talk, store: Store) -> None:
    """Given while the pair was still written: nobody could know yet that it would show nothing to choose between."""
    turn = talk.turn()
    vote = talk.vote(turn.comparison_id)
    assert talk.receipt(vote).status == "counted"
    store.write(lambda s: conversations.void_comparison(s, comparison_id=turn.comparison_id or ""))
    found = talk.receipt(vote)
    assert (found.status, found.used_in) == ("quarantined", ())
    assert found.reason
    ((row,), _) = store.read(lambda s: feedback.list_feedback(s, filters={}))
    assert (row["status"], row["reason"]) == ("quarantined", found.reason)
    talk.retract(vote.id)
    assert talk.receipt(vote).status == "retracted"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0])
def test_of_so_many_voters_just_the_share_judges(share: float) -> None:
    roles = [feedback.role_of(number, judge_share=share) for number in range(3000)]
    for count in range(1, 3001):
        assert roles[:count].count("judge") == math.floor(count * share + 1e-6)
    assert feedback.role_of(None, judge_share=share) == "train"


def test_voters_are_numbered_once_in_the_order_of_their_first_votes(talk: Talk, store: Store) -> None:
    bo, ada = talk.turn("bo"), talk.turn("ada")
    talk.vote(ada.comparison_id, "first")
    for target, value in ((bo.reply_ids[0], "up"), (ada.reply_ids[0], "down"), (bo.comparison_id, "tie")):
        talk.vote(target, value)
    talk.vote(talk.turn(None).comparison_id, "first")  # nobody knows who this is

    def named(session: Session) -> dict[str, int]:
        names = {row.id: row.name for row in session.exec(select(EndUser))}
        found = feedback.numbers_of(session, segment="default", user_ids=names)
        assert not feedback.numbers_of(session, segment="other", user_ids=names)
        return {names[user_id]: number for user_id, number in found.items()}

    assert store.read(named) == {"ada": 0, "bo": 1}


def test_listing_pages_through_everything_once(talk: Talk, store: Store) -> None:
    turn = talk.turn()
    for value in ("up", "down", "up"):
        talk.vote(turn.reply_ids[0], value)
    seen, cursor = [], None
    while True:
        rows, cursor = store.read(
            lambda s, at=cursor: feedback.list_feedback(s, filters={"kind": "thumb"}, cursor=at, limit=2)
        )
        seen += [row["seq"] for row in rows]
        if cursor is None:
            break
    assert seen == [3, 2, 1]
