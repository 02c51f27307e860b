"""The critic against least squares done the slow way, and what it may and may not know."""

import pytest
import torch
from torch import Tensor

from learner.critic import Critic, critic_features


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_rollout(seed: int, *, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """Features on very different scales, and returns that depend on them."""
    features = noise(tokens, 3, seed=seed) * torch.tensor([1.0, 50.0, 0.02]) + torch.tensor([3.0, -7.0, 0.5])
    return features, 2.0 * features[:, 0] - 0.04 * features[:, 1] + 0.1 * noise(tokens, seed=seed + 100)


def test_it_promises_nothing_before_it_has_seen_anything() -> None:
    assert Critic(0.8, 1.0).values(noise(5, 3)).tolist() == [0.0] * 5


def test_a_rollout_of_empty_replies_teaches_nothing() -> None:
    critic = Critic(0.8, 1.0)
    critic.learn(torch.zeros(0, 3), torch.zeros(0))
    assert critic.values(noise(5, 3)).tolist() == [0.0] * 5


def test_one_rollout_is_enough_for_what_is_linear() -> None:
    critic = Critic(0.8, 1.0)
    critic.learn(*a_rollout(0))
    features, returns = a_rollout(1)
    assert float((critic.values(features) - returns).var() / returns.var()) < 0.01


def test_it_is_ridge_regression_on_standardised_features() -> None:
    features, returns = a_rollout(0)
    critic = Critic(0.8, ridge=40.0)
    critic.learn(features, returns)
    x = features.double()
    x = (x - x.mean(dim=0)) / x.std(dim=0, unbiased=False)
    y = returns.double()
    weights = torch.linalg.solve(x.T @ x + 40.0 * torch.eye(3), x.T @ (y - y.mean()))
    torch.testing.assert_close(
        critic.values(features), (x @ weights + y.mean()).float(), atol=1e-4, rtol=1e-4
    )


def test_an_older_rollout_counts_less() -> None:
    features, returns = a_rollout(0)
    critic = Critic(forget=0.5, ridge=1e-6)
    critic.learn(features, returns)
    critic.learn(features, returns + 3.0)
    # The same features: the newer intercept has weight 1, the older one 0.5.
    risen = critic.values(features) - returns
    assert float(risen.mean()) == pytest.approx(2.0, abs=0.01)


def test_a_constant_feature_says_nothing_and_breaks_nothing() -> None:
    features, returns = a_rollout(0)
    features = torch.cat([features, torch.full((len(features), 1), 7.0)], dim=1)
    critic = Critic(0.8, 1.0)
    critic.learn(features, returns)
    assert bool(critic.values(features).isfinite().all())


def test_features_stand_row_after_row_and_look_back_only() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ref = torch.tensor([[-1.0, -3.0, -50.0], [-60.0, 0.0, 0.0]])
    worth = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]])
    found = critic_features(torch.arange(8.0).view(4, 2), worth, ref, mask)
    assert found.shape == (4, 8)
    # states, worth, count, log(1 + count), and sum, mean and least of the log probabilities before
    assert found[:, 2].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found[:, 3].tolist() == [0, 1, 2, 0]
    assert found[:, 5].tolist() == [0, -1, -4, 0]
    assert found[:, 6].tolist() == [0, -1, -2, 0]
    assert found[:, 7].tolist() == [0, -1, -3, 0]
