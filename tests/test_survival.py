"""Votes outlive a killed server, and streams do not notice a swap: the proofs' own runs, cut to a test's size."""

import os
import shutil
from pathlib import Path

import pytest

from tests.prove import swap, votes


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
def test_every_acknowledged_vote_survives_sigkill(seed: int, tmp_path: Path) -> None:
    found = votes.kill_during_votes(tmp_path, seed=seed)
    assert found["missing"] == 0, found
    assert found["gapless"], found
    assert found["cut_off"] > 0, "the kill came too late to prove anything"


@pytest.mark.full
def test_no_vote_is_acknowledged_before_a_sync(tmp_path: Path) -> None:
    if not shutil.which("strace"):
        if os.environ.get("HONE_REQUIRE_PARTS"):
            pytest.fail("strace is required here")
        pytest.skip("needs strace")
    found = votes.each_answer_waits_for_a_sync(tmp_path, votes=500)
    assert found["votes_answered"] >= 500, found
    assert found["answered_without_a_sync"] == 0, found
    assert found["syncs"] > 0, found


@pytest.mark.full
def test_a_swap_under_streams_fails_nobody_and_mixes_no_weights(tmp_path: Path) -> None:
    found = swap.swap(tmp_path, rounds=2)
    assert found["failed_requests"] == 0, found
    assert set(found["by_version"]) == {"0", "1", "2"}, found
    assert found["largest_difference_nats"] <= 1e-3, found
    assert found["least_mean_distance_from_base_nats"] >= 0.02, found
