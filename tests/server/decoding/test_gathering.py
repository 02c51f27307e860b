"""Rows come together by version and find back, whatever the mix."""

from __future__ import annotations

import pytest
import torch

from server.decoding.gathering import Gathering

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(
    "slots", [[0, 1, 0, -1, 1, 2], [2, 2, -1], [-1, 0], [1, 0], [0, 1, 1, 1, 1]], ids=str
)
def test_each_row_gets_what_its_own_version_makes_of_it_and_rows_of_none_get_nothing(
    slots: list[int], length: int
) -> None:
    used = sorted({slot for slot in slots if slot >= 0})
    gathering = Gathering.of(slots, used, length=length, device=CPU)
    assert gathering is not None
    x = torch.randn(len(slots) * length, 5)
    factors = torch.randn(len(used), 5, 4)
    made, flat = gathering.room(4, like=x)
    torch.bmm(gathering.gather(x), factors, out=made)
    found = gathering.scatter(flat)
    for row, slot in enumerate(slots):
        its = slice(row * length, (row + 1) * length)
        expected = x[its] @ factors[used.index(slot)] if slot >= 0 else torch.zeros(length, 4)
        assert torch.allclose(found[its], expected, atol=1e-6)


def test_what_one_version_makes_of_its_rows_reaches_no_other_row() -> None:
    gathering = Gathering.of([0, 1, -1], [0, 1], length=1, device=CPU)
    assert gathering is not None
    made, flat = gathering.room(2, like=torch.zeros(1))
    made[0], made[1] = float("nan"), 1.0
    found = gathering.scatter(flat)
    assert found[0].isnan().all()
    assert found[1:].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_rows_of_one_version_are_together_as_they_are() -> None:
    assert Gathering.of([3, 3], [3], length=2, device=CPU) is None
