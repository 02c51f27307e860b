"""How often one caller may knock."""

import pytest

from server import rates
from server.errors import Busy
from server.rates import Rates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_allowed_and_then_the_rate_holds() -> None:
    clock = Clock()
    gate = Rates(10, clock=clock)
    for _ in range(20):
        gate.take("a")
    with pytest.raises(Busy) as caught:
        gate.take("a")
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after == pytest.approx(0.1)
    clock.now += 0.1
    gate.take("a")
    with pytest.raises(Busy):
        gate.take("a")


def test_callers_do_not_spend_each_others_tokens() -> None:
    gate = Rates(1, clock=Clock())
    gate.take("a")
    gate.take("a")
    with pytest.raises(Busy):
        gate.take("a")
    gate.take("b")


def test_zero_means_no_limit() -> None:
    gate = Rates(0, clock=Clock())
    for _ in range(1000):
        gate.take("a")


def test_the_number_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "NAMES", 3)
    gate = Rates(1, clock=Clock())
    for name in "abcde":
        gate.take(name)
    assert list(gate._buckets) == ["c", "d", "e"]
