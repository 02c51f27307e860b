"""A version that answers alone is merged, and nobody can tell but by the clock."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from server import modeling
from server.decoding import (
    AdapterBank,
    Completed,
    Decoder,
    DecodeRequest,
    Fitted,
    Merger,
    fit,
    generate_offline,
    merging,
)
from server.decoding.fused import FusedTrunk
from server.engine.base import Sampling
from server.modeling import Base, Projection
from tests.fakes import byte_tokenizer, random_adapter, tiny_model

GREEDY = Sampling(temperature=0, max_tokens=20)
PROMPTS = [tuple(range(3, 9 + 4 * i)) for i in range(4)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def base_in(dtype: torch.dtype) -> Base:
    model = tiny_model("llama").to(dtype)
    return modeling.base_of(model, byte_tokenizer(), base_id="tiny", base_hash="tiny")


def fitted_with(folder: Path, *versions: int, dtype: torch.dtype = torch.float32) -> Fitted:
    torch.set_num_threads(1)
    fitted = fit(lambda: base_in(dtype))
    assert isinstance(fitted.trunk, FusedTrunk)
    for version in versions:
        path = random_adapter(
            fitted.base, folder / str(version), seed=version, rank=2 + version, strength=0.2
        )
        fitted.bank.write(version, fitted.bank.prepare(path))
    return fitted


def said(fitted: Fitted, versions: Sequence[int]) -> list[Completed]:
    decoder = Decoder(fitted.base, slots=4, bank=fitted.bank, trunk=fitted.trunk)
    return generate_offline(
        decoder,
        [DecodeRequest(i, p, GREEDY, v) for i, (p, v) in enumerate(zip(PROMPTS, versions, strict=True))],
    )


def merge(merger: Merger, fitted: Fitted, version: int, clock: Clock) -> None:
    """As the engine's loop would, after steps of `version` alone."""
    fitted.bank.select([version])
    merger.between_steps()
    clock.now += merging.AFTER_SECONDS
    merger.between_steps()
    assert merger._work
    merger._work[1].exception()  # waits
    merger.between_steps()


def merged_version(fitted: Fitted) -> int | None:
    assert isinstance(fitted.trunk, FusedTrunk)
    return fitted.trunk.merged.version if fitted.trunk.merged else None


def test_merged_it_says_the_same_and_mixed_rows_never_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, clock = fitted_with(tmp_path, 1, 2), Clock()
    merger = Merger(fitted.trunk, fitted.bank, clock=clock)
    crowds = ([1] * 4, [2] * 4, [0] * 4, [1, 2, 0, 1])
    before = [said(fitted, versions) for versions in crowds]
    merge(merger, fitted, 1, clock)
    assert merged_version(fitted) == 1
    used = []
    add = AdapterBank.add
    monkeypatch.setattr(AdapterBank, "add", lambda self, *a: (used.append(self.only), add(self, *a))[1])
    for versions, expected in zip(crowds, before, strict=True):
        found = said(fitted, versions)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert 1 not in used
    assert 2 in used
    assert None in used  # the mixed crowd
    merger.close()


def test_only_what_is_alone_for_a_while_is_merged(tmp_path: Path) -> None:
    fitted, clock = fitted_with(tmp_path, 1, 2), Clock()
    merger = Merger(fitted.trunk, fitted.bank, clock=clock)
    for versions in ([1], [1, 2], [1], [0], [1]):
        fitted.bank.select(versions)
        merger.between_steps()
        clock.now += 0.9 * merging.AFTER_SECONDS
        merger.between_steps()
        assert merger._work is None
    fitted.bank.select([0])
    clock.now += 10 * merging.AFTER_SECONDS
    merger.between_steps()
    assert merger._work is None  # the base has nothing to merge
    merge(merger, fitted, 1, clock)
    merge(merger, fitted, 2, clock)
    assert merged_version(fitted) == 2
    fitted.bank.remove(2)
    merger.between_steps()
    assert merged_version(fitted) is None
    merger.close()


def test_a_merge_that_says_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, clock = fitted_with(tmp_path, 1), Clock()
    merger = Merger(fitted.trunk, fitted.bank, clock=clock)
    plus = Projection.plus
    monkeypatch.setattr(Projection, "plus", lambda self, delta: plus(self, delta * 1.5))
    merge(merger, fitted, 1, clock)
    assert merged_version(fitted) is None
    clock.now += 10 * merging.AFTER_SECONDS
    merger.between_steps()
    assert merger._work is None  # it is not tried again and again
    merger.close()


def test_a_merge_that_cannot_be_checked_is_not_used_and_troubles_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, clock = fitted_with(tmp_path, 1), Clock()
    merger = Merger(fitted.trunk, fitted.bank, clock=clock)
    logits = FusedTrunk.logits

    def only_unmerged(trunk: FusedTrunk, states: torch.Tensor) -> torch.Tensor:
        if trunk.merged:
            raise RuntimeError("not enough memory")
        return logits(trunk, states)

    monkeypatch.setattr(FusedTrunk, "logits", only_unmerged)
    merge(merger, fitted, 1, clock)
    assert merged_version(fitted) is None
    clock.now += 10 * merging.AFTER_SECONDS
    merger.between_steps()
    assert merger._work is None
    merger.close()


def test_without_memory_to_spare_or_in_bfloat16_nothing_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, free in ((torch.float32, 1000), (torch.bfloat16, 2**40)):
        fitted, clock = fitted_with(tmp_path / str(dtype), 1, dtype=dtype), Clock()
        monkeypatch.setattr(merging, "available_bytes", lambda free=free: free)
        merger = Merger(fitted.trunk, fitted.bank, clock=clock)
        fitted.bank.select([1])
        merger.between_steps()
        clock.now += 10 * merging.AFTER_SECONDS
        merger.between_steps()
        assert merger._work is None
        merger.close()
