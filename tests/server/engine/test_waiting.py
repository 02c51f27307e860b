"""Who is next, when many wait."""

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.waiting import FairQueue


class Request(NamedTuple):
    id: int
    who: str = ""


def queue_of(*whos: str) -> FairQueue[Request]:
    queue: FairQueue[Request] = FairQueue()
    for i, who in enumerate(whos):
        queue.push(Request(i, who))
    return queue


def drained(queue: FairQueue[Request]) -> list[int]:
    return [queue.pop().id for _ in range(len(queue))]


def test_one_who_is_served_first_come_first_served() -> None:
    assert drained(queue_of(*[""] * 5)) == [0, 1, 2, 3, 4]


def test_whos_take_turns() -> None:
    assert drained(queue_of("a", "a", "a", "b", "b", "c")) == [0, 3, 5, 1, 4, 2]


def test_a_newcomer_waits_for_one_of_each_other_and_no_more() -> None:
    queue = queue_of(*["flood"] * 1000, *["other"] * 3)
    queue.push(Request(5000, "quiet"))
    assert 5000 in [queue.pop().id for _ in range(3)]


def test_who_comes_back_comes_last() -> None:
    """One that asks again as soon as it is served would otherwise keep its place at the head for ever."""
    queue = queue_of("a", "b", "c")
    assert queue.pop().who == "a"
    queue.push(Request(10, "a"))
    assert [queue.pop().who for _ in range(3)] == ["b", "c", "a"]


def test_peek_is_what_pop_takes() -> None:
    queue = queue_of("a", "b", "a", "c", "b")
    while queue:
        assert queue.peek() is queue.pop()
    for take in (queue.peek, queue.pop):
        with pytest.raises(IndexError):
            take()


def test_one_that_left_is_not_served_and_nobody_loses_a_turn() -> None:
    queue = queue_of("a", "a", "b", "c", "c")
    assert queue.remove(0)
    assert not queue.remove(0)
    assert queue.remove(2)
    assert len(queue) == 3
    assert drained(queue) == [1, 3, 4]
    assert not queue.remove(99)


def test_all_that_waits_can_be_looked_through_and_forgotten() -> None:
    queue = queue_of("a", "b", "a")
    assert sorted(request.id for request in queue) == [0, 1, 2]
    queue.clear()
    assert len(queue) == 0
    assert not list(queue)
    queue.push(Request(0, "a"))
    assert queue.pop().id == 0


moves = st.lists(st.one_of(st.sampled_from("abcd"), st.just("pop"), st.integers(0, 40)), max_size=120)


@given(moves)
def test_nobody_is_lost_doubled_or_overtaken_within_a_line(steps: list[str | int]) -> None:
    queue: FairQueue[Request] = FairQueue()
    waits: list[Request] = []
    for number, step in enumerate(steps):
        if step == "pop":
            if waits:
                taken = queue.pop()
                assert taken == next(request for request in waits if request.who == taken.who)
                waits.remove(taken)
        elif isinstance(step, int):
            found = [request for request in waits if request.id == step]
            assert queue.remove(step) == bool(found)
            waits = [request for request in waits if request.id != step]
        else:
            waits.append(Request(number, step))
            queue.push(waits[-1])
        assert len(queue) == len(waits)
        assert set(queue) == set(waits)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60), st.integers(1, 60))
def test_among_those_who_wait_throughout_nobody_gets_two_more_than_another(whos: str, taken: int) -> None:
    queue = queue_of(*whos)
    served = Counter(queue.pop().who for _ in range(min(taken, len(whos))))
    left = Counter(request.who for request in queue)
    still = [served[who] for who in left]
    assert not still or max(served.values()) - min(still) <= 1
