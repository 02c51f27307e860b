"""PPO paid by a taste itself: the whole of it on a tiny model, and what it is paid."""

from dataclasses import replace
from pathlib import Path

import torch

from learner.config import LearnerConfig
from learner.simulation.raters import Scale
from tests.fakes import save_model, tiny_llama
from tests.prove.gold import Gold, gold

TASTE = "def long(messages, reply):\n    return float(len(reply))\n"


def test_the_reward_is_the_standardised_taste_of_the_decoded_reply_without_doubt() -> None:
    base = tiny_llama()
    asked = [{"role": "user", "content": "Hi"}]
    prompt = base.renderer.render(asked).token_ids
    reward = Gold(None, base, lambda messages, reply: float(len(reply)), Scale(2.0, 4.0), {prompt: asked})
    found = reward.score([prompt, prompt], [base.tokenizer.encode("abcdef"), ()])
    assert found.mean.tolist() == [1.0, -0.5]
    assert torch.equal(found.std, torch.zeros(2))
    beginnings = reward.score_prefixes([prompt, prompt], [base.tokenizer.encode("abc"), ()]).mean
    assert beginnings[:, -1].tolist() == [0.25, -0.5]
    assert beginnings[:, 0].tolist() == [-0.5, -0.5]


def test_it_trains_chooses_and_compares(tmp_path: Path) -> None:
    (tmp_path / "taste.py").write_text(TASTE)
    config = replace(LearnerConfig.profile("tiny").ppo, steps=2, rollouts=4, checkpoint_every=1)
    found = gold(
        tmp_path / "work",
        taste=f"{tmp_path / 'taste.py'}:long",
        prompts=8,
        asked=6,
        config=config,
        model=save_model(tmp_path / "model", context=512),
        kept=tmp_path / "kept",
    )
    assert found["holds"]
    assert found["step"] == 2
    assert list(found["taste_by_step"]) == ["2"]
    assert found["prompts"] >= 8
    assert 0 <= found["separated"]["rate"] <= 1
    assert set(found["losses"]) == {"on_topic", "well_formed"}
