"""The reward model as served: exact files, scores that do not depend on company, features by hand."""

import json
import random
from pathlib import Path

import pytest
import torch

from server.errors import AdapterRejected
from server.modeling import new_adapter
from server.scoring import CARD, Head, Pair, RewardModel, mean_over, micro_batches, pad_rows
from tests.fakes import tiny_llama


def some_pairs(count: int, *, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)
    return [
        (
            [rng.randrange(256) for _ in range(rng.randint(1, 20))],
            [rng.randrange(256) for _ in range(rng.randint(1, 12))],
        )
        for _ in range(count)
    ]


def random_reward(members: int = 2) -> RewardModel:
    base = tiny_llama()
    model, size = base.model, 3 * 32 + 1  # three depths, and the length
    generator = torch.Generator().manual_seed(1)
    heads = []
    for k in range(members):
        model = new_adapter(model, f"reward{k}", rank=4, alpha=8, seed=k)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if f"lora_B.reward{k}" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        heads.append(
            Head(torch.randn(size, generator=generator), torch.zeros(()), torch.zeros(size), torch.ones(size))
        )
    return RewardModel(model, tuple(f"reward{k}" for k in range(members)), tuple(heads))


def score(model: RewardModel, pairs: list[Pair]) -> torch.Tensor:
    return model.score([p for p, _ in pairs], [r for _, r in pairs]).mean


def test_a_saved_reward_model_scores_exactly_the_same(tmp_path: Path) -> None:
    model, pairs = random_reward(), some_pairs(9)
    model = model.normalised(pairs)
    model.save(tmp_path, base_id="tiny")
    again = RewardModel.load(tiny_llama().model, tmp_path)
    before, after = model.score(*zip(*pairs, strict=True)), again.score(*zip(*pairs, strict=True))
    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.std, after.std)


def test_a_score_does_not_depend_on_the_company_it_is_computed_in() -> None:
    model, pairs = random_reward(), some_pairs(40)
    together = score(model, pairs)
    alone = torch.cat([score(model, [pair]) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_normalised_scores_of_the_base_replies_have_mean_zero_and_deviation_one() -> None:
    pairs = some_pairs(30)
    scores = score(random_reward().normalised(pairs), pairs)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std(unbiased=False)) == pytest.approx(1, abs=1e-4)


def test_members_with_different_heads_disagree() -> None:
    pairs = some_pairs(5)
    assert bool((random_reward().score(*zip(*pairs, strict=True)).std > 0).all())


def test_no_replies_have_no_scores() -> None:
    assert random_reward().score([], []).mean.shape == (0,)


def test_the_mean_by_hand_ignores_what_is_no_response() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [999.0]], [[5.0], [999.0], [999.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert mean_over(hidden, mask).tolist() == [[2.0], [5.0], [0.0]]


def test_rows_point_at_the_tokens_and_at_the_states_before_them() -> None:
    rows = pad_rows([([7, 8, 9], [1, 2]), ([5], [3])])
    assert rows.token_ids.tolist() == [[7, 8, 9, 1, 2], [5, 3, 0, 0, 0]]
    assert rows.at.tolist() == [[3, 4], [1, 0]]
    assert rows.before.tolist() == [[2, 3], [0, 0]]
    assert rows.response_ids.tolist() == [[1, 2], [3, 0]]
    assert rows.is_response.tolist() == [[True, True], [True, False]]


def test_micro_batches_hold_every_row_once() -> None:
    pairs = some_pairs(23)
    groups = list(micro_batches(pairs, size=5))
    assert sorted(i for group in groups for i in group) == list(range(23))
    assert max(map(len, groups)) == 5


@pytest.mark.parametrize("break_it", ["missing", "format", "heads"])
def test_a_broken_folder_is_refused(tmp_path: Path, break_it: str) -> None:
    random_reward().save(tmp_path, base_id="tiny")
    card = json.loads((tmp_path / CARD).read_text())
    if break_it == "missing":
        (tmp_path / CARD).unlink()
    elif break_it == "format":
        (tmp_path / CARD).write_text(json.dumps(card | {"format": 99}))
    else:
        (tmp_path / CARD).write_text(json.dumps(card | {"members": 5, "adapted": [True] * 5}))
    with pytest.raises(AdapterRejected):
        RewardModel.load(tiny_llama().model, tmp_path)
