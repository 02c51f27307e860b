"""A cycle's order, endings and fences, with steps that only leave files: no model is trained here."""

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError
from sqlalchemy import delete, update

from learner import steps, workdir
from learner.cycle import FULL, Step, finite, in_words, run_cycle
from learner.duty import Duty
from learner.tenure import LeaseLost, Tenure
from learner.watch import Stopped
from learner.work import TooFewVotes, Work
from learner.workdir import WorkDir
from server.artifacts import Artifacts
from server.errors import Conflict, NotFound, Unavailable
from server.settings import Settings
from server.store import adapters, cycles, feedback, leases
from server.store import tables as t
from server.store.session import Store
from tests.learner.record import Record, fresh_store

PASSED = {"passed": True, "reasons": ["People prefer it."], "numbers": {}}
REFUSED = {"passed": False, "reasons": ["The votes do not agree.", "And more."], "numbers": {"z": 0.1}}


def collect(work: Work) -> dict[str, Any]:
    return {
        "inputs": {"since": work.cycle.since, "through": work.cycle.through},
        "base": {"id": "tiny", "hash": "abc"},
        "template_hash": "template",
        "parent": work.cycle.champion,
        "metrics": {"users": 3, "picks": 2, "thumbs": 1},
    }


def reward(work: Work) -> dict[str, Any]:
    (work.folder.folder("reward") / "reward.json").write_text("{}")
    return {"metrics": {"accuracy": float("nan")}}


def ppo(work: Work) -> dict[str, Any]:
    (work.folder.folder("candidate") / "adapter_config.json").write_text(
        json.dumps({"seed": work.cycle.seed})
    )
    return {"metrics": {"kl": 1.0}}


def judge(work: Work) -> dict[str, Any]:
    return {"verdict": PASSED, "candidate": True, "metrics": {"win_rate": 0.8}}


def refusing_judge(work: Work) -> dict[str, Any]:
    return {"verdict": REFUSED, "candidate": True, "metrics": {}}


refusing_judge.__name__ = "judge"
STEPS: tuple[Step, ...] = (collect, reward, ppo, judge, steps.register)


def replaced(name: str, step: Step) -> tuple[Step, ...]:
    step.__name__ = name
    return tuple(step if known.__name__ == name else known for known in STEPS)


class House:
    """One installation with votes in it, and as many learners as a test wants."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings(
            data_dir=folder, min_labels=3, train_every_votes=5, learner_lease_seconds=30.0, profile="tiny"
        ).model_copy(update=settings)
        self.store: Store = fresh_store(folder)
        self.artifacts = Artifacts(str(folder))
        self.stop = threading.Event()
        self.record = Record(self.store)
        self.vote(6)

    def vote(self, count: int) -> None:
        for n in range(count):
            self.record.thumb(self.record.turn(f"user{n}", [n + 1], [2, n]), "up")

    def duty(self, *, steps: tuple[Step, ...] = STEPS, waits: tuple[float, ...] = ()) -> Duty:
        return Duty(
            self.settings,
            self.store,
            self.artifacts,
            stop=self.stop,
            run=partial(run_cycle, steps=steps, waits=waits),
        )

    def once(self, *, dry_run: bool = False, **options: Any) -> t.Cycle:
        return self.duty(**options).once(segment="default", dry_run=dry_run)

    def state(self) -> t.LearnerState:
        return self.store.read(lambda s: cycles.learner_state(s, "default"))

    def champion(self) -> int:
        return self.store.read(lambda s: adapters.lane(s, "default")).champion

    def versions(self) -> list[t.Adapter]:
        return self.store.read(adapters.list_adapters)

    def newest(self) -> int:
        return self.store.read(feedback.newest_seq)

    def published(self) -> list[str]:
        root = self.settings.data_dir
        return sorted(
            str(p.parent.relative_to(root)) for p in root.glob("*/**/manifest.json") if ".tmp" not in p.parts
        )


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.store.close()


# --- endings -----------------------------------------------------------------------------------------------


def test_a_candidate_that_passes_the_gate_serves_and_the_watermark_moves(house: House) -> None:
    ended = house.once()
    assert (ended.state, ended.version, house.champion()) == ("promoted", 1, 1)
    assert house.state().watermark == house.newest() == ended.through
    assert house.state().why_not == "no new votes since the last cycle"
    assert house.published() == ["adapters/default/v000001", "reward/v000001"]
    assert [step["name"] for step in ended.steps] == ["collect", "reward", "ppo", "judge", "register"]


def test_the_manifest_says_what_it_came_from_and_carries_the_verdict(house: House) -> None:
    ended = house.once()
    manifest = house.artifacts.verify(house.artifacts.fetch("adapters/default/v000001"))
    assert (manifest["kind"], manifest["version"], manifest["parent"], manifest["cycle"]) == (
        "adapter",
        1,
        0,
        ended.id,
    )
    assert manifest["verdict"] == PASSED
    assert manifest["inputs"] == {"since": 0, "through": ended.through}
    assert manifest["reward_version"] == 1
    assert manifest["created_at"] == ended.created_at.isoformat()
    assert (manifest["people"], manifest["picks"], manifest["thumbs"]) == (3, 2, 1)


def test_a_refused_candidate_is_kept_with_its_reasons_and_does_not_serve(house: House) -> None:
    ended = house.once(steps=replaced("judge", refusing_judge))
    assert (ended.state, ended.reason, ended.verdict) == ("refused", REFUSED["reasons"][0], REFUSED)
    (row,) = house.versions()
    assert (row.passed, house.champion()) == (False, 0)
    assert house.state().watermark == house.newest()
    assert house.state().refusals == 1


def test_a_dry_run_publishes_nothing_takes_no_number_and_reads_no_vote(house: House) -> None:
    ended = house.once(dry_run=True)
    assert (ended.state, ended.verdict, ended.version) == ("rehearsed", PASSED, None)
    assert (house.published(), house.versions(), house.state().watermark) == ([], [], 0)
    assert house.state().last_run_at is None
    assert house.once().version == 1


def test_a_dry_run_that_fails_or_is_cancelled_puts_nothing_off(house: House) -> None:
    def broken(work: Work) -> dict[str, Any]:
        raise ZeroDivisionError

    assert house.once(dry_run=True, steps=replaced("ppo", broken)).state == "failed"
    assert (house.state().last_run_at, house.state().backoff_until) == (None, None)
    house.duty().look()
    assert house.champion() == 1


def test_a_refused_dry_run_leaves_the_watermark_where_it_was(house: House) -> None:
    ended = house.once(dry_run=True, steps=replaced("judge", refusing_judge))
    assert (ended.state, house.state().watermark, house.published()) == ("refused", 0, [])


def test_under_a_manual_rollout_the_candidate_waits(house: House) -> None:
    house.store.write(lambda s: adapters.update_segment(s, "default", rollout="manual"))
    ended = house.once()
    assert (ended.state, house.champion()) == ("published", 0)
    assert "manual" in ended.reason
    assert [row.passed for row in house.versions()] == [True]


def test_a_pinned_segment_keeps_its_champion_and_says_why(house: House) -> None:
    house.store.write(lambda s: adapters.pin(s, segment="default", by="operator", reason="a demo"))
    ended = house.once()
    assert (ended.state, house.champion()) == ("published", 0)
    assert "pinned" in ended.reason
    assert house.state().watermark == ended.through


def test_a_champion_that_changed_meanwhile_is_not_overwritten(house: House) -> None:
    """An operator promotes another version while the cycle runs: the candidate was judged against the old one."""
    house.once()
    house.vote(3)

    def meanwhile(work: Work) -> dict[str, Any]:
        work.store.write(lambda s: adapters.rollback(s, segment="default", by="operator", reason="worse"))
        work.store.write(lambda s: adapters.unpin(s, segment="default", by="operator", reason="go on"))
        return judge(work)

    ended = house.once(steps=replaced("judge", meanwhile))
    assert (ended.state, ended.version, house.champion()) == ("published", 2, 0)
    assert "judged against v1" in ended.reason


def test_the_next_cycle_continues_the_champion(house: House) -> None:
    house.once()
    house.vote(3)
    ended = house.once()
    assert (ended.champion, ended.version, house.champion()) == (1, 2, 2)
    assert (ended.since, ended.through) == (6, 9)


@pytest.mark.parametrize(
    ("base_hash", "template_hash", "parent", "said"),
    [
        ("abc", "template", 1, ""),
        ("abc", "another", 0, "It begins from the bare base: v1 belongs to another chat template."),
        ("def", "template", 0, "It begins from the bare base: v1 belongs to another base model."),
    ],
)
def test_only_a_champion_of_this_base_and_template_is_gone_on_from(
    house: House, base_hash: str, template_hash: str, parent: int, said: str
) -> None:
    """An adapter of another chat template was trained on, and the server refused what came of it."""
    found = []

    def looking(work: Work) -> dict[str, Any]:
        base = SimpleNamespace(base_hash=base_hash, renderer=SimpleNamespace(template_hash=template_hash))
        found.append(steps._parent(work, base))  # type: ignore[arg-type]
        return collect(work)

    house.once()
    house.vote(3)
    house.once(steps=replaced("collect", looking))
    assert found == [(parent, said)]


def test_a_segment_without_a_champion_is_judged_against_the_one_that_answers_there(house: House) -> None:
    house.once()
    house.store.write(lambda s: adapters.ensure_segment(s, "support"))
    lane = Record(house.store, segment="support")
    for n in range(4):
        lane.thumb(lane.turn(f"user{n}", [n + 50], [2]), "up")
    ended = house.duty().once(segment="support")
    assert (ended.state, ended.champion, ended.version) == ("promoted", 1, 2)
    assert house.champion() == 1


# --- trouble -----------------------------------------------------------------------------------------------


def test_a_step_that_breaks_fails_the_cycle_with_its_reason_and_serves_nothing(house: House) -> None:
    def broken(work: Work) -> dict[str, Any]:
        raise ZeroDivisionError("no rollouts")

    ended = house.once(steps=replaced("ppo", broken))
    assert (ended.state, ended.reason) == ("failed", "ZeroDivisionError: no rollouts")
    assert (house.champion(), house.state().watermark, house.published()) == (0, 0, [])
    assert house.state().backoff_until is not None


def test_failures_in_a_row_wait_longer_and_longer(house: House) -> None:
    def broken(work: Work) -> dict[str, Any]:
        raise ZeroDivisionError

    pauses = []
    for _ in range(3):
        ended = house.once(steps=replaced("ppo", broken))
        backoff_until = house.state().backoff_until
        assert backoff_until
        assert ended.finished_at
        pauses.append((backoff_until - ended.finished_at).total_seconds())
    assert pauses == pytest.approx([120, 240, 480], abs=5)


def test_votes_that_turn_out_too_few_are_waited_for_and_said_so(house: House) -> None:
    """The count that set it off knows less than the cycle does: it failed, waited ever longer and failed again."""

    def lacking(work: Work) -> dict[str, Any]:
        raise TooFewVotes("the votes come from 1 person")

    duty = house.duty(steps=replaced("collect", lacking))
    for _ in range(3):
        duty.look()
    (ended,) = house.store.read(lambda s: cycles.list_cycles(s))[0]
    assert (ended.state, ended.reason) == ("refused", "the votes come from 1 person")
    state = house.state()
    assert (state.backoff_until, state.why_not) == (
        None,
        "the votes come from 1 person; no new votes since the last cycle",
    )
    house.vote(1)
    duty.look()
    assert house.state().why_not.startswith("the votes come from 1 person; 4 more votes or ")
    house.vote(4)
    house.duty().look()
    assert house.champion() == 1
    assert house.state().why_not == "no new votes since the last cycle"


def test_voters_without_names_are_too_few_to_judge_each_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = SimpleNamespace(
        base_id="tiny", base_hash="abc", renderer=SimpleNamespace(template_hash=house.record.template_hash)
    )
    monkeypatch.setattr(Work, "base", lambda work: base)
    house.store.write(lambda s: s.execute(update(t.EndUser).values(anonymous=True)).rowcount)
    house.store.write(lambda s: s.execute(delete(t.Voter)).rowcount)
    ended = house.once(steps=replaced("collect", steps.collect))
    reason = "the votes come from 1 person, too few to keep some of them for judging"
    assert (ended.state, ended.reason) == ("refused", reason)
    assert house.state().why_not == f"{reason}; no new votes since the last cycle"


def test_votes_that_may_not_train_are_said_in_words_and_only_those_that_are_there(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason read `(6 other template, 0 picks, 0 prompts, 0 thumbs, 0 users)`."""
    base = SimpleNamespace(
        base_id="tiny", base_hash="abc", renderer=SimpleNamespace(template_hash="another's")
    )
    monkeypatch.setattr(Work, "base", lambda work: base)
    ended = house.once(steps=replaced("collect", steps.collect))
    assert ended.reason == (
        "only 0 votes can be trained on, 3 are needed (6 were given under another chat template)"
    )


def test_one_vote_was_left_out_and_several_were() -> None:
    assert steps.left_out({"picks": 3, "users": 1, "void": 0}) == ""
    assert steps.left_out({"void": 1, "skipped": 2}) == (
        " (2 were skipped, 1 was about a pair of equal replies)"
    )


def test_a_cycle_begun_by_another_version_fails_with_its_reason(house: House) -> None:
    """Its configuration was read where nothing caught the error: every look broke on it, for ever."""

    def reading(work: Work) -> dict[str, Any]:
        assert work.config.collect
        return collect(work)

    def stop(work: Work) -> dict[str, Any]:
        raise Stopped

    with pytest.raises(Stopped):
        house.once(steps=replaced("collect", stop))
    house.store.write(lambda s: s.execute(update(t.Cycle).values(config={"ppo": {"magic": 1}})).rowcount)
    house.duty(steps=replaced("collect", reading)).look()
    ended = house.store.read(lambda s: cycles.list_cycles(s))[0][0]
    assert ended.state == "failed"
    assert "another version of Hone (PpoConfig has no magic)" in ended.reason


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def test_a_cycle_that_ends_its_process_again_and_again_is_given_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for want of memory, it was begun anew by every process that came after."""

    def dies(work: Work) -> dict[str, Any]:
        raise Killed

    asked = house.store.write(lambda s: cycles.request_cycle(s, segment="default", by="operator"))
    for n in range(3):
        monkeypatch.setattr(workdir, "PROCESS", f"process {n}")
        with pytest.raises(Killed):
            house.duty(steps=replaced("ppo", dies)).look()
    monkeypatch.setattr(workdir, "PROCESS", "process 4")
    house.duty(steps=replaced("ppo", dies)).look()
    ended = house.store.read(lambda s: cycles.get_cycle(s, asked.id))
    assert ended.state == "failed"
    assert "the end of 3 processes in a row" in ended.reason


def test_a_cycle_that_gets_on_may_be_killed_as_often_as_it_has_steps(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after each step's result was there, before anything else could be written."""
    for name in ("collect", "reward", "ppo", "judge", "register"):
        monkeypatch.setattr(workdir, "PROCESS", f"killed after {name}")

        def finish(folder: WorkDir, step: str, result: Any, last: str = name) -> None:
            folder._write(f"{step}.json", result)
            if step == last:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(WorkDir, "finish", finish)
            with pytest.raises(Killed):
                house.once()
    assert house.once().state == "promoted"


def test_a_cycle_that_is_stopped_in_good_order_may_be_stopped_as_often_as_one_likes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(work: Work) -> dict[str, Any]:
        raise Stopped

    for n in range(5):
        monkeypatch.setattr(workdir, "PROCESS", f"process {n}")
        with pytest.raises(Stopped):
            house.once(steps=replaced("ppo", stop))
    assert house.once().state == "promoted"


FULL_DISK = (
    OSError(errno.ENOSPC, "No space left on device"),
    shutil.Error([("from", "to", "[Errno 28] No space left on device: 'to'")]),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
)


@pytest.mark.parametrize("trouble", [*FULL_DISK, Unavailable("away", code="database_unavailable")])
def test_a_full_disk_or_an_absent_database_is_waited_for(house: House, trouble: Exception) -> None:
    tries = []

    def flaky(work: Work) -> dict[str, Any]:
        tries.append(1)
        if len(tries) < 3:
            raise trouble
        return ppo(work)

    assert house.once(steps=replaced("ppo", flaky), waits=(0, 0)).state == "promoted"
    assert len(tries) == 3


@pytest.mark.parametrize("trouble", FULL_DISK)
def test_a_disk_that_stays_full_fails_the_cycle_in_plain_words(house: House, trouble: Exception) -> None:
    def full(work: Work) -> dict[str, Any]:
        raise trouble

    ended = house.once(steps=replaced("ppo", full), waits=(0, 0))
    assert ended.state == "failed"
    assert ended.reason.startswith("the disk is full")


def test_a_store_that_stays_away_leaves_the_cycle_to_a_later_look(house: House) -> None:
    """Hours of training were thrown away because an object store was out of reach for ten minutes."""

    def away(work: Work) -> dict[str, Any]:
        raise Unavailable("The object store cannot be reached.")

    house.duty(steps=replaced("register", away), waits=(0,)).look()
    (left,) = house.store.read(lambda s: cycles.list_cycles(s))[0]
    assert left.state == "running"
    house.duty().look()
    assert house.champion() == 1


def test_an_operators_cancel_ends_the_cycle_at_the_next_breath(house: House) -> None:
    def cancelled(work: Work) -> dict[str, Any]:
        work.store.write(lambda s: cycles.cancel_cycle(s, work.cycle.id))
        work.watch._row_at = float("-inf")  # a second has passed
        work.watch(0.5)
        raise AssertionError("it went on")

    ended = house.once(steps=replaced("ppo", cancelled))
    assert (ended.state, house.state().watermark, house.published()) == ("cancelled", 0, [])
    house.duty().look()
    assert house.champion() == 0, "what an operator cancelled must not begin again by itself at once"
    assert house.state().why_not.startswith("the last cycle failed or was cancelled; the next begins at ")


def test_a_cancel_while_no_learner_ran_is_heard_before_any_work(house: House) -> None:
    def stop(work: Work) -> dict[str, Any]:
        raise Stopped

    with pytest.raises(Stopped):
        house.once(steps=replaced("ppo", stop))
    (left,) = house.store.read(lambda s: cycles.list_cycles(s))[0]
    house.store.write(lambda s: cycles.cancel_cycle(s, left.id))
    house.store.write(lambda s: s.execute(update(t.Cycle).values(config={"unreadable": 1})).rowcount)
    house.duty().look()
    assert house.store.read(lambda s: cycles.get_cycle(s, left.id)).state == "cancelled"


def test_a_cancel_is_heard_while_a_full_disk_is_waited_for(house: House) -> None:
    def full(work: Work) -> dict[str, Any]:
        work.store.write(lambda s: cycles.cancel_cycle(s, work.cycle.id))
        raise OSError(errno.ENOSPC, "No space left on device")

    begun = time.monotonic()
    assert house.once(steps=replaced("ppo", full), waits=(60,)).state == "cancelled"
    assert time.monotonic() - begun < 30


def test_a_cancel_in_the_last_step_promotes_nothing(house: House) -> None:
    """Asked for while the version was entered, it was only read by steps that come before."""

    def cancelled(work: Work) -> dict[str, Any]:
        result = steps.register(work)
        work.store.write(lambda s: cycles.cancel_cycle(s, work.cycle.id))
        return result

    ended = house.once(steps=replaced("register", cancelled))
    assert (ended.state, ended.version, house.champion()) == ("published", 1, 0)
    assert ended.reason == "v1 passed the gate and waits for an operator: the cycle was cancelled."


def test_a_sealed_verdict_is_the_verdict(house: House) -> None:
    """Killed between publishing and entering, with its folder lost: judged anew, the registry said otherwise than
    the folder that serves."""

    def killed(work: Work) -> dict[str, Any]:
        steps.publish.publish(
            work.artifacts,
            tenure=work.tenure,
            source=work.folder.folder("candidate"),
            path=f"adapters/default/v{steps.publish.reserve(work.tenure, work.cycle.id).version:06d}",
            manifest={"cycle": work.cycle.id, "parent": 0, "verdict": REFUSED},
        )
        raise Stopped

    with pytest.raises(Stopped):
        house.once(steps=replaced("register", killed))
    house.duty().look()
    ended = house.store.read(lambda s: cycles.list_cycles(s))[0][0]
    assert (ended.state, ended.verdict, house.champion()) == ("refused", REFUSED, 0)
    assert [row.passed for row in house.versions()] == [False]


def test_folders_of_cycles_that_ended_are_swept(house: House) -> None:
    """Killed between a cycle's end and the end of its folder: users' prompts stayed on the disk for good."""

    def stop(work: Work) -> dict[str, Any]:
        raise Stopped

    with pytest.raises(Stopped):
        house.once(steps=replaced("ppo", stop))
    (left,) = house.store.read(lambda s: cycles.list_cycles(s))[0]
    folders = house.settings.data_dir / "cycles"
    (folders / "cyc_of_an_older_record").mkdir()
    with pytest.raises(Stopped):
        house.duty(steps=replaced("ppo", stop)).once(segment="default")
    assert [path.name for path in folders.iterdir()] == [left.id]
    house.store.write(lambda s: s.execute(update(t.Cycle).values(state="cancelled")).rowcount)
    house.duty().look()
    assert list(folders.iterdir()) == []


def test_nothing_of_a_cycle_lingers_in_its_folder(house: House) -> None:
    house.once()
    assert list((house.settings.data_dir / "cycles").iterdir()) == []


# --- stopped, killed, resumed ------------------------------------------------------------------------------


def files(house: House) -> dict[str, bytes]:
    root = house.settings.data_dir
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name in house.published()
        for path in sorted((root / name).iterdir())
    }


@pytest.mark.parametrize("name", ["collect", "reward", "ppo", "judge", "register"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_cycle_stopped_in_any_step_is_resumed_and_ends_as_if_unbroken(
    house: House, name: str, moment: str
) -> None:
    """Stopped before a step's work, or after it but before its result was written down."""
    counted: dict[str, int] = {}
    stopped = []

    def counting(step: Step) -> Step:
        def wrapped(work: Work) -> dict[str, Any]:
            if step.__name__ == name and not stopped and moment == "before":
                stopped.append(name)
                raise Stopped
            counted[step.__name__] = counted.get(step.__name__, 0) + 1
            result = step(work)
            if step.__name__ == name and not stopped:
                stopped.append(name)
                raise Stopped
            return result

        wrapped.__name__ = step.__name__
        return wrapped

    watched = tuple(counting(step) for step in STEPS)
    with pytest.raises(Stopped):
        house.once(steps=watched)
    (left,) = house.store.read(lambda s: cycles.list_cycles(s))[0]
    assert left.state == "running"
    house.duty(steps=watched).look()
    resumed = house.store.read(lambda s: cycles.get_cycle(s, left.id))
    assert (resumed.state, resumed.version, house.champion()) == ("promoted", 1, 1)
    assert [row.version for row in house.versions()] == [1]
    again = 2 if moment == "after" else 1
    assert counted == {step.__name__: again if step.__name__ == name else 1 for step in STEPS}


def test_a_resumed_cycle_reads_what_it_was_begun_with(house: House) -> None:
    def stop(work: Work) -> dict[str, Any]:
        raise Stopped

    with pytest.raises(Stopped):
        house.once(steps=replaced("reward", stop))
    through = house.newest()
    house.vote(4)
    house.duty().look()
    ended = house.store.read(lambda s: cycles.list_cycles(s))[0][0]
    assert ended.through == through
    assert house.state().watermark == through


def test_a_number_once_taken_is_remembered(house: House) -> None:
    """Killed between taking the number and publishing: the resumed cycle must not take another."""

    def half(work: Work) -> dict[str, Any]:
        steps.publish.reserve(work.tenure, work.cycle.id)
        raise Stopped

    with pytest.raises(Stopped):
        house.once(steps=replaced("register", half))
    house.duty().look()
    assert [row.version for row in house.versions()] == [1]
    house.vote(3)
    assert house.once().version == 2


# --- the lease ---------------------------------------------------------------------------------------------


def expire(store: Store) -> None:
    """What a SIGSTOP past the lease looks like from the database."""
    store.write(lambda s: s.execute(update(t.Lease).values(expires_at=t.Lease.heartbeat_at)) and None)


def steal(store: Store) -> None:
    expire(store)
    store.write(lambda s: cycles.acquire_lease(s, name="learner", holder="another", seconds=600))


@pytest.mark.parametrize("lose", [expire, steal])
@pytest.mark.parametrize("name", ["collect", "reward", "ppo", "judge", "register"])
def test_a_learner_that_lost_its_lease_publishes_and_promotes_nothing(
    house: House, lose: Callable[[Store], None], name: str
) -> None:
    real = {step.__name__: step for step in STEPS}[name]

    def asleep(work: Work) -> dict[str, Any]:
        lose(work.store)
        return real(work)

    with pytest.raises(LeaseLost):
        house.once(steps=replaced(name, asleep))
    assert (house.published(), house.versions(), house.champion()) == ([], [], 0)
    assert house.state().watermark == 0


def test_a_lease_lost_after_the_last_step_promotes_nothing(house: House) -> None:
    def asleep(work: Work) -> dict[str, Any]:
        result = steps.register(work)
        steal(work.store)
        return result

    with pytest.raises(LeaseLost):
        house.once(steps=replaced("register", asleep))
    assert (house.champion(), house.state().watermark) == (0, 0)


def test_the_heartbeat_tells_a_working_step_that_the_lease_is_gone(tmp_path: Path) -> None:
    house = House(tmp_path, learner_lease_seconds=0.6)

    def slow(work: Work) -> dict[str, Any]:
        steal(work.store)
        for _ in range(100):
            time.sleep(0.05)
            work.watch._tenure.check()
        raise AssertionError("it never heard")

    with pytest.raises(LeaseLost):
        house.once(steps=replaced("ppo", slow))
    house.store.close()


def test_a_learner_that_slept_asks_the_database_before_it_goes_on(house: House) -> None:
    """It wakes in the middle of a step, and its heartbeat a little later: in between it wrote its checkpoint into the
    folder in which the next holder was at work."""
    hours = [0.0]
    epoch = house.store.write(lambda s: cycles.acquire_lease(s, name="learner", holder="me", seconds=600))
    tenure = Tenure(house.store, epoch=epoch or 0, seconds=600, clock=lambda: 3600 * hours[0])
    tenure.check()
    steal(house.store)
    tenure.check()
    hours[0] = 1.0
    with pytest.raises(LeaseLost):
        tenure.check()


def test_a_heartbeat_keeps_the_lease_of_a_long_step(tmp_path: Path) -> None:
    house = House(tmp_path, learner_lease_seconds=1.0)

    def long(work: Work) -> dict[str, Any]:
        time.sleep(2.0)
        return ppo(work)

    assert house.once(steps=replaced("ppo", long)).state == "promoted"
    house.store.close()


def test_of_two_learners_one_works(house: House) -> None:
    begun, go_on, worked = threading.Event(), threading.Event(), []

    def slow(work: Work) -> dict[str, Any]:
        worked.append(work.tenure.epoch)
        begun.set()
        go_on.wait(20)
        return ppo(work)

    first = threading.Thread(target=house.duty(steps=replaced("ppo", slow)).look)
    first.start()
    assert begun.wait(20)
    house.duty(steps=replaced("ppo", slow)).look()
    go_on.set()
    first.join(20)
    assert len(worked) == 1
    assert house.champion() == 1


def test_a_cycle_by_hand_is_refused_while_another_learner_works(tmp_path: Path) -> None:
    house = House(tmp_path, learner_lease_seconds=0.5)
    with (
        Tenure.acquire(house.store, seconds=10) or pytest.fail("no lease"),
        pytest.raises(Conflict) as refused,
    ):
        house.once()
    assert "another learner" in refused.value.message
    house.store.close()


# --- looking -----------------------------------------------------------------------------------------------


def test_enough_new_votes_start_a_cycle_by_themselves(house: House) -> None:
    house.duty().look()
    ended = house.store.read(lambda s: cycles.list_cycles(s))[0][0]
    assert (ended.by, ended.state) == ("votes", "promoted")


def test_too_few_votes_leave_one_sentence_everywhere(house: House) -> None:
    house.duty().look()
    house.vote(2)
    house.duty().look()
    said = house.state().why_not
    assert said.startswith("3 more votes or ")
    assert house.state().next_due_at is not None


def test_a_learner_that_looks_is_there_and_so_is_one_that_has_just_worked(house: House) -> None:
    """Nothing told a learner that waits for votes from none at all; one that trains holds its lease meanwhile."""

    def doing() -> tuple[str, str]:
        return house.store.read(lambda s: cycles.training(s, "default"))[:2]

    def seen(work: Work) -> dict[str, Any]:
        during.append(doing())
        house.store.write(lambda s: leases.show_up(s, holder="me", seconds=0))  # it looked hours ago
        return reward(work)

    during: list[tuple[str, str]] = []
    assert doing() == ("idle", cycles.NO_LEARNER)
    house.duty(steps=replaced("reward", seen)).look()
    assert during == [("running", "a cycle is running")]
    assert doing() == ("idle", "no new votes since the last cycle")


def test_a_cycle_by_hand_with_too_few_votes_says_how_many_are_missing(tmp_path: Path) -> None:
    house = House(tmp_path, min_labels=10)
    with pytest.raises(TooFewVotes, match="4 more votes to the first 10"):
        house.once()
    assert house.store.read(lambda s: cycles.list_cycles(s))[0] == []
    house.store.close()


def test_a_cycle_keeps_the_number_of_its_threads(tmp_path: Path) -> None:
    house = House(tmp_path, learner_threads=3)
    assert house.once().config["ppo"]["threads"] == 3
    house.store.close()


def test_a_segment_that_is_not_there_is_said_so(house: House) -> None:
    with pytest.raises(NotFound):
        house.duty().once(segment="nowhere")


def test_what_an_operator_asks_for_is_worked_off_at_the_next_look(house: House) -> None:
    asked = house.store.write(
        lambda s: cycles.request_cycle(s, segment="default", by="operator", dry_run=True)
    )
    house.duty().look()
    assert house.store.read(lambda s: cycles.get_cycle(s, asked.id)).state == "rehearsed"


def test_a_look_at_an_absent_database_is_survived(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(work: object) -> None:
        raise Unavailable("The database cannot be reached.")

    monkeypatch.setattr(house.store, "read", away)
    house.duty().look()


# --- words -------------------------------------------------------------------------------------------------


def test_numbers_that_are_none_become_null() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": {"c": float("inf")}, "d": "x"}) == {
        "a": [None, 1.0],
        "b": {"c": None},
        "d": "x",
    }


@pytest.mark.parametrize("number", sorted(FULL))
def test_a_full_disk_is_said_plainly(number: int) -> None:
    assert in_words(OSError(number, "…")).startswith("the disk is full")
