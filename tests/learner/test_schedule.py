import logging
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.schedule import LONGEST_BACKOFF, Due, NotYet, Schedule, Standing, backoff, clock, due
from server.settings import Settings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = Settings(min_labels=200, train_every_votes=300, train_every_hours=24)


def ask(now: datetime = NOON, **standing: object) -> Due | NotYet:
    return due(Standing(**{"live": 1000, "new": 100, **standing}), now=now, settings=SETTINGS)  # type: ignore[arg-type]


def test_enough_new_votes_are_due_by_votes() -> None:
    assert ask(new=300) == Due("votes")


def test_the_interval_is_due_by_schedule_with_a_single_new_vote() -> None:
    assert ask(new=1, last_run_at=NOON - timedelta(hours=24)) == Due("schedule")


def test_no_new_votes_are_never_due_however_long_ago_the_last_cycle_was() -> None:
    assert ask(new=0, last_run_at=NOON - timedelta(days=900)) == NotYet("no new votes since the last cycle")


def test_the_sentence_names_the_votes_and_the_time_that_are_missing() -> None:
    answer = ask(new=263, last_run_at=NOON - timedelta(hours=22))
    assert answer == NotYet("37 more votes or 14:00 UTC", NOON + timedelta(hours=2))


def test_what_the_votes_lacked_stands_before_what_is_waited_for() -> None:
    answer = ask(new=263, lacks="only 150 votes can be trained on", last_run_at=NOON - timedelta(hours=22))
    assert isinstance(answer, NotYet)
    assert answer.why == "only 150 votes can be trained on; 37 more votes or 14:00 UTC"


def test_one_vote_is_singular() -> None:
    assert ask(new=299, last_run_at=NOON - timedelta(hours=22)) == NotYet(
        "1 more vote or 14:00 UTC", NOON + timedelta(hours=2)
    )


def test_too_few_live_votes_wait_for_the_first_two_hundred() -> None:
    assert ask(live=163, new=163) == NotYet("37 more votes to the first 200", too_few=True)


def test_a_first_cycle_waits_one_interval_from_when_its_due_time_was_set() -> None:
    """The interval must outlive a restart: the stored due time decides, not the start of this process."""
    assert ask(next_due_at=NOON) == Due("schedule")
    assert ask() == NotYet("200 more votes or 02 Mar 12:00 UTC", NOON + timedelta(hours=24))


def test_after_a_failure_it_waits_and_says_until_when() -> None:
    answer = ask(new=500, backoff_until=NOON + timedelta(minutes=4))
    said = "the last cycle failed or was cancelled; the next begins at 12:04 UTC"
    assert answer == NotYet(said, NOON + timedelta(minutes=4))
    assert ask(new=500, backoff_until=NOON) == Due("votes")


def test_a_last_run_in_the_future_blocks_for_one_interval_at_most() -> None:
    """The clock ran ahead by a year, a cycle ran, the clock was put right."""
    answer = ask(last_run_at=NOON + timedelta(days=365))
    assert isinstance(answer, NotYet)
    assert answer.next_due_at == NOON + timedelta(hours=24)


def test_a_last_run_in_the_future_does_not_push_the_due_time_along_at_every_look() -> None:
    ahead, planned, looks = NOON + timedelta(days=365), None, 0
    while not isinstance(
        answer := ask(NOON + timedelta(hours=looks), last_run_at=ahead, next_due_at=planned), Due
    ):
        planned, looks = answer.next_due_at, looks + 1
    assert looks == 24


def test_a_backoff_from_a_clock_that_ran_ahead_is_not_kept() -> None:
    assert ask(new=300, backoff_until=NOON + timedelta(days=365)) == Due("votes")


def test_a_due_time_from_a_clock_that_ran_ahead_is_brought_back() -> None:
    answer = ask(next_due_at=NOON + timedelta(days=365))
    assert isinstance(answer, NotYet)
    assert answer.next_due_at == NOON + timedelta(hours=24)


@given(
    st.integers(0, 2000),
    st.integers(0, 2000),
    st.one_of(st.none(), st.timedeltas(-timedelta(days=4000), timedelta(days=4000))),
    st.one_of(st.none(), st.timedeltas(-timedelta(days=4000), timedelta(days=4000))),
)
def test_no_wait_ends_later_than_the_longest_that_can_be_meant(
    live: int, new: int, last: timedelta | None, pause: timedelta | None
) -> None:
    answer = ask(
        live=live,
        new=min(new, live),
        last_run_at=NOON + last if last is not None else None,
        backoff_until=NOON + pause if pause is not None else None,
    )
    if isinstance(answer, NotYet) and answer.next_due_at:
        assert NOON < answer.next_due_at <= NOON + timedelta(hours=24)


def test_backoff_doubles_up_to_its_longest() -> None:
    assert [backoff(n) for n in (1, 2, 3)] == [timedelta(minutes=m) for m in (2, 4, 8)]
    assert backoff(50) == LONGEST_BACKOFF


@pytest.mark.parametrize(
    ("at", "said"),
    [(NOON + timedelta(hours=2), "14:00 UTC"), (NOON + timedelta(hours=20), "02 Mar 08:00 UTC")],
)
def test_a_time_names_its_day_only_when_it_is_another(at: datetime, said: str) -> None:
    assert clock(at, NOON) == said


def test_a_look_runs_at_once_and_again_and_never_beside_itself() -> None:
    stop, at_work, calls = threading.Event(), threading.Lock(), []

    def look() -> None:
        assert at_work.acquire(blocking=False), "two looks at once"
        time.sleep(0.05)
        calls.append(time.monotonic())
        at_work.release()
        if len(calls) == 3:
            stop.set()

    schedule = Schedule(stop=stop)
    schedule.every(0.01, "look", look)
    schedule.run()
    assert len(calls) >= 3


def test_a_long_look_floods_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each look that was skipped while a cycle ran left a warning: one every few seconds, for hours."""
    stop = threading.Event()

    def look() -> None:
        time.sleep(0.5)
        stop.set()

    schedule = Schedule(stop=stop)
    schedule.every(0.02, "look", look)
    schedule.run()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_stop_waits_for_the_look_in_progress() -> None:
    stop, ended = threading.Event(), []

    def look() -> None:
        stop.set()
        time.sleep(0.2)
        ended.append(True)

    schedule = Schedule(stop=stop)
    schedule.every(60, "look", look)
    schedule.run()
    assert ended == [True]


def test_a_clock_set_back_does_not_make_the_scheduler_sleep_for_that_long() -> None:
    """Jobs planned for what is now tomorrow must be planned again."""
    hours = [0.0]
    schedule = Schedule(stop=threading.Event(), wall=lambda: 1e9 + hours[0] * 3600, monotonic=lambda: 5.0)
    schedule.every(3, "look", lambda: None)
    schedule._scheduler.start(paused=True)
    try:
        job = schedule._scheduler.get_job("look")
        job.modify(next_run_time=datetime.now(UTC) + timedelta(days=1))
        assert not schedule.mind_the_clock()
        hours[0] = -24
        assert schedule.mind_the_clock()
        again = schedule._scheduler.get_job("look").next_run_time
        assert again < datetime.now(UTC) + timedelta(seconds=4)
    finally:
        schedule._scheduler.shutdown(wait=False)
