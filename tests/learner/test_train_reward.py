"""The reward model learns what people plainly want, and the likelihood says what its formulas say."""

import math
import random
from dataclasses import replace

import pytest
import torch

from learner.config import LearnerConfig, RewardConfig
from learner.dataset import Comparison, Dataset, Example, Outcome, Thumb
from learner.likelihood import Manners, fit_linear, negative_log_likelihood, tabulate
from learner.train_reward import FittedReward, accuracy, fit_reward
from server.modeling import new_adapter
from server.scoring import make_code_book
from tests.fakes import tiny_llama

CONFIG = replace(LearnerConfig.profile("tiny").reward, fluency=0.0)
"""What a base of random weights finds likely says nothing about replies."""


def reply(rng: random.Random, *, good: bool) -> tuple[int, ...]:
    """A good reply is made of a few ids that a bad one hardly holds."""
    liked, disliked = (1, 2, 3), (200, 201, 202)
    share = 0.8 if good else 0.2
    return tuple(rng.choice(liked if rng.random() < share else disliked) for _ in range(rng.randint(5, 9)))


def dataset(picks: int, thumbs: int, *, seed: int, users: int = 8) -> Dataset:
    """Everybody prefers the good reply, which stands first in half of the cases."""
    rng = random.Random(seed)
    comparisons, ratings = [], []
    for i in range(picks):
        prompt = tuple(rng.randrange(250) for _ in range(4))
        good_first = rng.random() < 0.5
        first, second = (Example(prompt, reply(rng, good=g)) for g in (good_first, not good_first))
        outcome = Outcome.FIRST if good_first else Outcome.SECOND
        comparisons.append(Comparison(first, second, outcome, f"u{i % users}"))
    for i in range(thumbs):
        good = rng.random() < 0.5
        example = Example(tuple(rng.randrange(250) for _ in range(4)), reply(rng, good=good))
        ratings.append(Thumb(example, good, f"u{i % users}"))
    return Dataset(tuple(comparisons), tuple(ratings), ())


def fit(data: Dataset, config: RewardConfig = CONFIG) -> FittedReward:
    base = tiny_llama()
    model = new_adapter(base.model, "policy", rank=2, alpha=2, seed=0)
    rng = random.Random(9)
    replies = [((1, 2, 3), reply(rng, good=rng.random() < 0.5)) for _ in range(24)]
    book = make_code_book(model, replies, seed=1)
    return fit_reward(model, data, config, book=book, base_replies=replies, seed=1)


def test_an_obvious_preference_is_learnt_from_picks_and_thumbs() -> None:
    fitted = fit(dataset(40, 40, seed=0))
    assert accuracy(fitted.model, dataset(60, 0, seed=1))["accuracy"] > 0.9


def test_thumbs_alone_are_enough() -> None:
    fitted = fit(dataset(0, 80, seed=0))
    assert accuracy(fitted.model, dataset(60, 0, seed=1))["accuracy"] > 0.85


def test_the_same_seed_gives_the_same_model() -> None:
    data, unseen = dataset(12, 12, seed=0), dataset(5, 0, seed=1)
    pairs = [c.first for c in unseen.comparisons]
    scores = [fit(data).model.score([p for p, _ in pairs], [r for _, r in pairs]).mean for _ in range(2)]
    assert torch.equal(*scores)


def test_a_few_votes_make_linear_heads_and_none_of_them_is_held_out() -> None:
    few, enough = dataset(20, 19, seed=0), dataset(20, 20, seed=0)
    linear, adapted = (fit(votes, replace(CONFIG, adapt_from=40)) for votes in (few, enough))
    assert linear.model.names == (None,) * CONFIG.heads
    assert "holdout_nll" not in linear.metrics
    assert "holdout_nll" in adapted.metrics
    assert float(linear.model.score([(1, 2)], [(1, 1)]).std) > 0
    assert accuracy(linear.model, dataset(60, 0, seed=1))["accuracy"] > 0.85


def test_no_votes_are_refused() -> None:
    with pytest.raises(ValueError, match="no votes"):
        fit(Dataset((), (), ()))


# --- the likelihood -------------------------------------------------------------------------------------------

A, B = Example((1,), (2,)), Example((1,), (3,))


def table(*comparisons: Comparison, thumbs: tuple[Thumb, ...] = ()):  # type: ignore[no-untyped-def]
    return tabulate(Dataset(comparisons, thumbs, ()), thumb_weight=0.5, both_bad_weight=0.5)


def test_the_three_outcomes_of_a_pair_have_probability_one_in_all() -> None:
    manners = Manners(1, intercept_sd=1.0)
    scores = torch.tensor([0.7, -0.2])
    total = 0.0
    for outcome in (Outcome.FIRST, Outcome.SECOND, Outcome.TIE):
        votes = table(Comparison(A, B, outcome, "u")).votes
        total += float(manners.pair_log_likelihood(scores, votes).detach().exp())
    assert total == pytest.approx(1.0, abs=1e-5)


def test_a_pick_by_hand() -> None:
    manners = Manners(1, intercept_sd=1.0)
    with torch.no_grad():
        manners.raw_tie.fill_(math.log(math.e - 1))  # softplus gives a tie width of 1
    votes = table(Comparison(A, B, Outcome.FIRST, "u")).votes
    found = float(negative_log_likelihood(manners, torch.tensor([3.0, 1.0]), votes).detach())
    assert found == pytest.approx(math.log(1 + math.exp(-(2.0 - 1.0))), abs=1e-3)


def test_both_bad_is_a_tie_and_two_weak_downs() -> None:
    votes = table(Comparison(A, B, Outcome.BOTH_BAD, "u")).votes
    tie = table(Comparison(A, B, Outcome.TIE, "u")).votes
    assert votes.outcome.tolist() == tie.outcome.tolist()
    assert votes.up.tolist() == [0.0, 0.0]
    assert votes.thumb_weight.tolist() == [0.25, 0.25]
    assert len(tie.up) == 0


def test_a_reply_voted_on_twice_is_one_example() -> None:
    found = table(Comparison(A, B, Outcome.FIRST, "u"), thumbs=(Thumb(A, True, "v"),))
    assert found.examples == (A, B)
    assert found.users == ("u", "v")


def test_a_user_s_leniency_is_not_taken_for_quality() -> None:
    """One user calls everything good, another everything bad; only within a user does the feature decide."""
    rng = random.Random(0)
    features, thumbs = [], []
    for i in range(400):
        lenient = i % 2 == 0
        x = rng.gauss(0, 1)
        up = rng.random() < 1 / (1 + math.exp(-(x + (2.0 if lenient else -2.0))))
        features.append([x, 1.0 if lenient else -1.0])
        thumbs.append(Thumb(Example((i,), (i,)), up, "kind" if lenient else "strict"))
    found = table(thumbs=tuple(thumbs))
    fit = fit_linear(torch.tensor(features), found.votes, users=2, l2=1.0, intercept_sd=1.5)
    assert float(fit.weights[0]) > 0.5
    assert fit.manners.leniency[0] > 0.5 > -0.5 > fit.manners.leniency[1]


def test_thumbs_are_not_learnt_by_heart_through_their_scale() -> None:
    """As many features as votes and none that means anything: the scale must not grow to fit them."""
    generator = torch.Generator().manual_seed(0)
    rng = random.Random(0)
    thumbs = tuple(Thumb(Example((i,), (i,)), rng.random() < 0.5, f"u{i % 8}") for i in range(200))
    found = table(thumbs=thumbs)
    fit = fit_linear(
        torch.randn(200, 400, generator=generator), found.votes, users=8, l2=2.0, intercept_sd=1.5
    )
    assert fit.manners.summary()["thumb_scale"] < 1.3


def test_constant_features_say_nothing() -> None:
    found = table(Comparison(A, B, Outcome.FIRST, "u"))
    fit = fit_linear(torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), found.votes, users=1, l2=1.0, intercept_sd=1.0)
    assert bool(torch.isfinite(fit.score(torch.tensor([[3.0, 99.0]]))).all())
    assert float(fit.score(torch.tensor([[3.0, 99.0]]))[0]) == float(fit.score(torch.tensor([[3.0, 5.0]]))[0])


def test_what_is_expected_before_any_vote_stands_where_votes_say_nothing_and_yields_where_they_do() -> None:
    expected = torch.tensor([0.3, 0.3])
    features = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    features[:300, 0] = 0.0  # nobody voted on a reply that has any of it
    thumbs = tuple(Thumb(Example((i,), (i,)), float(features[i, 1]) < 0, f"u{i % 8}") for i in range(300))
    votes = table(thumbs=thumbs).votes
    fit = fit_linear(features, votes, users=8, l2=5.0, intercept_sd=1.5, expected=expected)
    assert float(fit.weights[0]) == pytest.approx(0.3, abs=0.02)
    assert float(fit.weights[1]) < -0.5
    before = fit_linear(
        features, votes.weighted(torch.zeros(8)), users=8, l2=5.0, intercept_sd=1.5, expected=expected
    )
    assert before.weights.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
