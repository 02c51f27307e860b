"""What a running cycle shows, stores and hears."""

import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from learner.tenure import LeaseLost, Tenure
from learner.watch import Cancelled, Stopped, Watch, shown
from server.errors import Unavailable
from server.store import cycles
from server.store import tables as t
from server.store.session import Store
from tests.learner.record import fresh_store


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A cycle under a lease, a watch over it, and a clock that moves by hand."""

    def __init__(self, store: Store, *, terminal: bool = False) -> None:
        self.store = store
        self.stop = threading.Event()
        self.clock = Clock()
        self.screen = io.StringIO()
        tenure = Tenure.acquire(store, seconds=60)
        assert tenure
        self.tenure = tenure
        asked = store.write(lambda s: cycles.request_cycle(s, segment="default", by="operator"))
        self.cycle_id = asked.id
        self.watch = Watch(
            asked.id,
            tenure=tenure,
            stop=self.stop,
            console=Console(file=self.screen, force_terminal=terminal, width=100),
            clock=self.clock,
        )

    def row(self) -> t.Cycle:
        return self.store.read(lambda s: cycles.get_cycle(s, self.cycle_id))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = fresh_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def scene(store: Store) -> Iterator[Scene]:
    made = Scene(store)
    with made.watch:
        yield made
    made.tenure.release()


def test_the_row_shows_the_step_at_once_and_its_progress_once_a_second(scene: Scene) -> None:
    scene.watch.begin("ppo")
    assert (scene.row().step, scene.row().progress) == ("ppo", 0.0)
    scene.clock.now = 0.5
    scene.watch(0.25)
    assert scene.row().progress == 0.0
    scene.clock.now = 1.5
    scene.watch(0.5)
    assert scene.row().progress == 0.5


def test_without_a_terminal_it_logs_a_line_now_and_then(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "learner.watch")
    scene.watch.begin("ppo")
    for second in range(31):
        scene.clock.now = float(second)
        scene.watch(second / 100, {"kl": 1.2345})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["ppo 0 % ", "ppo 15 % kl 1.23", "ppo 30 % kl 1.23"]
    assert scene.screen.getvalue().strip() == ""


def test_in_a_terminal_it_draws_a_bar(store: Store) -> None:
    scene = Scene(store, terminal=True)
    with scene.watch:
        scene.watch.begin("ppo")
        scene.watch(0.5, {"kl": 1.2345})
    assert "ppo" in scene.screen.getvalue()
    assert "50 %" in scene.screen.getvalue()
    assert "kl 1.23" in scene.screen.getvalue()
    scene.tenure.release()


def test_a_stop_is_heard_at_the_next_word(scene: Scene) -> None:
    scene.watch.begin("ppo")
    scene.stop.set()
    with pytest.raises(Stopped):
        scene.watch(0.1)
    with pytest.raises(Stopped):
        scene.watch.begin("judge")


def test_an_operators_cancel_is_read_with_the_row(scene: Scene) -> None:
    scene.watch.begin("ppo")
    scene.store.write(
        lambda s: cycles.begin(
            s, cycle_id=scene.cycle_id, epoch=scene.tenure.epoch, champion=0, since=0, through=0, config={}
        )
    )
    scene.store.write(lambda s: cycles.cancel_cycle(s, scene.cycle_id))
    scene.clock.now = 2.0
    with pytest.raises(Cancelled):
        scene.watch(0.1)


def test_progress_that_cannot_be_stored_does_not_stop_the_work(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(work: object) -> None:
        raise Unavailable("The database cannot be reached.")

    monkeypatch.setattr(scene.tenure, "write", away)
    scene.watch.begin("ppo")
    scene.watch(0.5)


def test_a_lost_lease_ends_the_work_at_the_next_word(scene: Scene) -> None:
    scene.watch.begin("ppo")
    scene.store.write(lambda s: cycles.release_lease(s, name="learner", epoch=scene.tenure.epoch))
    scene.clock.now = 2.0
    with pytest.raises(LeaseLost):
        scene.watch(0.1)
    assert scene.tenure.lost


def test_a_pause_ends_when_the_process_is_to_stop(scene: Scene) -> None:
    threading.Timer(0.2, scene.stop.set).start()
    with pytest.raises(Stopped):
        scene.watch.pause(60)


def test_numbers_are_shown_short() -> None:
    assert shown({"kl": 1.23456, "score": -0.001234}) == "kl 1.23 score -0.00123"
    assert shown(None) == ""
