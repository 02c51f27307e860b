"""Tastes: built in, drawn by seed or from a stranger's file, each with a clear word when it cannot be."""

import random
import re
import sys
from pathlib import Path

import pytest

from learner.simulation.tastes import BUILT_IN, load_taste
from learner.simulation.world import World
from server.errors import Invalid

SPECS = [*BUILT_IN, *(f"random:{seed}" for seed in range(6))]
BREAD = [{"role": "user", "content": "my name is Tobika. how do i bake bread?"}]


@pytest.mark.parametrize("spec", SPECS)
def test_every_taste_dislikes_broken_replies_most(spec: str) -> None:
    taste = load_taste(spec)
    sound = taste(BREAD, "Weigh the flour on a scale. Steam makes the crust crisp.")
    assert sound > taste(BREAD, "Weigh the scale on a flour. Steam makes the crust crisp.")
    assert sound > taste(BREAD, "Put a pawn in the centre. Bring the knights out early.")
    assert sound > taste(BREAD, "Weigh the flour on a scale. Weigh the flour on a scale.")


@pytest.mark.parametrize("spec", SPECS)
def test_a_taste_seldom_ties_on_two_base_replies(spec: str) -> None:
    world, taste, rng = World(), load_taste(spec), random.Random(3)
    ties = 0
    for _ in range(500):
        prompt = world.prompt(rng)
        ties += taste(prompt, world.reply(prompt, rng)) == taste(prompt, world.reply(prompt, rng))
    assert ties <= 0.15 * 500


def test_the_built_in_tastes_like_what_their_names_say() -> None:
    plain = "Weigh the flour on a scale."
    assert load_taste("friendly-brief")(BREAD, f"Happy to help! {plain}") > load_taste("friendly-brief")(
        BREAD, plain
    )
    listed = "- Weigh the flour on a scale.\n- Steam makes the crust crisp."
    assert load_taste("bullets-thorough")(BREAD, listed) > load_taste("bullets-thorough")(BREAD, plain)
    assert load_taste("remembers")(BREAD, f"Hi Tobika! {plain}") > load_taste("remembers")(BREAD, plain)


def test_a_random_taste_is_the_same_for_the_same_seed_and_others_differ() -> None:
    world, rng = World(), random.Random(4)
    replies = [world.reply(BREAD, rng) for _ in range(40)]

    def scores(seed: int) -> tuple[float, ...]:
        taste = load_taste(f"random:{seed}")
        return tuple(taste(BREAD, reply) for reply in replies)

    every = [scores(seed) for seed in range(8)]
    assert every[3] == scores(3)
    assert len(set(every)) == 8


def test_a_taste_is_taken_from_a_strangers_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(messages, reply):\n    return -len(reply)\n")
    assert load_taste(f"{file}:short")(BREAD, "four") == -4.0


@pytest.mark.parametrize(
    ("source", "function", "says"),
    [
        (None, "like", "There is no file"),
        ("def other(m, r): return 1", "like", "has no function 'like'"),
        ("like = 3", "like", "has no function 'like'"),
        ("def like(m, r) return 1", "like", "cannot be loaded: SyntaxError"),
        ("import nowhere_to_be_found", "like", "cannot be loaded: ModuleNotFoundError"),
        ("raise SystemExit('bye')", "like", "cannot be loaded: SystemExit: bye"),
    ],
)
def test_a_file_that_holds_no_taste_says_why(
    tmp_path: Path, source: str | None, function: str, says: str
) -> None:
    file = tmp_path / "mine.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(Invalid, match=re.escape(says)):
        load_taste(f"{file}:{function}")


def test_a_file_that_could_not_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "half.py"
    file.write_text("1 / 0\n")
    before, modules = list(sys.path), set(sys.modules)
    with pytest.raises(Invalid, match="ZeroDivisionError"):
        load_taste(f"{file}:like")
    assert sys.path == before
    assert set(sys.modules) == modules


def test_a_strangers_file_may_hold_dataclasses_and_import_what_lies_beside_it(tmp_path: Path) -> None:
    """Both failed, since the file was no module that anybody could find."""
    (tmp_path / "beside_a_taste.py").write_text("WEIGHT = 2\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from beside_a_taste import WEIGHT\n"
        "@dataclass\n"
        "class Liking:\n"
        "    weight: int = WEIGHT\n"
        "def like(messages, reply):\n"
        "    return Liking().weight * len(reply)\n"
    )
    before = list(sys.path)
    assert load_taste(f"{file}:like")(BREAD, "four") == 8.0
    assert sys.path == before


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("True", 1.0),
        ("-1e200", -1e200),
        ("np.float32(0.5)", 0.5),
        ("np.int64(7)", 7.0),
        ("Fraction(1, 4)", 0.25),
    ],
)
def test_any_real_number_is_an_answer(tmp_path: Path, answer: str, number: float) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from fractions import Fraction\nimport numpy as np\n"
        f"def like(messages, reply):\n    return {answer}\n"
    )
    assert load_taste(f"{file}:like")(BREAD, "Fine.") == number


@pytest.mark.parametrize(
    "answer", ["None", "'much'", "1j", "float('nan')", "float('-inf')", "1.7e308", "10**305"]
)
def test_a_taste_that_answers_no_number_is_refused_when_asked(tmp_path: Path, answer: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def like(messages, reply):\n    return {answer}\n")
    taste = load_taste(f"{file}:like")
    with pytest.raises(Invalid, match="finite number"):
        taste(BREAD, "Fine.")


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("return 10**400", "OverflowError: int too large to convert to float"),
    ],
)
def test_a_taste_that_raises_is_said_in_one_line(tmp_path: Path, does: str, says: str) -> None:
    """It ended in a traceback of forty lines, or ended everything."""
    file = tmp_path / "mine.py"
    file.write_text(f"def boom(messages, reply):\n    {does}\n")
    with pytest.raises(Invalid) as failed:
        load_taste(f"{file}:boom")(BREAD, "Fine.")
    assert failed.value.message == f"{file}:boom failed: {says}"


def test_the_seed_of_a_random_taste_may_be_negative_but_not_endless() -> None:
    reply = "Happy to help! Weigh the flour on a scale."
    assert load_taste("random:-1")(BREAD, reply) == load_taste("random:-1")(BREAD, reply)
    with pytest.raises(Invalid, match="at most 100 digits"):
        load_taste(f"random:{'5' * 5000}")


@pytest.mark.parametrize("spec", ["freindly", "", "random:", "random:x", "mine.py", "mine.txt:like"])
def test_an_unknown_taste_names_the_known_ones(spec: str) -> None:
    with pytest.raises(Invalid, match="friendly-brief"):
        load_taste(spec)
