"""Users take turns, nobody is passed over, and who leaves takes nothing along."""

import asyncio

import pytest

from server.engine.turns import Turns

pytestmark = pytest.mark.anyio


class Crowd:
    """Requests that hold their places until they are told to end."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.going_on: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, name: str, n: int = 1) -> None:
        """Its first letter says whose it is."""
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, n))
        await settled()

    async def _hold(self, name: str, n: int) -> None:
        async with self.turns.turn(n, who=name[0]):
            self.going_on.append(name)
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_lines_are_served_in_turn() -> None:
    crowd = Crowd(1)
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        await crowd.ask(name)
    for at in range(6):
        assert len(crowd.going_on) == at + 1
        await crowd.end(crowd.going_on[at])
    assert crowd.going_on == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_a_pair_waits_for_two_places_and_nobody_slips_past_it() -> None:
    crowd = Crowd(2)
    await crowd.ask("a1")
    await crowd.ask("b1", 2)
    await crowd.ask("c1")
    assert crowd.going_on == ["a1"]
    await crowd.end("a1")
    assert crowd.going_on == ["a1", "b1"]
    await crowd.end("b1")
    assert crowd.going_on[-1] == "c1"


async def test_more_than_there_are_places_go_on_alone() -> None:
    crowd = Crowd(2)
    await crowd.ask("a1", 5)
    await crowd.ask("b1")
    assert crowd.going_on == ["a1"]
    await crowd.end("a1")
    assert crowd.going_on == ["a1", "b1"]


async def test_who_leaves_gives_its_places_back_even_when_it_was_just_called() -> None:
    crowd = Crowd(1)
    first = crowd.turns.turn(1, who="a")
    await first.__aenter__()
    for name in ("b1", "c1"):
        await crowd.ask(name)
    crowd.tasks["c1"].cancel()
    await settled()
    await first.__aexit__(None, None, None)  # calls b1, which has not heard of it yet
    crowd.tasks["b1"].cancel()
    await settled()
    assert crowd.going_on == []
    await crowd.ask("d1")
    assert crowd.going_on == ["d1"]


async def test_more_places_let_more_go_on() -> None:
    crowd = Crowd(1)
    for name in ("a1", "b1", "c1"):
        await crowd.ask(name)
    crowd.turns.places = 3
    await crowd.ask("d1")
    assert crowd.going_on == ["a1", "b1", "c1"]
