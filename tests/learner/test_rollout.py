"""Rollouts: the trainer sees what the sampler saw, and each role is the base with its own adapter."""

from dataclasses import replace

import pytest
import torch

from learner.config import LearnerConfig
from learner.critic import Critic
from learner.rollout import (
    POLICY,
    Replies,
    collect_rollout,
    forward_all,
    generate,
    padded,
    penalties,
)
from server.modeling import new_adapter, pad_rows, token_logprobs, use_adapter
from server.scoring import PLAIN, Head, RewardModel
from tests.fakes import tiny_llama

TINY = LearnerConfig.profile("tiny").ppo
PROMPTS = [tuple(range(10, 10 + n)) for n in (3, 9, 1, 14)]


def roles(*, stirred: bool):  # type: ignore[no-untyped-def]
    """A base with policy and one reward member; the policy differs from the base when stirred."""
    base = tiny_llama()
    model = new_adapter(base.model, POLICY, rank=4, alpha=8, seed=0)
    model = new_adapter(model, "reward0", rank=4, alpha=8, seed=1)
    if stirred:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if f"lora_B.{POLICY}" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    size = 2 * 96 + PLAIN  # mean and sum at three depths of 32, and the plain features
    head = Head(torch.ones(size) * 0.1, torch.zeros(()), torch.zeros(size), torch.ones(size))
    return base, model, RewardModel(model, ("reward0",), (head,))


def roll(*, stirred: bool):  # type: ignore[no-untyped-def]
    base, model, reward = roles(stirred=stirred)
    critic = Critic(forget=0.8, ridge=1.0)
    rollout = collect_rollout(base, model, critic, reward, PROMPTS, seeds=[1, 2, 3, 4], config=TINY)
    return model, rollout


def test_the_trainer_gives_the_sampler_s_log_probabilities() -> None:
    model, rollout = roll(stirred=True)
    again, _ = forward_all(model, rollout.replies.pairs, POLICY, TINY)
    torch.testing.assert_close(again, rollout.logprobs, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_changes_nothing_is_at_the_reference() -> None:
    _, rollout = roll(stirred=False)
    torch.testing.assert_close(rollout.logprobs, rollout.ref_logprobs, atol=1e-4, rtol=1e-4)


def test_a_stirred_policy_leaves_the_reference() -> None:
    _, rollout = roll(stirred=True)
    assert float((rollout.logprobs - rollout.ref_logprobs).abs().mean()) > 0.01


def test_what_is_paid_is_the_bounded_pessimistic_score() -> None:
    base, model, reward = roles(stirred=True)
    critic = Critic(forget=0.8, ridge=1.0)
    rollout = collect_rollout(base, model, critic, reward, PROMPTS, seeds=[1, 2, 3, 4], config=TINY)
    whole = reward.score(rollout.replies.prompts, rollout.replies.responses)
    torch.testing.assert_close(rollout.raw_scores, whole.mean, atol=1e-4, rtol=1e-4)
    bounded = TINY.score_clip * torch.tanh((whole.mean - TINY.kappa * whole.std) / TINY.score_clip)
    expected = bounded - penalties(rollout.replies, TINY)
    torch.testing.assert_close(rollout.scores, expected, atol=1e-4, rtol=1e-4)


def test_the_critic_knows_only_what_came_before_each_token() -> None:
    """Its features before token r are those of the same reply cut right there."""
    model, rollout = roll(stirred=True)
    prompt, response = rollout.replies.pairs[1]
    cut = len(response) // 2
    _, states = forward_all(model, [(prompt, response[: cut + 1])], None, TINY)
    before = int(rollout.is_response[:1].sum())
    assert cut > 0
    torch.testing.assert_close(rollout.features[before + cut, :32], states[cut], atol=1e-4, rtol=1e-4)
    assert float(rollout.features[before + cut, 33]) == cut
    assert float(rollout.features[before + cut, 35]) == pytest.approx(
        float(rollout.ref_logprobs[1, :cut].sum()), abs=1e-4
    )


def test_nothing_stands_outside_the_response() -> None:
    _, rollout = roll(stirred=True)
    for tensor in (rollout.logprobs, rollout.ref_logprobs, rollout.values):
        assert not tensor[~rollout.is_response].any()


def test_the_same_seeds_give_the_same_replies_alone_or_together() -> None:
    base, model, _ = roles(stirred=True)
    use_adapter(model, POLICY, trainable=False)
    together = generate(base, PROMPTS, seeds=[1, 2, 3, 4], max_new_tokens=8)
    alone = generate(base, PROMPTS[2:3], seeds=[3], max_new_tokens=8)
    assert alone.responses == together.responses[2:3]


def test_log_probabilities_are_divided_by_the_temperature() -> None:
    base = tiny_llama()
    model = new_adapter(base.model, POLICY, rank=2, alpha=2, seed=0)
    rows = pad_rows([((1, 2, 3), (4,))])
    with torch.no_grad():
        logits = model(rows.token_ids[:, :3]).logits[0, -1]
        hot = token_logprobs(model, rows, temperature=2.0)
    torch.testing.assert_close(hot[0, 0], torch.log_softmax(logits / 2.0, dim=-1)[4], atol=1e-4, rtol=1e-4)


def test_a_reply_that_was_cut_pays_in_full_and_a_long_one_on_a_ramp() -> None:
    config = replace(LearnerConfig().ppo, max_new_tokens=96)  # ramp over the last 24
    replies = Replies(
        prompts=[(1,)] * 4,
        responses=[(0,) * 10, (0,) * 84, (0,) * 96, (0,) * 96],
        ended=[True, True, True, False],
        logprobs=[(0.0,)] * 4,
    )
    assert penalties(replies, config).tolist() == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_padding_keeps_what_is_real() -> None:
    values, mask = padded([[1.0, 2.0], [], [3.0]])
    assert values.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]
    assert mask.sum(dim=1).tolist() == [2, 0, 1]
