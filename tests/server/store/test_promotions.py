"""A segment's log undoes and redoes as an editor does, and refuses what an operator would not want done for him."""

from __future__ import annotations

from string import ascii_letters, digits
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import Conflict, NotFound
from server.store import adapters, feedback
from server.store.promotions import history
from server.store.session import Store
from tests.server.store.conftest import Talk


class Row(NamedTuple):
    kind: str
    version: int
    previous: int


class Editor:
    """A text editor's undo: a list of states and a place in it."""

    def __init__(self) -> None:
        self.states, self.at = [0], 0

    def act(self, action: str, version: int) -> Row | None:
        before = self.states[self.at]
        if action == "promote":
            if version == before:
                return None
            self.states[self.at + 1 :] = [version]
            self.at += 1
        elif action == "rollback":
            if self.at == 0:
                return None
            self.at -= 1
        elif action == "rollforward":
            if self.at == len(self.states) - 1:
                return None
            self.at += 1
        return Row(action, self.states[self.at], before)


ACTIONS = st.tuples(
    st.sampled_from(["promote", "rollback", "rollforward", "pin", "unpin"]), st.integers(0, 4)
)


@given(st.lists(ACTIONS, max_size=40))
def test_history_is_an_editors_undo(actions: list[tuple[str, int]]) -> None:
    editor = Editor()
    rows = [row for action in actions if (row := editor.act(*action))]
    found = history(rows)
    assert list(found.undo) == editor.states[: editor.at]
    assert list(found.redo) == editor.states[editor.at + 1 :][::-1]
    assert found.rolled_back == {row.previous for row in rows if row.kind == "rollback"}


class Registry:
    """The segment `default` and four versions that passed."""

    def __init__(self, store: Store, segment: str = "default") -> None:
        self.store, self.segment = store, segment

    def add(self, *versions: int, passed: bool = True, trained_through: int = 0) -> None:
        for version in versions:
            self.store.write(
                lambda s, v=version: adapters.register(
                    s, version=v, segment=self.segment, parent=v - 1, cycle_id=None, path=f"adapters/v{v}", manifest={},
                    manifest_sha256=str(v), passed=passed, trained_through=trained_through,
                )
            )  # fmt: skip

    def do(self, action: str, **asked: Any) -> Any:
        move = getattr(adapters, action)
        return self.store.write(lambda s: move(s, segment=self.segment, by="op", reason="r", **asked))

    def refused(self, action: str, **asked: Any) -> str:
        with pytest.raises((Conflict, NotFound)) as refusal:
            self.do(action, **asked)
        return refusal.value.code

    @property
    def lane(self) -> adapters.Lane:
        return self.store.read(lambda s: adapters.lane(s, self.segment))


@pytest.fixture
def registry(store: Store) -> Registry:
    made = Registry(store)
    made.add(1, 2, 3, 4)
    return made


def test_rollback_walks_back_to_the_bare_base_and_rollforward_returns(registry: Registry) -> None:
    assert registry.refused("rollback") == "nothing_to_roll_back"
    for version in (1, 2, 3):
        registry.do("promote", version=version)
    assert [registry.do("rollback").version for _ in range(3)] == [2, 1, 0]
    assert registry.refused("rollback") == "nothing_to_roll_back"
    assert [registry.do("rollforward").version for _ in range(3)] == [1, 2, 3]
    assert registry.refused("rollforward") == "nothing_to_roll_forward"
    registry.do("rollback")
    registry.do("promote", version=4)
    assert registry.refused("rollforward") == "nothing_to_roll_forward"
    assert registry.do("rollback").version == 2


def test_a_rollback_may_name_how_far_and_only_what_served_before(registry: Registry) -> None:
    for version in (1, 2, 3):
        registry.do("promote", version=version)
    assert registry.refused("rollback", to=4) == "nothing_to_roll_back"
    assert registry.do("rollback", to=1).version == 1
    assert registry.do("rollforward").version == 2
    assert registry.do("rollforward").version == 3


def test_what_serves_again_is_told_from_what_serves_for_the_first_time(
    registry: Registry, store: Store
) -> None:
    def again(segment: str = "default") -> bool:
        return store.read(lambda s: adapters.served_before(s, segment, adapters.serving_version(s, segment)))

    store.write(lambda s: adapters.ensure_segment(s, "follower") and None)
    assert not again()
    for action, asked, expected in (
        ("promote", {"version": 1}, False),
        ("pin", {}, False),
        ("unpin", {}, False),
        ("promote", {"version": 3}, False),
        ("rollback", {"to": 0}, True),
        ("promote", {"version": 2}, False),  # an older one, and yet for the first time
        ("promote", {"version": 3}, True),
    ):
        registry.do(action, **asked)
        assert (again(), again("follower")) == (expected, expected), action


def test_only_the_expected_champion_is_replaced(registry: Registry) -> None:
    registry.do("promote", version=1, expecting=0)
    assert registry.refused("promote", version=2, expecting=0) == "version_conflict"
    assert registry.refused("promote", version=1) == "already_champion"
    assert registry.refused("promote", version=99) == "unknown_version"
    assert registry.lane.champion == 1


def test_of_two_who_saw_the_same_row_one_is_told_so(registry: Registry, store: Store) -> None:
    from server.store import promotions

    seen = registry.lane
    registry.do("promote", version=1)
    with pytest.raises(Conflict) as late:
        store.write(lambda s: promotions.write_row(s, seen, kind="promote", version=2, by="b", reason=""))
    assert late.value.code == "version_conflict"
    assert registry.lane.champion == 1


def test_nothing_is_promoted_automatically_over_a_pin_or_a_rollback(registry: Registry) -> None:
    automatic = {"automatic": True, "reason": "gate"}

    def learner(version: int, expecting: int) -> Any:
        return registry.store.write(
            lambda s: adapters.promote(
                s, segment="default", version=version, by="learner", expecting=expecting, **automatic
            )
        )

    learner(1, 0)
    registry.do("pin")
    with pytest.raises(Conflict) as pinned:
        learner(2, 1)
    assert pinned.value.code == "segment_pinned"
    registry.do("unpin")
    learner(2, 1)
    registry.do("rollback")
    with pytest.raises(Conflict) as held:
        learner(3, 1)
    assert held.value.code == "segment_held"
    registry.do("unpin")
    assert not registry.lane.held
    with pytest.raises(Conflict) as gone:
        learner(2, 1)
    assert gone.value.code == "version_rejected"
    learner(3, 1)
    registry.add(5, passed=False)
    with pytest.raises(Conflict) as failed:
        learner(5, 3)
    assert failed.value.code == "version_rejected"
    assert registry.do("promote", version=5).version == 5


def test_enough_newer_votes_lift_the_hold_of_a_rollback(
    registry: Registry, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "HELD_VOTES", 3)
    registry.do("promote", version=1)
    talk.vote(talk.turn().comparison_id)
    registry.do("rollback")
    for _ in range(3):
        talk.vote(talk.turn().comparison_id)
    registry.add(5, trained_through=3)
    registry.add(6, trained_through=talk.store.read(feedback.newest_seq))
    gate = {"expecting": 0, "automatic": True}
    assert registry.refused("promote", version=5, **gate) == "segment_held"
    registry.do("promote", version=6, **gate)
    assert not registry.lane.held


def test_a_segment_without_a_champion_serves_defaults_even_when_pinned(
    registry: Registry, store: Store
) -> None:
    store.write(lambda s: adapters.ensure_segment(s, "kids"))
    registry.do("promote", version=2)
    kids = Registry(store, "kids")
    serving = lambda: store.read(lambda s: adapters.serving_version(s, "kids"))  # noqa: E731
    kids.do("pin")
    assert serving() == 2
    kids.do("promote", version=1)
    assert serving() == 1
    kids.do("rollback")
    assert serving() == 2  # what served before, not the bare base that the segment never showed anybody
    with pytest.raises(NotFound) as unknown:
        Registry(store, "nowhere").do("pin")
    assert unknown.value.code == "unknown_segment"


def test_the_first_promotion_of_a_segment_replaces_what_served_there(
    registry: Registry, store: Store
) -> None:
    """It was written as replacing the bare base, and a rollback then served the bare base to everybody."""
    store.write(lambda s: adapters.ensure_segment(s, "kids"))
    registry.do("promote", version=2)
    kids = Registry(store, "kids")
    pin = kids.do("pin")
    assert (pin.version, pin.previous) == (2, 2)
    registry.do("promote", version=3)
    assert kids.lane.champion == 3
    first = kids.do("promote", version=1)
    assert (first.version, first.previous) == (1, 3)
    assert kids.do("rollback").version == 3
    assert kids.refused("rollback") == "nothing_to_roll_back"
    assert kids.do("rollforward").version == 1


def test_a_rollback_to_the_champion_itself_is_refused(registry: Registry) -> None:
    """It wrote a row that changed nothing but held the segment."""
    for version in (1, 2, 1):
        registry.do("promote", version=version)
    assert registry.refused("rollback", to=1) == "already_champion"
    assert (registry.lane.seq, registry.lane.held) == (3, False)
    assert registry.do("rollback", to=0).version == 0


def test_a_version_that_no_server_could_load_is_rejected_and_not_retired(
    registry: Registry, store: Store
) -> None:
    state = lambda v: store.read(lambda s: adapters.adapter_state(s, adapters.get_adapter(s, v)))  # noqa: E731
    for version in (1, 2):
        registry.do("promote", version=version)
    store.write(lambda s: adapters.record_check(s, version=2, outcome="rejected", detail="checksum"))
    registry.do("rollback")
    assert (state(1), state(2)) == ("champion", "rejected")
    store.write(lambda s: adapters.record_check(s, version=1, outcome="verified", detail=""))
    store.write(lambda s: adapters.record_check(s, version=1, outcome="rejected", detail="the disk decayed"))
    registry.do("rollback")
    assert state(1) == "retired"


def test_a_version_rejected_at_load_is_not_promoted_by_anybody(registry: Registry, store: Store) -> None:
    store.write(lambda s: adapters.record_check(s, version=3, outcome="rejected", detail="checksum"))
    assert registry.refused("promote", version=3) == "version_rejected"
    store.write(lambda s: adapters.record_check(s, version=3, outcome="verified", detail=""))
    registry.do("promote", version=3)


def test_states_lineage_and_numbers(registry: Registry, store: Store) -> None:
    registry.add(5, passed=False)
    registry.do("promote", version=1)
    registry.do("promote", version=2)
    rows = store.read(lambda s: {a.version: adapters.adapter_state(s, a) for a in adapters.list_adapters(s)})
    assert rows == {5: "rejected", 4: "candidate", 3: "candidate", 2: "champion", 1: "retired"}
    assert store.read(lambda s: adapters.lineage(s, 3)) == [2, 1, 0]
    assert [store.write(adapters.reserve_version) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(Conflict):
        store.write(
            lambda s: adapters.register(
                s, version=1, segment="default", parent=0, cycle_id=None, path="p", manifest={},
                manifest_sha256="other", passed=True,
            )
        )  # fmt: skip


def test_the_log_is_listed_newest_first_page_by_page(registry: Registry, store: Store) -> None:
    for version in (1, 2, 3):
        registry.do("promote", version=version)
    first, cursor = store.read(lambda s: adapters.list_promotions(s, segment="default", limit=2))
    rest, end = store.read(lambda s: adapters.list_promotions(s, segment="default", limit=2, cursor=cursor))
    assert [row.version for row in first + rest] == [3, 2, 1]
    assert end is None
    assert cursor is not None
    assert not set(cursor) - set(ascii_letters + digits + "-._~:"), "it must stand in an address as it is"
