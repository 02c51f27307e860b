"""One learner works at a time, a late one writes nothing, and the watermark moves only with a finished cycle."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import Session

from server.errors import Conflict
from server.store import adapters, cycles, leases
from server.store.ids import now
from server.store.session import Store
from server.store.tables import Cycle, Lease


def acquire(store: Store, *, seconds: float = 30) -> int | None:
    return store.write(lambda s: cycles.acquire_lease(s, name="learner", holder="h", seconds=seconds))


def begun(store: Store, epoch: int, *, dry_run: bool = False, through: int = 9) -> Cycle:
    asked = store.write(lambda s: cycles.request_cycle(s, segment="default", by="votes", dry_run=dry_run))
    return store.write(
        lambda s: cycles.begin(
            s, cycle_id=asked.id, epoch=epoch, champion=0, since=0, through=through, config={"salt": "x"}
        )
    )


def test_the_lease_has_one_holder_and_a_new_epoch_each_time(store: Store) -> None:
    first = acquire(store)
    assert first is not None
    assert acquire(store) is None
    store.write(lambda s: cycles.release_lease(s, name="learner", epoch=first))
    assert acquire(store) == first + 1
    assert not store.write(lambda s: cycles.renew_lease(s, name="learner", epoch=first))
    with pytest.raises(Conflict) as lost:
        store.write(lambda s: cycles.assert_epoch(s, name="learner", epoch=first))
    assert lost.value.code == "lease_lost"


def test_a_learner_that_slept_past_its_lease_writes_nothing_even_if_nobody_else_came(store: Store) -> None:
    epoch = acquire(store, seconds=0.2)
    assert epoch is not None
    row = begun(store, epoch)
    time.sleep(0.3)
    with pytest.raises(Conflict) as lost:
        store.write(lambda s: cycles.end_cycle(s, cycle_id=row.id, epoch=epoch, state="promoted", reason=""))
    assert lost.value.code == "lease_lost"
    assert not store.write(lambda s: cycles.renew_lease(s, name="learner", epoch=epoch))
    assert store.read(lambda s: cycles.get_cycle(s, row.id)).state == "running"


def test_a_renewed_lease_outlives_its_first_term(store: Store) -> None:
    epoch = acquire(store, seconds=0.3)
    assert epoch is not None
    assert store.write(lambda s: cycles.renew_lease(s, name="learner", epoch=epoch, seconds=30))
    time.sleep(0.4)
    store.write(lambda s: cycles.assert_epoch(s, name="learner", epoch=epoch))


def test_a_lease_from_a_clock_that_was_set_back_does_not_lock_everybody_out(store: Store) -> None:
    """The machine came up a year ahead, a learner took the lease and died, and the clock was put right."""
    first = acquire(store)
    assert first is not None
    ahead = timedelta(days=365)
    store.write(
        lambda s: (
            s.execute(
                update(Lease).values(
                    heartbeat_at=now() + ahead, expires_at=now() + ahead + timedelta(seconds=30)
                )
            ).rowcount
        )
    )
    assert acquire(store) == first + 1
    assert acquire(store) is None


@pytest.mark.parametrize(
    ("state", "dry_run", "watermark"),
    [("promoted", False, 9), ("published", False, 9), ("refused", False, 9),
     ("failed", False, 0), ("cancelled", False, 0), ("refused", True, 0), ("rehearsed", True, 0)],
)  # fmt: skip
def test_the_watermark_moves_only_when_votes_were_read_to_the_end(
    store: Store, state: str, dry_run: bool, watermark: int
) -> None:
    epoch = acquire(store)
    assert epoch is not None
    row = begun(store, epoch, dry_run=dry_run)
    store.write(lambda s: cycles.end_cycle(s, cycle_id=row.id, epoch=epoch, state=state, reason="why"))
    memory = store.read(lambda s: cycles.learner_state(s, "default"))
    assert memory.watermark == watermark
    assert memory.refusals == (state == "refused" and not dry_run)
    assert (memory.last_run_at is None) == dry_run, "a rehearsal must not put off the next cycle"
    with pytest.raises(Conflict) as ended:
        store.write(lambda s: cycles.set_progress(s, cycle_id=row.id, epoch=epoch, step="ppo", progress=0.5))
    assert ended.value.code == "cycle_ended"


def test_one_cycle_at_a_time_and_a_begun_one_is_resumed_as_it_was(store: Store) -> None:
    epoch = acquire(store)
    assert epoch is not None
    row = begun(store, epoch)
    with pytest.raises(Conflict) as running:
        store.write(lambda s: cycles.request_cycle(s, segment="default", by="op"))
    assert running.value.code == "cycle_running"
    found = store.read(cycles.next_cycle)
    assert found is not None
    assert found.id == row.id
    again = store.write(
        lambda s: cycles.begin(s, cycle_id=row.id, epoch=epoch, champion=7, since=5, through=99, config={})
    )
    assert (again.champion, again.through, again.config) == (0, 9, {"salt": "x"})


def test_steps_are_kept_once_and_a_cancelled_cycle_hears_of_it(store: Store) -> None:
    epoch = acquire(store)
    assert epoch is not None
    row = begun(store, epoch)
    for seconds in (1.0, 2.0):
        store.write(
            lambda s, t=seconds: cycles.finish_step(
                s, cycle_id=row.id, epoch=epoch, name="collect", seconds=t, metrics={"n": 1}
            )
        )
    assert not store.write(
        lambda s: cycles.set_progress(s, cycle_id=row.id, epoch=epoch, step="ppo", progress=7)
    )
    store.write(lambda s: cycles.cancel_cycle(s, row.id))
    assert store.write(
        lambda s: cycles.set_progress(s, cycle_id=row.id, epoch=epoch, step="ppo", progress=0.1)
    )
    found = store.read(lambda s: cycles.get_cycle(s, row.id))
    assert [(step["name"], step["seconds"]) for step in found.steps] == [("collect", 2.0)]


def test_a_cycle_that_was_not_begun_is_cancelled_at_once(store: Store) -> None:
    asked = store.write(lambda s: cycles.request_cycle(s, segment="default", by="op"))
    assert store.write(lambda s: cycles.cancel_cycle(s, asked.id)).state == "cancelled"
    assert store.read(cycles.next_cycle) is None
    with pytest.raises(Conflict):
        store.write(lambda s: cycles.cancel_cycle(s, asked.id))


def doing(store: Store, segment: str = "default") -> tuple[str, str]:
    return store.read(lambda s: cycles.training(s, segment))[:2]


def show_up(store: Store, *, seconds: float = 30) -> None:
    store.write(lambda s: leases.show_up(s, holder="me", seconds=seconds))


def test_with_no_learner_there_every_state_says_so(store: Store) -> None:
    """Without one nothing was said at all, and a cycle that was asked for waited in silence."""
    assert doing(store) == ("idle", cycles.NO_LEARNER)
    asked = store.write(lambda s: cycles.request_cycle(s, segment="default", by="op"))
    assert doing(store) == ("requested", cycles.NO_LEARNER)
    with pytest.raises(Conflict) as waits:
        store.write(lambda s: cycles.request_cycle(s, segment="default", by="op"))
    assert waits.value.message == f"Cycle {asked.id} is requested; {cycles.NO_LEARNER}."


def test_what_a_learner_said_last_holds_only_while_one_is_there(store: Store) -> None:
    store.write(lambda s: cycles.update_learner_state(s, "default", why_not="37 more votes") and None)
    assert doing(store) == ("idle", cycles.NO_LEARNER)
    show_up(store)
    assert doing(store) == ("idle", "37 more votes")
    show_up(store, seconds=0)
    assert doing(store) == ("idle", cycles.NO_LEARNER)


def test_a_cycle_whose_learner_died_is_interrupted_until_the_next_takes_it_up(store: Store) -> None:
    """It was called running for ever."""
    epoch = acquire(store)
    assert epoch is not None
    begun(store, epoch)
    assert doing(store) == ("running", "a cycle is running")
    store.write(lambda s: adapters.ensure_segment(s, "other") and None)
    assert doing(store, "other") == ("idle", "a cycle of another segment is running")
    store.write(lambda s: cycles.release_lease(s, name=cycles.LEARNER, epoch=epoch))
    assert doing(store) == ("interrupted", cycles.NO_LEARNER)
    show_up(store)
    assert doing(store) == ("interrupted", "a cycle waits for the learner's next look")


def test_a_learner_that_showed_up_by_a_clock_set_back_since_is_not_there(store: Store) -> None:
    show_up(store)
    later = timedelta(hours=3)

    def ahead(session: Session) -> None:
        row = session.get_one(Lease, leases.WATCHING)
        row.heartbeat_at, row.expires_at = row.heartbeat_at + later, row.expires_at + later
        session.add(row)

    store.write(ahead)
    assert doing(store) == ("idle", cycles.NO_LEARNER)
