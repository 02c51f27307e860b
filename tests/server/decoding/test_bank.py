"""Stacked adapters equal plain peft, alone and mixed in one batch."""

from pathlib import Path

import pytest
import torch

from server.decoding import AdapterBank
from server.decoding.bank import FEW_ROWS
from server.errors import NotFound
from server.modeling import Base, hidden_states, logits_of
from tests.fakes import FAMILIES, random_adapter, tiny_base, tiny_llama

IDS = torch.arange(40).reshape(4, 10) * 5 % 250
POSITIONS = torch.arange(10)[None]


@torch.no_grad()
def logits(base: Base) -> torch.Tensor:
    return logits_of(base.model, hidden_states(base.model, IDS, POSITIONS))


def adapters(base: Base, folder: Path) -> dict[int, Path]:
    return {
        v: random_adapter(base, folder / str(v), seed=v, rank=r, strength=0.05)
        for v, r in ((1, 4), (2, 2), (3, 8))
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_version_equals_plain_peft_alone_and_mixed(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = tiny_base(family)
    folders = adapters(base, tmp_path)
    bank = AdapterBank(base)
    for version, folder in folders.items():
        bank.write(version, bank.prepare(folder))
    alone: dict[int, torch.Tensor] = {}
    for version in (0, 1, 2, 3):
        bank.select([version] * 4)
        alone[version] = logits(base)
    order = (2, 0, 3, 1)
    bank.select(order, length=10)
    mixed = logits(base)
    bank.close()
    for version in (0, 1, 2, 3):
        plain = tiny_base(family)
        if version:
            PeftModel.from_pretrained(plain.model, folders[version]).eval()
        expected = logits(plain)
        scale = float(expected.abs().max())
        assert torch.allclose(alone[version], expected, rtol=0, atol=1e-5 * max(scale, 1)), version
        row = order.index(version)
        assert torch.allclose(mixed[row], expected[row], rtol=0, atol=1e-5 * max(scale, 1)), version
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_closing_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    base = tiny_llama()
    before = logits(base)
    bank = AdapterBank(base)
    bank.write(1, bank.prepare(adapters(base, tmp_path)[1]))
    bank.select([1] * 4)
    assert not torch.equal(logits(base), before)
    bank.close()
    assert torch.equal(logits(base), before)


def test_a_slot_is_used_again_and_holds_nothing_of_its_former_version(tmp_path: Path) -> None:
    base = tiny_llama()
    folders = adapters(base, tmp_path)
    bank = AdapterBank(base)
    bank.write(3, bank.prepare(folders[3]))  # rank 8 fills the slot, rank 2 does not
    bank.remove(3)
    bank.write(2, bank.prepare(folders[2]))
    bank.select([2] * 4)
    reused = logits(base)
    bank.close()
    fresh = AdapterBank(base)
    fresh.write(2, fresh.prepare(folders[2]))
    fresh.select([2] * 4)
    assert torch.allclose(reused, logits(base), atol=1e-5)
    fresh.close()


def test_many_versions_grow_the_bank_without_changing_any(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    wanted: dict[int, torch.Tensor] = {}
    for version in range(1, 8):
        folder = random_adapter(base, tmp_path / str(version), seed=version, rank=version, strength=0.05)
        bank.write(version, bank.prepare(folder))
        bank.select([version] * 4)
        wanted[version] = logits(base)
    for version, expected in wanted.items():
        bank.select([version] * 4)
        assert torch.allclose(logits(base), expected, atol=1e-5)
    assert bank.versions == (0, *range(1, 8))
    bank.close()


def test_selecting_what_is_not_held_is_an_error() -> None:
    bank = AdapterBank(tiny_llama())
    with pytest.raises(NotFound):
        bank.select([0, 5])


def test_a_version_that_is_held_keeps_its_weights(tmp_path: Path) -> None:
    base = tiny_llama()
    folders = adapters(base, tmp_path)
    bank = AdapterBank(base)
    bank.write(1, bank.prepare(folders[1]))
    bank.select([1] * 4)
    before = logits(base)
    bank.write(1, bank.prepare(folders[2]))
    bank.select([1] * 4)
    assert torch.equal(logits(base), before)
    bank.close()


def test_versions_that_do_not_lie_side_by_side_cost_no_more_than_themselves(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    folders = {v: random_adapter(base, tmp_path / str(v), seed=v, rank=4) for v in range(1, 6)}
    for version, folder in folders.items():
        bank.write(version, bank.prepare(folder))
    bank.select([1, 1, 5, 0], length=10)
    together = logits(base)
    assert {a.shape[:2] for a, *_ in bank._selected} == {(2, 4)}
    for row, version in enumerate((1, 1, 5, 0)):
        bank.select([version] * 4)
        assert torch.allclose(together[row], logits(base)[row], atol=1e-5)
    bank.remove(5)
    bank.write(6, bank.prepare(folders[2]))  # into the very slot, of which a copy was kept
    bank.select([1, 1, 6, 0], length=10)
    after = logits(base)
    bank.select([2] * 4)
    assert torch.allclose(after[2], logits(base)[2], atol=1e-5)


def test_one_wide_version_widens_the_others_only_while_it_is_held(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    narrow, wide = (random_adapter(base, tmp_path / str(rank), seed=1, rank=rank) for rank in (2, 16))
    bank.write(1, bank.prepare(narrow))
    bank.select([1] * 4)
    before = logits(base)
    bank.write(2, bank.prepare(wide))
    bank.select([1] * 4)
    assert torch.allclose(logits(base), before, atol=1e-4)
    bank.remove(2)
    bank.select([1] * 4)
    assert torch.allclose(logits(base), before, atol=1e-4)
    assert {a.shape[:2] for a, *_ in bank._selected} == {(1, 2)}


def test_a_version_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    bank.write(1, bank.prepare(random_adapter(base, tmp_path / "1", seed=1)))
    broken = bank.prepare(random_adapter(base, tmp_path / "2", seed=2))
    last = list(broken.factors)[-1]
    a, b = broken.factors[last]
    broken.factors[last] = a, b[:, :-1]
    with pytest.raises(RuntimeError):
        bank.write(2, broken)
    assert bank.versions == (0, 1)
    assert all(not group.a[1].any() and not any(b[1].any() for b in group.b) for group in bank._groups)


def test_what_is_not_finite_in_one_version_stays_in_its_rows(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    for version in (1, 2):
        bank.write(version, bank.prepare(random_adapter(base, tmp_path / str(version), seed=version)))
    for group in bank._groups:
        group.a[1] = float("inf")  # version 2's
    bank.select([1, 2, 0, 1], length=10)
    said = logits(base).isfinite().all(dim=-1).all(dim=-1)
    assert said.tolist() == [True, False, True, True]


def test_a_step_of_one_version_says_the_same_for_any_number_of_rows_and_after_others_have_come(
    tmp_path: Path,
) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)

    def adds_what_it_should(version: int, rows: int) -> bool:
        a, b = bank.factors(version)[0]
        x, out = torch.randn(rows, a.shape[-1]), torch.ones(rows, b.shape[-1])
        bank.select([version] * rows)
        bank.add(0, x, out)
        return torch.allclose(out, 1 + x @ a[0].t() @ b, atol=1e-5)

    bank.write(1, bank.prepare(random_adapter(base, tmp_path / "1", seed=1, rank=2)))
    assert all(adds_what_it_should(1, rows) for rows in (1, 3, 3, FEW_ROWS))
    bank.write(2, bank.prepare(random_adapter(base, tmp_path / "2", seed=2, rank=8)))
    assert all(adds_what_it_should(version, 3) for version in (1, 2, 1))
    bank.remove(1)
    bank.write(3, bank.prepare(random_adapter(base, tmp_path / "3", seed=3, rank=2)))
    assert all(adds_what_it_should(version, 3) for version in (3, 2))
    bank.close()


def test_what_prepared_steps_fill_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    base = tiny_llama()
    bank = AdapterBank(base)
    for version in (1, 2):
        bank.write(version, bank.prepare(random_adapter(base, tmp_path / str(version), seed=version)))
    bank.select([1, 2, 0, 1])
    assert bank._steps
    assert len({step.x.data_ptr() for step in bank._steps}) == len({step.x.shape for step in bank._steps})
    assert len({step.made.data_ptr() for step in bank._steps}) == len(
        {step.made.shape for step in bank._steps}
    )
    bank.select([1] * (FEW_ROWS // 2) + [2])
    assert bank._steps is None  # padded to the larger version these are many rows
