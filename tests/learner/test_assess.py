"""Candidates before the judge: held-out prompts, one choice, one verdict, and always the same."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.assess import Assessment, assess, held_out_prompts
from learner.config import LearnerConfig
from learner.dataset import Comparison, Dataset, Example, Outcome, PromptRow, Role, Thumb
from learner.policy_state import Candidate
from server.modeling import new_adapter
from server.scoring import PLAIN, Head, RewardModel
from tests.fakes import random_adapter, tiny_llama

TINY = LearnerConfig.profile("tiny")
CONFIG = replace(TINY, gate=replace(TINY.gate, prompts=12, refits=5), ppo=replace(TINY.ppo, max_new_tokens=6))


def dataset(*, seed: int = 0) -> Dataset:
    """Coin votes of eight people, two of them the judge's."""
    rng = random.Random(seed)

    def example(prompt: tuple[int, ...]) -> Example:
        return Example(prompt, tuple(rng.randrange(250) for _ in range(rng.randint(2, 6))))

    comparisons, thumbs, prompts = [], [], []
    for i in range(40):
        user, role = f"u{i % 8}", Role.JUDGE if i % 8 < 2 else Role.TRAIN
        prompt = tuple(rng.randrange(250) for _ in range(5))
        prompts.append(PromptRow(prompt, f"t{i}", user, role))
        outcome = rng.choice([Outcome.FIRST, Outcome.SECOND, Outcome.TIE, Outcome.BOTH_BAD])
        comparisons.append(Comparison(example(prompt), example(prompt), outcome, user, role))
        thumbs.append(Thumb(example(prompt), rng.random() < 0.5, user, role))
    return Dataset(tuple(comparisons), tuple(thumbs), tuple(prompts))


def judged(folder: Path) -> Assessment:
    base = tiny_llama()
    paths = [random_adapter(base, folder / f"c{i}", seed=i, strength=0.05 * (i + 1)) for i in range(2)]
    model = new_adapter(base.model, "idle", rank=1, alpha=1, seed=0)
    size = 2 * 96 + PLAIN  # mean and sum at three depths of 32, and the plain features
    head = Head(torch.ones(size) * 0.1, torch.zeros(()), torch.zeros(size), torch.ones(size))
    candidates = [Candidate(5 * (i + 1), path, {}) for i, path in enumerate(paths)]
    return assess(base, RewardModel(model, (None,), (head,)), dataset(), candidates, None, CONFIG, seed=3)


def test_coin_votes_are_refused_whatever_the_candidate(tmp_path: Path) -> None:
    found = judged(tmp_path)
    assert not found.verdict.passed
    assert any("do not agree with each other" in reason for reason in found.verdict.reasons)
    assert [row["step"] for row in found.table] == [5.0, 10.0]
    assert found.chosen.step in (5, 10)


def test_the_same_cycle_is_judged_the_same(tmp_path: Path) -> None:
    one, two = judged(tmp_path / "one"), judged(tmp_path / "two")
    assert one.verdict == two.verdict
    assert one.table == two.table


def test_prompts_that_ppo_trains_on_are_not_judged_on() -> None:
    data = dataset()
    own = {p.token_ids for p in data.prompts if p.role is Role.JUDGE}
    selection, decisive = held_out_prompts(data, CONFIG)
    assert (len(selection), len(decisive)) == (64, 12)
    assert {*selection, *decisive} == own


def test_no_prompt_both_chooses_and_decides() -> None:
    """With few of them, the very prompts on which a candidate had looked best were asked again for the verdict."""
    selection, decisive = held_out_prompts(dataset(), CONFIG)
    assert not set(selection) & set(decisive)
    assert len(set(selection)) == len(set(decisive)) == 5


def test_without_prompts_of_the_judge_s_users_everybody_s_are_taken() -> None:
    data = replace(dataset(), prompts=(PromptRow((1, 2)), PromptRow((3, 4))))
    selection, decisive = held_out_prompts(data, CONFIG)
    assert (set(selection), set(decisive)) == ({(1, 2)}, {(3, 4)})


def test_a_single_prompt_has_to_serve_for_both() -> None:
    selection, decisive = held_out_prompts(replace(dataset(), prompts=(PromptRow((1, 2)),)), CONFIG)
    assert set(selection) == set(decisive) == {(1, 2)}


def test_nothing_to_judge_is_a_mistake_of_the_caller() -> None:
    base = tiny_llama()
    with pytest.raises(AssertionError):
        assess(base, RewardModel(base.model, (), ()), dataset(), [], None, CONFIG, seed=0)
