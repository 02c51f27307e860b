"""PPO's maths on tensors small enough to work by hand."""

import math

import pytest
import torch
from torch import Tensor

from learner.ppo import (
    KlController,
    explained_variance,
    gae,
    kl_rewards,
    lambda_for,
    normalize,
    policy_loss,
    returns,
    sequence_k1,
    sequence_kl,
)

MASK = torch.tensor([[True, True, True], [True, True, False]])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_score_lands_on_the_last_token_and_kl_on_all() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0]])
    ref = torch.tensor([[-2.0, -2.0, -2.0], [-1.5, -0.5, 0.0]])
    rewards = kl_rewards(logprobs, ref, torch.tensor([10.0, -4.0]), MASK, kl_coef=0.1, kl_leap=0.0)
    # row 0: -0.1 * (1, 0, -1) + (0, 0, 10); row 1: -0.1 * (0.5, -0.5) + (0, -4)
    expected = torch.tensor([[-0.1, 0.0, 10.1], [-0.05, -3.95, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_one_leap_costs_more_than_steps_that_go_as_far() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -1.0], [-0.5, -1.0, 9.0]])
    ref = torch.tensor([[-5.0, -1.0, -1.0], [-2.5, -3.0, 0.0]])
    rewards = kl_rewards(logprobs, ref, torch.zeros(2), MASK, kl_coef=0.1, kl_leap=0.5)
    # row 0: -0.1 * (4 + 8, -1, 0); row 1: -0.1 * (2 + 2, 2 + 2)
    torch.testing.assert_close(rewards, torch.tensor([[-1.2, 0.1, 0.0], [-0.4, -0.4, 0.0]]))


def test_an_empty_response_is_paid_nothing() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    rewards = kl_rewards(
        noise(1, 2), noise(1, 2, seed=1), torch.tensor([5.0]), nothing, kl_coef=1.0, kl_leap=1.0
    )
    assert rewards.tolist() == [[0.0, 0.0]]


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 7.0]])
    values = torch.tensor([[0.5, 0.6, 0.8], [1.0, 1.5, 99.0]])
    advantages = gae(rewards, values, MASK, gamma=1.0, lam=0.5)
    # row 0, from the end: 1 - .8 = .2; (.8 - .6) + .5 * .2 = .3; (.6 - .5) + .5 * .3 = .25
    # row 1: 2 - 1.5 = .5; (1.5 - 1) + .5 * .5 = .75; the padded 99 and 7 are not seen
    torch.testing.assert_close(advantages, torch.tensor([[0.25, 0.3, 0.2], [0.75, 0.5, 0.0]]))


def test_returns_are_the_discounted_future() -> None:
    found = returns(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 9.0]]), MASK, gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([[1.75, 1.5, 1.0], [1.5, 1.0, 0.0]]))


def test_with_lambda_one_the_critic_only_shifts_the_returns() -> None:
    rewards, values = noise(2, 3), noise(2, 3, seed=1)
    found = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    expected = returns(rewards, MASK, gamma=1.0) - values
    torch.testing.assert_close(found[MASK], expected[MASK])


def test_whitening_has_mean_zero_and_variance_one_over_the_mask() -> None:
    x = noise(8, 16) * 3 + 5
    mask = noise(8, 16, seed=1) > 0
    white = normalize(x, mask, center=True)
    assert abs(float(white[mask].mean())) < 1e-5
    assert abs(float(white[mask].var(unbiased=False)) - 1) < 1e-4
    assert not white[~mask].any()


def test_scaling_without_centring_keeps_the_mean() -> None:
    x = torch.tensor([[1.0, 5.0]])
    kept = normalize(x, torch.ones(1, 2, dtype=torch.bool), center=False)
    torch.testing.assert_close(kept, torch.tensor([[2.0, 4.0]]))  # mean 3, sd 2: 3 ± 1


def test_an_unmoved_policy_has_ratio_one_and_no_kl() -> None:
    logprobs = noise(2, 3)
    out = policy_loss(logprobs, logprobs, noise(2, 3, seed=1), MASK, clip=0.2, dual_clip=3.0, denominator=5)
    assert float(out.ratio_sum) == 5.0
    assert float(out.ratio_square_sum) == 5.0
    assert float(out.approx_kl) == float(out.half_square) == float(out.clipped) == 0.0


def loss_at(ratio: float, advantage: float) -> float:
    one = torch.ones(1, 1, dtype=torch.bool)
    out = policy_loss(
        torch.tensor([[math.log(ratio)]]),
        torch.zeros(1, 1),
        torch.tensor([[advantage]]),
        one,
        clip=0.2,
        dual_clip=3.0,
        denominator=1,
    )
    return float(out.loss)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.1, 2.0, -2.2),  # inside the clip
        (1.5, 2.0, -2.4),  # a gain is counted up to 1.2
        (0.5, 2.0, -1.0),  # a fall of a good token is felt in full
        (0.5, -2.0, 1.6),  # a fall of a bad token is counted down to 0.8
        (1.5, -2.0, 3.0),  # a rise of a bad token is felt in full
        (9.0, -2.0, 6.0),  # up to the dual clip: 3 * 2
    ],
)
def test_the_clips_by_hand(ratio: float, advantage: float, expected: float) -> None:
    assert loss_at(ratio, advantage) == pytest.approx(expected, rel=1e-5)


def test_masked_positions_move_neither_loss_nor_gradient() -> None:
    def run(junk: float) -> tuple[float, Tensor]:
        fill = torch.where(MASK, 0.0, junk)
        logprobs = (noise(2, 3) + fill).requires_grad_()
        policy = policy_loss(
            logprobs,
            noise(2, 3, seed=1) - fill,
            noise(2, 3, seed=2) + fill,
            MASK,
            clip=0.2,
            dual_clip=3.0,
            denominator=5,
        )
        policy.loss.backward()
        assert logprobs.grad is not None
        return float(policy.loss.detach()), logprobs.grad

    quiet, loud = run(0.0), run(1e4)
    assert quiet[0] == loud[0]
    torch.testing.assert_close(quiet[1], loud[1], rtol=0, atol=0)
    assert not loud[1][~MASK].any()


def test_micro_batches_add_up_to_the_batch() -> None:
    args = [noise(4, 3, seed=s) for s in range(3)]
    mask = torch.tensor([[True] * 3, [True, False, False], [True] * 3, [True, True, False]])

    def loss(rows: slice) -> float:
        part = [a[rows] for a in args]
        return float(policy_loss(*part, mask[rows], clip=0.2, dual_clip=3.0, denominator=9).loss)

    assert loss(slice(0, 4)) == pytest.approx(loss(slice(0, 1)) + loss(slice(1, 4)), rel=1e-5)


def test_sequence_kl_is_never_negative_and_zero_at_the_reference() -> None:
    a, b = noise(2, 3), noise(2, 3, seed=1)
    assert bool((sequence_kl(a, b, MASK) > 0).all())
    assert sequence_kl(a, a, MASK).tolist() == [0.0, 0.0]


def test_one_odd_token_hardly_moves_k1_but_carries_k3_away() -> None:
    ours, theirs, one = torch.tensor([[-10.0]]), torch.tensor([[-2.0]]), torch.ones(1, 1, dtype=torch.bool)
    assert float(sequence_k1(ours, theirs, one)) == -8.0
    assert float(sequence_kl(ours, theirs, one)) > 2900


def test_explained_variance_of_a_perfect_and_of_a_constant_critic() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
    assert explained_variance(returns, returns, MASK) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(returns, 3.0), returns, MASK) == pytest.approx(0.0, abs=1e-6)


def test_the_controller_raises_the_price_above_its_target_and_stays_in_bounds() -> None:
    start = KlController(coef=0.05, initial=0.05, target=6.0, horizon=1000)
    assert start.updated(12.0, 100).coef == pytest.approx(0.05 * 1.02)  # error clipped at 0.2, n/horizon 0.1
    assert start.updated(3.0, 100).coef == pytest.approx(0.05 * 0.98)
    high = low = start
    for _ in range(1000):
        high, low = high.updated(99.0, 500), low.updated(0.0, 500)
    assert high.coef == pytest.approx(0.2)
    assert low.coef == pytest.approx(0.0125)


def test_a_controller_without_target_holds_still() -> None:
    fixed = KlController(coef=0.05, initial=0.05, target=None, horizon=1000)
    assert fixed.updated(100.0, 100) is fixed


def test_long_responses_get_a_longer_lambda() -> None:
    assert lambda_for(60, lam=0.95) == 0.95
    assert lambda_for(1000, lam=0.95) == pytest.approx(0.98)
