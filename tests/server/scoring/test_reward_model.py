"""The reward model as served: exact files, scores that do not depend on company, features by hand."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.errors import AdapterRejected
from server.modeling import Pair, new_adapter, pad_rows, use_adapter
from server.scoring import (
    CARD,
    CODES_SHARE,
    PLAIN,
    PLAIN_SHARE,
    STATES_SHARE,
    Head,
    RewardModel,
    feature_scale,
    features,
    fixed_count,
    make_code_book,
    sizes,
)
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
    model, size = base.model, 2 * 3 * 32 + PLAIN  # mean and sum at three depths, and the plain features
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


def coded(members: int = 2) -> RewardModel:
    """The same with a small code book, whose counts its heads read too."""
    plain, generator = random_reward(members), torch.Generator().manual_seed(2)
    use_adapter(plain.peft_model, None, trainable=False)
    found = make_code_book(plain.peft_model, some_pairs(40, seed=3), seed=0)
    book = tuple(one._replace(weights=one.weights[:6], bias=one.bias[:6]) for one in found[:2])

    def wider(head: Head) -> Head:
        states = len(head.weights) - PLAIN
        return Head(
            *(torch.cat([part[:states], torch.randn(12, generator=generator), part[states:]]) if part.dim() else part
              for part in head)
        )  # fmt: skip

    return replace(plain, heads=tuple(map(wider, plain.heads)), book=book)


def score(model: RewardModel, pairs: list[Pair]) -> torch.Tensor:
    return model.score([p for p, _ in pairs], [r for _, r in pairs]).mean


@pytest.mark.parametrize("make", [random_reward, coded])
def test_a_saved_reward_model_scores_exactly_the_same(
    make: Callable[[], RewardModel], tmp_path: Path
) -> None:
    model, pairs = make(), some_pairs(9)
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


def test_plain_features_are_length_and_likelihood_by_hand() -> None:
    base = tiny_llama()
    prompt, response = [1, 2, 3], [4, 5]
    found = features(base.model, pad_rows([(prompt, response), ([7], [])]), ())[:, -PLAIN:]
    with torch.no_grad():
        logprobs = base.model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    own = torch.tensor([logprobs[2, 4], logprobs[3, 5]])
    expected = torch.tensor([[math.log(3), float(own.mean()), float(own.min())], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_changes_the_states_but_not_the_plain_features() -> None:
    model, pairs = random_reward(members=1), some_pairs(4)
    found = {}
    for name in (None, "reward0"):
        use_adapter(model.peft_model, name, trainable=False)
        bare = found.get(None)
        found[name] = features(
            model.peft_model, pad_rows(pairs), (), fixed=None if bare is None else bare[:, -PLAIN:]
        )
    assert not torch.equal(found[None][:, :-PLAIN], found["reward0"][:, :-PLAIN])
    heads = (model.heads[0],)
    expected = torch.stack([head(found["reward0"]) for head in heads])
    torch.testing.assert_close(model.raw(pairs), expected, atol=1e-4, rtol=1e-4)


def test_means_and_sums_are_over_the_response_alone() -> None:
    base = tiny_llama()
    short, longer = ([1, 2, 3], [4, 5]), ([9], [8, 7, 6, 5, 4])
    together, alone = (
        features(base.model, pad_rows(pairs), ()) for pairs in ([short, longer, ([7], [])], [short])
    )
    means, sums = together[:, :96], together[:, 96:192]
    torch.testing.assert_close(sums[:2], means[:2] * torch.tensor([[2.0], [5.0]]))
    assert means[0].abs().sum() > 0
    assert not together[2].any()
    torch.testing.assert_close(alone[0], together[0], atol=1e-4, rtol=1e-4)


def test_every_block_of_features_has_its_share_whatever_its_size() -> None:
    book = coded().book
    assert sizes(book) == [6, 6]
    for states in (1, 700):
        scale = feature_scale(states + fixed_count(book), book)
        blocks = scale.split([states, 6, 6, PLAIN])
        shares = [float(block.square().sum() ** 0.5) for block in blocks]
        assert shares == pytest.approx([STATES_SHARE, CODES_SHARE, CODES_SHARE, PLAIN_SHARE])


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


@pytest.mark.parametrize("make", [random_reward, coded])
@pytest.mark.parametrize("adapted", [True, False])
def test_the_score_of_a_beginning_is_the_score_of_the_reply_cut_there(
    make: Callable[[], RewardModel], adapted: bool
) -> None:
    pairs = some_pairs(7)
    model = make()
    if not adapted:
        model = replace(model, names=(None, None))
    model = model.normalised(pairs)
    found = model.score_prefixes(*zip(*pairs, strict=True))
    assert found.mean.shape == (7, 1 + max(len(r) for _, r in pairs))
    for row, (prompt, response) in enumerate(pairs):
        for cut in {0, 1, len(response) // 2, len(response)}:
            alone = model.score([prompt], [response[:cut]])
            assert float(found.mean[row, cut]) == pytest.approx(float(alone.mean[0]), abs=1e-3)
            assert float(found.std[row, cut]) == pytest.approx(float(alone.std[0]), abs=1e-3)
        whole = found.mean[row, len(response)]
        assert bool((found.mean[row, len(response) :] == whole).all())


def test_empty_replies_have_the_score_of_an_empty_reply() -> None:
    model = random_reward()
    found = model.score_prefixes([(1, 2)], [()])
    assert found.mean.tolist() == [[pytest.approx(float(score(model, [((1, 2), ())])[0]), abs=1e-4)] * 2]
