"""Who may have a place, and when to come back."""

import pytest

from server.engine.places import LONGEST_WAIT, Places
from server.errors import Busy


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ends(places: Places, clock: Clock, who: str, *, replies: int, pace: float) -> None:
    """Replies of `who` that run end, one each `pace` seconds."""
    for _ in range(replies):
        clock.now += pace
        places.leave(who, begun=True)


def begins(places: Places, who: str, *, replies: int) -> None:
    for _ in range(replies):
        places.begin(who)


def refusal(places: Places, n: int = 1, *, who: str = "", **promised: int) -> Busy:
    with pytest.raises(Busy) as caught:
        places.must_admit(n, who=who, promised=promised)
    return caught.value


def test_full_is_full_for_everybody() -> None:
    places = Places(running=2, waiting=1)
    places.take(3, who="a")
    for who in ("a", "b"):
        assert refusal(places, who=who).code == "engine_busy"
    with pytest.raises(Busy):
        places.take(1, who="b")
    places.leave("a", begun=False)
    places.take(1, who="b")


def test_one_user_holds_at_most_half_of_a_crowded_queue_and_others_still_come_in() -> None:
    places = Places(running=2, waiting=8)
    places.take(2, who="flood")
    begins(places, "flood", replies=2)
    for _ in range(4):
        places.must_admit(1, who="flood")
        places.take(1, who="flood")
    refused = refusal(places, who="flood")
    assert refused.code == "too_many_waiting"
    assert "4" in refused.message
    assert "others are still admitted" in refused.message
    for who in ("b", "c", "d", "d"):
        places.must_admit(1, who=who)
        places.take(1, who=who)
    assert refusal(places, who="e").code == "engine_busy"


def test_a_queue_that_is_half_empty_asks_nobody_to_stand_back() -> None:
    places = Places(running=1, waiting=8)
    places.take(1, who="other")
    begins(places, "other", replies=1)
    places.take(4, who="a")
    assert refusal(places, who="a").code == "too_many_waiting"
    places.leave("a", begun=False)
    places.must_admit(1, who="a")


def test_places_that_were_promised_count_for_their_who() -> None:
    places = Places(running=1, waiting=8)
    places.take(1, who="a")
    begins(places, "a", replies=1)
    places.must_admit(1, who="a", promised={"a": 3})
    assert refusal(places, who="a", a=4).code == "too_many_waiting"
    assert refusal(places, who="b", a=4, c=4).code == "engine_busy"
    places.must_admit(1, who="b", promised={"a": 4, "c": 3})


def test_what_was_promised_is_not_refused_for_its_share() -> None:
    """Its rows are written by then; only others may have filled the queue meanwhile, and they were counted."""
    places = Places(running=1, waiting=4)
    places.take(1, who="a")
    places.take(2, who="b")
    places.take(2, who="a")
    assert places.taken == 5


def test_who_has_nothing_waiting_may_ask_for_more_than_a_share() -> None:
    """Four choices where half of the queue is one place: it would be sent away for ever."""
    places = Places(running=1, waiting=3)
    places.must_admit(4, who="a")


def test_half_of_almost_nothing_is_one() -> None:
    places = Places(running=1, waiting=1)
    places.take(1, who="a")
    begins(places, "a", replies=1)
    places.must_admit(1, who="a")
    assert Places(running=1, waiting=0).share == 1


def test_when_to_come_back_goes_by_the_rate_at_which_replies_end(clock: Clock) -> None:
    places = Places(running=4, waiting=12, clock=clock)
    places.take(16, who="a")
    begins(places, "a", replies=4)
    assert refusal(places, who="b").retry_after == 1
    ends(places, clock, "a", replies=4, pace=3)
    places.take(4, who="c")
    assert refusal(places, who="b").retry_after == 3
    assert refusal(places, 4, who="b").retry_after == 12
    assert refusal(places, who="b", x=60).retry_after == LONGEST_WAIT


def test_an_idle_night_says_nothing_of_the_pace(clock: Clock) -> None:
    """Two replies before it, and the first refusal of the morning sent people away for a minute."""
    places = Places(running=1, waiting=0, clock=clock)
    for _ in range(2):
        places.take(1, who="a")
        begins(places, "a", replies=1)
        ends(places, clock, "a", replies=1, pace=2)
    clock.now += 30_000
    places.take(1, who="a")
    clock.now += 4
    assert refusal(places, who="b").retry_after == 4


def test_who_holds_its_share_waits_for_its_own_turns(clock: Clock) -> None:
    places = Places(running=1, waiting=8, clock=clock)
    places.take(6, who="a")
    begins(places, "a", replies=1)
    for who in ("b", "c"):
        places.take(1, who=who)
    ends(places, clock, "a", replies=1, pace=2)
    # Five of its own wait where four may: two of them have to begin before another may come, each a round of three.
    refused = refusal(places, who="a")
    assert refused.code == "too_many_waiting"
    assert refused.retry_after == 2 * (5 + 1 - 4) * 3


def test_a_place_that_is_given_back_from_the_queue_leaves_nothing_behind() -> None:
    places = Places(running=1, waiting=2)
    places.take(3, who="a")
    begins(places, "a", replies=1)
    places.leave("a", begun=True)
    places.leave("a", begun=False)
    places.leave("a", begun=False)
    assert places.taken == 0
    places.must_admit(3, who="a")
