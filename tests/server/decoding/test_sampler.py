"""Drawing ids: the right distribution, the same draw for the same seed, honest log probabilities."""

from dataclasses import replace

import pytest
import torch

from server.decoding.sampler import Draw, choose, uniform
from server.engine.base import Sampling

DRAWS = 20_000
CHI_SQUARE_999 = {9: 27.88, 7: 24.32, 4: 18.47, 2: 13.82}
"""The 99.9 % quantile, by degrees of freedom."""


def logits_row(size: int = 10) -> torch.Tensor:
    return torch.linspace(-1.5, 1.5, size)[torch.randperm(size, generator=torch.Generator().manual_seed(2))]


def counts(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    draws = [Draw(Sampling(**{**_fields(sampling), "seed": seed}), 3) for seed in range(DRAWS)]
    ids = [c.token_id for c in choose(logits.expand(DRAWS, -1), draws)]
    return torch.bincount(torch.tensor(ids), minlength=len(logits)).double()


def _fields(sampling: Sampling) -> dict[str, float | int]:
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}


def chi_square(seen: torch.Tensor, expected: torch.Tensor) -> float:
    possible = expected > 0
    assert seen[~possible].sum() == 0
    wanted = expected[possible] * DRAWS
    return float(((seen[possible] - wanted) ** 2 / wanted).sum())


def test_draws_follow_the_tempered_distribution() -> None:
    logits = logits_row()
    expected = torch.softmax(logits.double() / 0.7, -1)
    assert chi_square(counts(logits, Sampling(temperature=0.7)), expected) < CHI_SQUARE_999[9]


def test_top_k_keeps_the_likeliest_and_their_proportions() -> None:
    logits = logits_row()
    expected = torch.softmax(logits.double(), -1)
    expected[expected < expected.topk(5).values[-1]] = 0
    assert chi_square(counts(logits, Sampling(top_k=5)), expected / expected.sum()) < CHI_SQUARE_999[4]


def test_top_p_keeps_the_smallest_set_that_holds_the_mass() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]).double()
    assert chi_square(counts(logits, Sampling(top_p=0.9)), expected / expected.sum()) < CHI_SQUARE_999[2]


def test_a_tiny_top_p_is_greedy() -> None:
    logits = logits_row()
    seen = counts(logits, Sampling(top_p=1e-9))
    assert seen[logits.argmax()] == DRAWS


def test_uniforms_are_even_and_neighbours_are_not_alike() -> None:
    values = torch.tensor([uniform(seed, position) for seed in range(200) for position in range(100)])
    histogram = torch.histc(values, bins=8, min=0, max=1).double()
    assert float(((histogram - 2500) ** 2 / 2500).sum()) < CHI_SQUARE_999[7]
    grid = values.reshape(200, 100)
    for a, b in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:]), (grid[:-1, 1:], grid[1:, :-1])):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.03


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**80 + 5])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert 0 <= uniform(seed, 0) < 1


def test_each_row_uses_its_own_sampling() -> None:
    logits = logits_row().expand(3, -1)
    draws = [
        Draw(Sampling(temperature=0), 0),
        Draw(Sampling(temperature=5, seed=4), 2),
        Draw(Sampling(top_k=1), 7),
    ]
    together = choose(logits, draws)
    assert together == [choose(logits[:1], [draw])[0] for draw in draws]
    assert together[0].token_id == together[2].token_id == int(logits[0].argmax())


def test_logprobs_ignore_temperature_and_truncation() -> None:
    logits = logits_row()
    (choice,) = choose(logits[None], [Draw(Sampling(temperature=3, top_k=2, top_logprobs=4), 0)])
    raw = torch.log_softmax(logits, -1)
    assert choice.logprob == pytest.approx(float(raw[choice.token_id]), abs=1e-6)
    assert [p for _, p in choice.top] == pytest.approx(raw.topk(4).values.tolist(), abs=1e-6)


def test_a_row_that_is_not_finite_has_no_choice_and_its_neighbours_have_theirs() -> None:
    good, bad = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.full((4,), float("nan"))
    for sampling in (Sampling(temperature=0), Sampling(), Sampling(top_p=0.5, top_logprobs=2)):
        (expected,) = choose(good[None], [Draw(sampling, 0)])
        found = choose(torch.stack([good, bad, good]), [Draw(sampling, 0)] * 3)
        assert found == [expected, None, expected]


CUTS = (
    Sampling(top_p=0.9),
    Sampling(top_k=2000),
    Sampling(top_k=2000, top_p=0.5),
    Sampling(top_k=7, top_p=0.6),
)


@pytest.mark.parametrize("sampling", CUTS)
@pytest.mark.parametrize("sharpness", [0.1, 3.0])
def test_a_large_vocabulary_is_cut_as_if_all_of_it_were_sorted(sharpness: float, sampling: Sampling) -> None:
    """Flat rows, of which no few ids hold enough, and sharp ones."""
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * sharpness
    chances, order = logits.double().softmax(-1).sort(descending=True)
    chances = chances[: sampling.top_k or len(chances)]
    before = chances.cumsum(-1) - chances
    kept = set(order[: len(chances)][before < sampling.top_p * chances.sum()].tolist())
    draws = [Draw(replace(sampling, seed=i), 0) for i in range(400)]
    drawn = {c.token_id for c in choose(logits.expand(len(draws), -1), draws) if c}
    assert drawn <= kept
    assert len(drawn) > min(len(kept), 100) // 2


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-30, 1e-6])
def test_as_good_as_no_temperature_is_none(temperature: float) -> None:
    logits = logits_row()
    (choice,) = choose(logits[None], [Draw(Sampling(temperature=temperature), 0)])
    assert choice
    assert choice.token_id == int(logits.argmax())


def test_an_impossible_id_is_never_drawn_at_the_end_of_the_scale() -> None:
    logits = torch.tensor([0.0, 0.0, float("-inf")])
    assert counts(logits, Sampling())[2] == 0


def test_what_a_cut_row_draws_does_not_depend_on_the_others() -> None:
    """Ties at the edge of the cut, as bfloat16 makes them, beside a row of which a thousand ids hold too little."""
    logits = (torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 2).round()
    flat = torch.zeros(5000)
    wide = Draw(Sampling(top_p=0.999), 0)
    for seed in range(20):
        draw = Draw(Sampling(top_k=300, top_p=0.9, seed=seed), 0)
        alone = choose(logits[None], [draw])
        assert choose(torch.stack([logits, flat]), [draw, wide])[:1] == alone


def test_nothing_is_drawn_that_has_no_chance() -> None:
    """Whatever the point: before the first likely id, between two far apart, and up to the very end."""
    logits = torch.full((3000,), float("-inf"))
    logits[[700, 2100]] = 0.0
    draws = [Draw(Sampling(seed=seed), 0) for seed in range(500)]
    found = [choice.token_id for choice in choose(logits.expand(500, -1), draws) if choice]
    assert set(found) == {700, 2100}
    assert 200 < found.count(700) < 300


def test_a_draw_inverts_the_running_sum_over_the_whole_vocabulary() -> None:
    logits = torch.randn(64, 5000, generator=torch.Generator().manual_seed(3)) * 3
    draws = [Draw(Sampling(temperature=0.8, seed=seed), 5) for seed in range(64)]
    cdf = (logits / 0.8).softmax(-1).double().cumsum(-1)
    points = (
        torch.tensor([uniform(seed, 5) for seed in range(64)], dtype=torch.float64)[:, None] * cdf[:, -1:]
    )
    expected = torch.searchsorted(cdf, points, right=True)[:, 0].tolist()
    assert [choice.token_id for choice in choose(logits, draws) if choice] == expected
