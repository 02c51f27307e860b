"""PPO end to end on a tiny random base: it learns the obvious, resumes to the byte, and notices foul play."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner import policy_update
from learner.config import LearnerConfig, PpoConfig
from learner.dataset import PromptRow
from learner.policy_state import Candidate, learning_rate
from learner.policy_update import TrainingFailed
from learner.rollout import POLICY, Rollout, generate, reply_logprobs
from learner.train_policy import _draw_prompts, train_policy
from server.modeling import Ids, load_adapter, new_adapter, use_adapter
from server.scoring import RewardModel, Scores
from tests.fakes import random_adapter, tiny_llama

CONFIG = replace(
    LearnerConfig.profile("tiny").ppo,
    steps=6,
    rollouts=32,
    max_new_tokens=8,
    learning_rate=1e-2,
    kl_coef=0.01,
    kl_target=4.0,
)
PROMPTS = [PromptRow(tuple(range(20 + i, 26 + i))) for i in range(12)]


class Obvious(RewardModel):
    """Likes ids below 100."""

    def score_prefixes(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        width = max(map(len, response_ids))
        liked = torch.tensor(
            [
                [sum(i < 100 for i in r[:cut]) / max(len(r[:cut]), 1) for cut in range(1 + width)]
                for r in response_ids
            ]
        )
        return Scores(4 * liked - 2, torch.zeros(liked.shape))


class Meddling(Obvious):
    """Changes its own adapter while it is only asked for scores."""

    def score_prefixes(self, prompt_ids: Sequence[Ids], response_ids: Sequence[Ids]) -> Scores:
        with torch.no_grad():
            for name, parameter in self.peft_model.named_parameters():
                if ".reward0." in name:
                    parameter.add_(1e-3)
        return super().score_prefixes(prompt_ids, response_ids)


class Killed(Exception):
    pass


def run(
    workdir: Path,
    config: PpoConfig = CONFIG,
    *,
    reward: type[RewardModel] = Obvious,
    kill_at: int | None = None,
) -> list[Candidate]:
    base = tiny_llama()
    model = new_adapter(base.model, "reward0", rank=2, alpha=4, seed=5)
    calls = 0

    def check() -> None:
        nonlocal calls
        if calls == kill_at:
            raise Killed
        calls += 1

    return train_policy(
        base, reward(model, ("reward0",), ()), PROMPTS, None, config, workdir=workdir, seed=3, check=check
    )


def share_liked(folder: Path | None) -> float:
    base = tiny_llama()
    if folder is not None:
        load_adapter(base.model, "x", folder)
    replies = generate(base, [p.token_ids for p in PROMPTS] * 5, seeds=list(range(60)), max_new_tokens=8)
    tokens = [i for r in replies.responses for i in r]
    return sum(i < 100 for i in tokens) / len(tokens)


def test_a_tiny_ppo_learns_an_obvious_preference(tmp_path: Path) -> None:
    found = run(tmp_path, replace(CONFIG, steps=20, learning_rate=3e-2, kl_target=None))
    assert share_liked(found[-1].path) > share_liked(None) + 0.1


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "broken", kill_at=5)  # after the checkpoint at step 4
    resumed = run(tmp_path / "broken")
    assert [c.step for c in resumed] == [c.step for c in whole] == [2, 4, 6]
    assert [c.metrics for c in resumed] == [c.metrics for c in whole]
    for one, other in zip(whole, resumed, strict=True):
        for file in sorted(one.path.iterdir()):
            assert file.read_bytes() == (other.path / file.name).read_bytes()
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_a_candidate_is_the_mean_of_the_policies_so_far(tmp_path: Path) -> None:
    """A plain one at first; none of them is lost to it, and PPO goes on from the newest whatever is left behind."""
    config = replace(CONFIG, steps=4, warmup_steps=1, checkpoint_every=1)
    newest = run(tmp_path / "newest", replace(config, average=0.0))
    means = run(tmp_path / "means", replace(config, average=0.9))
    assert [c.metrics for c in means] == [c.metrics for c in newest]
    policies = [load_file(c.path / "adapter_model.safetensors") for c in newest]
    for count, candidate in enumerate(means, start=1):
        for name, value in load_file(candidate.path / "adapter_model.safetensors").items():
            mean = torch.stack([policy[name] for policy in policies[:count]]).mean(dim=0)
            torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-5)


def test_asking_again_for_a_finished_run_costs_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert run(tmp_path, kill_at=0) == first


def test_warm_up_steps_leave_the_policy_at_the_base(tmp_path: Path) -> None:
    found = run(tmp_path, replace(CONFIG, steps=3, warmup_steps=2, checkpoint_every=1))
    assert [c.step for c in found] == [3]
    assert found[0].metrics["kl"] == pytest.approx(
        0, abs=1e-5
    )  # measured on the rollout before the first move


def test_a_frozen_adapter_that_changed_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="frozen"):
        run(tmp_path, replace(CONFIG, steps=2), reward=Meddling)


def test_a_sampler_that_is_not_the_trainer_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = policy_update.ppo.policy_loss

    def shifted(logprobs, old_logprobs, *rest, **options):  # type: ignore[no-untyped-def]
        return real(logprobs, old_logprobs - 0.05, *rest, **options)

    monkeypatch.setattr(policy_update.ppo, "policy_loss", shifted)
    with pytest.raises(TrainingFailed, match="disagree") as caught:
        run(tmp_path)
    assert caught.value.code == "policy_mismatch"


def test_the_run_stops_when_the_policy_leaves_the_base_too_fast(tmp_path: Path) -> None:
    found = run(tmp_path, replace(CONFIG, steps=30, kl_target=0.01, learning_rate=3e-2))
    assert found[-1].step < 30


def far_champion(folder: Path) -> Path:
    """An adapter of the trained shape that has left the base by many times what a run may."""
    base = tiny_llama()
    return random_adapter(base, folder, seed=1, rank=CONFIG.rank, strength=0.5)


def test_a_champion_far_from_the_base_can_still_be_trained(tmp_path: Path) -> None:
    """The gate lets a champion stand farther out than a run from the base may go: every cycle after it stopped in
    its warm-up, left no candidate and failed, for ever."""
    config = replace(CONFIG, steps=4, warmup_steps=2, kl_target=1.5, learning_rate=1e-6)
    found = go_on_from(far_champion(tmp_path / "far"), config, tmp_path / "ppo")
    assert [c.step for c in found] == [4]
    assert found[-1].metrics["kl"] > config.kl_stop * 1.5


def test_a_run_from_a_far_champion_stops_when_it_goes_much_farther(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, warmup_steps=1, kl_target=0.01, learning_rate=3e-2)
    found = go_on_from(far_champion(tmp_path / "far"), config, tmp_path / "ppo")
    assert 1 < found[-1].step < 30


def test_nothing_is_written_once_the_folder_is_somebody_else_s(tmp_path: Path) -> None:
    """A learner that slept past its lease wakes in the middle of a step: the next holder works in that folder."""

    def fence() -> None:
        raise Killed

    with pytest.raises(Killed):
        go_on_from(None, CONFIG, tmp_path / "ppo", fence=fence)
    assert list((tmp_path / "ppo").iterdir()) == []


def test_prompts_of_tiny_weights_are_still_drawn_by_weight() -> None:
    """Their u^(1/w) is 0 for all of them, and then the order of the list decided."""
    prompts = [PromptRow((i,), weight=1e-5 if i < 100 else 3e-5) for i in range(200)]
    drawn = [p.token_ids[0] for step in range(50) for p in _draw_prompts(prompts, 10, seed=1, step=step)]
    heavy = sum(i >= 100 for i in drawn) / len(drawn)
    assert heavy == pytest.approx(0.75, abs=0.08)
    assert len(set(drawn)) > 150


def go_on_from(
    champion: Path | None, config: PpoConfig, workdir: Path, *, fence: Callable[[], None] | None = None
) -> list[Candidate]:
    base = tiny_llama()
    reward = Obvious(new_adapter(base.model, "reward0", rank=2, alpha=4, seed=5), ("reward0",), ())
    return train_policy(base, reward, PROMPTS, champion, config, workdir=workdir, seed=3, fence=fence)


def test_a_champion_is_gone_on_from(tmp_path: Path) -> None:
    champion = run(tmp_path / "one")[-1].path
    base = tiny_llama()
    model = new_adapter(base.model, "reward0", rank=2, alpha=4, seed=5)
    still = replace(CONFIG, steps=1, warmup_steps=0, learning_rate=1e-12)
    found = train_policy(
        base, Obvious(model, ("reward0",), ()), PROMPTS, champion, still, workdir=tmp_path / "two", seed=3
    )
    prompts = [p.token_ids for p in PROMPTS]
    use_adapter(model, POLICY, trainable=False)
    replies = generate(base, prompts, seeds=list(range(len(prompts))), max_new_tokens=8)
    now = reply_logprobs(model, replies.pairs, name=POLICY, micro_batch=4)
    other = tiny_llama()
    before = reply_logprobs(
        load_adapter(other.model, "old", champion), replies.pairs, name="old", micro_batch=4
    )
    torch.testing.assert_close(
        torch.tensor([x for row in now for x in row]),
        torch.tensor([x for row in before for x in row]),
        atol=1e-4,
        rtol=0,
    )
    assert found[0].metrics["kl"] > 0


def test_no_usable_prompt_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="prompt"):
        run(tmp_path, replace(CONFIG, max_prompt_tokens=2))


def test_the_rate_falls_with_the_size_of_the_base() -> None:
    assert learning_rate(PpoConfig(), 1_000_000) == pytest.approx(3e-3)
    assert 5e-5 < learning_rate(PpoConfig(), 300_000_000) < 2e-4
    assert learning_rate(PpoConfig(), 70_000_000_000) == 1e-5
    assert learning_rate(PpoConfig(learning_rate=0.5), 10) == 0.5


def test_statistics_are_those_of_the_rollout(tmp_path: Path) -> None:
    metrics = run(tmp_path, replace(CONFIG, steps=2))[-1].metrics
    assert set(metrics) >= {"kl", "score", "entropy", "length", "eos_rate", "explained_variance", "clip_frac"}
    assert all(value == value for value in metrics.values())
    assert issubclass(Rollout, tuple)
