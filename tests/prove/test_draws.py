"""Replies that are kept between proofs: drawn once, the same again, and safe from a kill."""

from pathlib import Path

import pytest

from learner.simulation.scripts import Script
from tests.fakes import save_model
from tests.prove import draws as module
from tests.prove.draws import Draws

PROMPTS = [Script(({"role": "user", "content": text},)) for text in ("Hello.", "And you?", "Why?")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny", context=512)


def no_more(*_: object, **__: object) -> None:
    raise AssertionError("everything is there already")


def test_what_was_drawn_is_read_back_and_more_goes_on_from_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Draws(tmp_path, model).of(PROMPTS[:2], 2)
    three = Draws(tmp_path, model).of(PROMPTS, 3)
    assert [replies[:2] for replies in three[:2]] == two
    assert all(len(replies) == 3 and replies[0].tokens > 0 for replies in three)
    monkeypatch.setattr(module, "answer", no_more)
    assert Draws(tmp_path, model).of(PROMPTS, 3) == three
    assert Draws(tmp_path, model).of(PROMPTS[1:], 1) == [replies[:1] for replies in three[1:]]


def test_drawn_anew_they_are_the_same(model: Path, tmp_path: Path) -> None:
    assert Draws(tmp_path / "a", model).of(PROMPTS, 2) == Draws(tmp_path / "b", model).of(PROMPTS, 2)


def test_a_line_that_was_never_finished_is_drawn_again(model: Path, tmp_path: Path) -> None:
    whole = Draws(tmp_path, model).of(PROMPTS, 1)
    (file,) = tmp_path.glob("draws-*.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    assert Draws(tmp_path, model).of(PROMPTS, 1) == whole
    assert Draws(tmp_path, model).of(PROMPTS, 1) == whole


def test_another_model_has_a_file_of_its_own(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1, context=512)
    assert module.fingerprint(model) == module.fingerprint(model)
    assert module.fingerprint(other) != module.fingerprint(model)
