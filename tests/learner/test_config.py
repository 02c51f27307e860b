"""Profiles differ in how much is trained, never in how it is judged."""

from learner.config import LearnerConfig


def test_the_fast_profile_trains_less_before_the_very_same_gate() -> None:
    default, fast = LearnerConfig.profile("default"), LearnerConfig.profile("fast")
    assert fast.gate == default.gate
    assert fast.collect == default.collect
    assert fast.ppo.steps * fast.ppo.rollouts < default.ppo.steps * default.ppo.rollouts / 4


def test_a_profile_reads_itself_back_from_a_manifest() -> None:
    for name in ("default", "fast", "tiny"):
        config = LearnerConfig.profile(name)  # type: ignore[arg-type]
        assert LearnerConfig.from_dict(config.to_dict()) == config
