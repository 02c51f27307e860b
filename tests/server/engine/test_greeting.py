"""Whose scores count when servers differ, and what is scored."""

import json
import math
from pathlib import Path

from server.engine.greeting import Check, agree, distance
from server.prompts import Renderer
from tests.fakes import byte_tokenizer

RENDERER = Renderer(byte_tokenizer(), context=64)
A, NEAR_A, B = (-1.0, -2.0), (-1.05, -2.03), (-1.5, -2.5)


def test_scores_agree_within_a_mean_distance() -> None:
    assert distance(A, NEAR_A) == (0.05 + 0.03) / 2 or math.isclose(distance(A, NEAR_A), 0.04)
    assert agree(A, NEAR_A)
    assert not agree(A, B)
    assert not agree((math.nan, -2.0), (math.nan, -2.0))


def test_most_settle_it_and_half_does_not() -> None:
    words = Check((1, 2, 3))
    assert words.settle([A]) == A
    assert words.settle([B, A, NEAR_A]) in (A, NEAR_A)
    assert words.settle([A, B]) is None
    assert words.settle([A, A, B, B]) is None
    assert words.settle([(math.nan, math.nan)]) is None


def test_what_the_learner_measured_settles_it_alone() -> None:
    measured = Check((1, 2, 3), 1, (-1.01, -2.01))
    assert measured.settle([B, B, A]) == A
    assert measured.settle([B, B]) is None


def test_the_text_is_the_adapters_own_or_a_few_words(tmp_path: Path) -> None:
    words = Check.of(tmp_path, RENDERER)
    assert words.expected == ()
    assert 10 < len(words.token_ids) < 48
    rows = [
        {"prompt_ids": [5], "response_ids": [], "logprobs": [], "base_logprobs": []},
        {"prompt_ids": [5, 6], "response_ids": [7], "logprobs": [-1.5], "base_logprobs": [-2.5]},
    ]
    (tmp_path / "probe.json").write_text(json.dumps({"prompts": rows}))
    assert Check.of(tmp_path, RENDERER) == Check((5, 6, 7), 2, (-1.5,))
