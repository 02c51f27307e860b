"""Measuring a model inside the world: what is counted, and folders that hold no model."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from learner.simulation.measure import AXES, VALUES, _strongest, measure, style_shares
from learner.simulation.parser import Features
from learner.simulation.world import World
from server.errors import SetupError
from tests.fakes import save_model


@pytest.fixture(scope="module")
def seen() -> list[Features]:
    """What the world's own assistant shows in 400 replies."""
    world, rng = World(), random.Random(3)
    prompts = [world.prompt(rng) for _ in range(400)]
    return [world.parse(prompt, world.reply(prompt, rng)) for prompt in prompts]


def test_a_style_that_no_reply_shows_has_a_share_of_0(seen: list[Features]) -> None:
    """It had none at all, and so it could not miss a bar."""
    shares = style_shares([replace(one, emoji=False, warm=False) for one in seen])
    assert shares["emoji"] == {"emoji": 0.0, "no emoji": 1.0}
    assert shares["tone"]["warm"] == 0.0


def test_every_value_that_an_axis_shows_has_its_share(seen: list[Features]) -> None:
    shares = style_shares(seen)
    assert set(shares) == set(AXES) == set(VALUES)
    for axis, values in shares.items():
        assert tuple(values) == VALUES[axis]
        assert sum(values.values()) == pytest.approx(1, abs=0.001)


def test_the_pair_that_belongs_together_is_named(seen: list[Features]) -> None:
    rng = random.Random(4)
    tied = [replace(one, warm=(flag := rng.random() < 0.5), curt=False, emoji=flag) for one in seen]
    pair, strongest = _strongest(tied)
    assert (pair, strongest) == ("tone x emoji", pytest.approx(1.0))
    assert "recall" in _strongest(tied, of="recall")[0]


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    """It ended in a traceback; a folder that is not there was looked for on the hub."""
    with pytest.raises(SetupError, match=r"missing holds no model$"):
        measure(tmp_path / "missing")


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path, broken: str) -> None:
    (save_model(tmp_path) / broken).write_bytes(b"{")
    with pytest.raises(SetupError, match=r"^the model in .* cannot be loaded: ") as error:
        measure(tmp_path)
    assert "\n" not in error.value.message


def test_a_model_without_weights_is_one_line(tmp_path: Path) -> None:
    (save_model(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(SetupError, match=r"^the model in .* cannot be loaded: "):
        measure(tmp_path)
