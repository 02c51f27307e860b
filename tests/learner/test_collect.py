from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from learner.collect import Scope, collect
from learner.config import CollectConfig
from learner.dataset import Dataset, Outcome, Role
from learner.workdir import WorkDir
from server.store import feedback
from server.store import tables as t
from server.store.session import Store
from tests.learner.record import TEMPLATE, Record, fresh_store

FAR = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = fresh_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def record(store: Store) -> Record:
    return Record(store)


def gather(
    record: Record, config: CollectConfig | None = None, *, since: int = 0, through: int | None = None
) -> Dataset:
    def work(session: object) -> Dataset:
        scope = Scope(
            segment="default",
            since=since,
            through=feedback.newest_seq(session) if through is None else through,  # type: ignore[arg-type]
            until=FAR,
            salt="salt",
            template_hash=TEMPLATE,
        )
        return collect(session, scope=scope, config=config or CollectConfig())  # type: ignore[arg-type]

    return record.store.read(work)


def newest(record: Record) -> int:
    return record.store.read(feedback.newest_seq)


def test_a_pick_becomes_a_comparison_of_the_ids_as_shown(record: Record) -> None:
    record.pick(record.turn("ada", [1, 2], [3, 4], [5]), "second")
    (found,) = gather(record).comparisons
    assert (found.first.prompt_ids, found.first.response_ids) == ((1, 2), (3, 4))
    assert found.second.response_ids == (5,)
    assert found.outcome is Outcome.SECOND


@pytest.mark.parametrize("value", ["first", "second", "tie", "both_bad"])
def test_every_pick_that_says_something_is_kept(record: Record, value: str) -> None:
    record.pick(record.turn("ada", [1], [2], [3]), value)
    assert [c.outcome for c in gather(record).comparisons] == [Outcome(value)]


def test_a_skip_says_nothing(record: Record) -> None:
    record.pick(record.turn("ada", [1], [2], [3]), "skip")
    found = gather(record)
    assert found.labels == 0
    assert found.counts["skipped"] == 1


def test_a_thumb_on_either_reply_of_a_pair_counts(record: Record) -> None:
    turn = record.turn("ada", [1], [2], [3])
    record.thumb(turn, "up", reply=1)
    record.thumb(turn, "down", reply=0)
    assert [(th.example.response_ids, th.up) for th in gather(record).thumbs] == [((3,), True), ((2,), False)]


def test_a_changed_mind_counts_once_and_as_it_ended(record: Record) -> None:
    turn = record.turn("ada", [1], [2], [3])
    for value in ("first", "second", "first", "tie"):
        record.pick(turn, value)
    assert [c.outcome for c in gather(record).comparisons] == [Outcome.TIE]


def test_what_happens_after_through_changes_nothing(record: Record) -> None:
    """A cycle reads the record as of its `through`: later votes, changes and retractions belong to the next one."""
    turn = record.turn("ada", [1], [2], [3])
    vote = record.pick(turn, "first")
    through = newest(record)
    before = gather(record, through=through)
    record.retract(vote)
    record.pick(turn, "second")
    record.thumb(turn, "up")
    after = gather(record, through=through)
    assert after.comparisons == before.comparisons
    assert after.thumbs == ()


def test_a_retracted_vote_is_gone(record: Record) -> None:
    turn = record.turn("ada", [1], [2], [3])
    record.retract(record.pick(turn, "first"))
    assert gather(record).labels == 0


def test_turns_kept_out_of_training_give_neither_votes_nor_prompts(record: Record) -> None:
    record.pick(record.turn("ada", [1], [2], [3], train=False), "first")
    found = gather(record)
    assert (found.labels, found.prompts) == (0, ())
    assert found.counts["kept_out"] == 1


def test_pinned_versions_train_nothing(record: Record) -> None:
    record.thumb(record.turn("ada", [1], [2], purpose="pinned"), "up")
    found = gather(record)
    assert (found.labels, found.prompts) == (0, ())


def test_a_partial_reply_is_not_what_the_policy_would_say(record: Record) -> None:
    record.thumb(record.turn("ada", [1], [2], state="cancelled"), "down")
    found = gather(record)
    assert found.labels == 0
    assert found.counts["unfinished"] == 1


def test_ids_of_another_template_are_left_out(record: Record) -> None:
    record.thumb(record.turn("ada", [1], [2], template_hash="old"), "up")
    found = gather(record)
    assert (found.labels, found.prompts) == (0, ())
    assert found.counts["other_template"] == 1


def test_a_void_comparison_and_a_quarantined_vote_do_not_train(record: Record, store: Store) -> None:
    void, doubted = record.turn("ada", [1], [2], [3]), record.turn("ada", [4], [5], [6])
    record.pick(void, "first")
    vote = record.pick(doubted, "first")

    def spoil(session) -> None:  # type: ignore[no-untyped-def]
        session.execute(
            update(t.Comparison).where(col(t.Comparison.turn_id) == void.turn_id).values(state="void")
        )
        session.execute(
            update(t.FeedbackEvent).where(col(t.FeedbackEvent.id) == vote).values(status="quarantined")
        )

    store.write(spoil)
    found = gather(record)
    assert found.labels == 0
    assert (found.counts["void"], found.counts["quarantined"]) == (1, 1)


def test_other_segments_are_not_read(record: Record) -> None:
    Record(record.store, segment="support").thumb(
        Record(record.store, segment="support").turn("ada", [1], [2]), "up"
    )
    found = gather(record)
    assert (found.labels, found.prompts) == (0, ())


def test_a_user_either_trains_or_judges_and_stays_on_that_side(record: Record) -> None:
    for n in range(40):
        turn = record.turn(f"user{n}", [n + 1], [2], [3])
        record.pick(turn, "first")
        record.thumb(turn, "up")
    found = gather(record)
    roles: dict[str, set[Role]] = {}
    for label in (*found.comparisons, *found.thumbs, *found.prompts):
        roles.setdefault(label.user, set()).add(label.role)
    assert all(len(role) == 1 for role in roles.values())
    assert list(roles.values()).count({Role.JUDGE}) == 40 // 3


def test_anonymous_voters_of_a_client_share_one_voice(record: Record) -> None:
    for n in range(30):
        record.thumb(record.turn(f"user{n % 10}", [n + 1], [2]), "up")
    for n in range(100):
        record.thumb(record.turn(None, [100 + n], [2]), "down")
    found = gather(record)
    total = sum(th.weight for th in found.thumbs)
    nameless = sum(th.weight for th in found.thumbs if not th.up)
    assert nameless <= 1.5 / 11 * total * (1 + 1e-9)


def test_anonymous_voters_of_a_client_are_one_person_to_roles_and_folds(record: Record) -> None:
    """Each of their conversations was a person of its own: one script without a name trained and judged at once."""
    for n in range(30):
        turn = record.turn(None, [n + 1], [2], [3])
        record.pick(turn, "first")
        record.thumb(turn, "up")
    found = gather(record)
    labels = (*found.comparisons, *found.thumbs, *found.prompts)
    assert len({(label.user, label.role) for label in labels}) == 1
    assert found.counts["users"] == 1


def test_votes_fade_by_their_own_times(record: Record, store: Store) -> None:
    old = record.thumb(record.turn("ada", [1], [2]), "up")
    record.thumb(record.turn("bob", [3], [4]), "up")

    def age(session) -> None:  # type: ignore[no-untyped-def]
        row = session.exec(t.FeedbackEvent.__table__.select().where(col(t.FeedbackEvent.id) == old)).one()
        earlier = datetime.now(UTC) - timedelta(days=30)
        assert row
        session.execute(
            update(t.FeedbackEvent).where(col(t.FeedbackEvent.id) == old).values(created_at=earlier)
        )

    store.write(age)
    first, second = gather(record).thumbs
    assert first.weight == pytest.approx(0.5, rel=1e-3)
    assert second.weight == 1.0


def test_only_the_newest_votes_are_read_beyond_the_limit(record: Record) -> None:
    for n in range(10):
        record.thumb(record.turn(f"u{n}", [n + 1], [2]), "up")
    found = gather(record, CollectConfig(max_votes=4))
    assert [th.example.prompt_ids for th in found.thumbs] == [(7,), (8,), (9,), (10,)]


def test_each_prompt_is_rolled_out_on_once_and_a_user_has_one_voice_in_them(record: Record) -> None:
    for prompt in ([1], [1], [2], [3]):
        record.turn("ada", prompt, [9])
    record.turn("bob", [4], [9])
    found = gather(record).prompts
    assert sorted(row.token_ids for row in found) == [(1,), (2,), (3,), (4,)]
    assert sum(row.weight for row in found if row.token_ids != (4,)) == pytest.approx(0.5)


def test_older_turns_are_replayed_with_their_share(record: Record) -> None:
    for n in range(20):
        record.turn("ada", [n + 1], [9])
    record.thumb(record.turn("ada", [99], [9]), "up")
    since = newest(record)
    for n in range(20):
        record.turn("ada", [n + 201], [9])
    config = CollectConfig(max_prompts=16, replay_share=0.25)
    found = gather(record, config, since=since).prompts
    recent = [row for row in found if row.token_ids[0] > 200]
    older = [row for row in found if row.token_ids[0] <= 200]
    assert (len(recent), len(older)) == (12, 4)
    assert sum(row.weight for row in older) == pytest.approx(0.25)
    assert sum(row.weight for row in recent) == pytest.approx(0.75)
    assert gather(record, config, since=since).prompts == found


def test_an_empty_record_gives_an_empty_dataset(record: Record) -> None:
    found = gather(record)
    assert (found.comparisons, found.thumbs, found.prompts) == ((), (), ())


def test_a_dataset_comes_back_from_its_file_to_the_last_bit(record: Record, tmp_path: Path) -> None:
    for n in range(12):
        turn = record.turn(f"user{n % 5}", [n + 1], [2, n], [3])
        record.pick(turn, ("first", "tie", "both_bad")[n % 3])
        record.thumb(turn, "down")
    found = gather(record)
    work = WorkDir(tmp_path, "cyc_1")
    work.open()
    work.save_dataset(found)
    assert work.load_dataset() == found
