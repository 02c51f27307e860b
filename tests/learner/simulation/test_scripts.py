"""Prompt files of many shapes are understood, and evaluation never sees what was rated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.simulation.scripts import FileSource, Script, WorldSource, is_held_out, read_scripts
from learner.simulation.world import World
from server.errors import SetupError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def says(text: str, *follow_ups: str) -> Script:
    return Script(({"role": "user", "content": text},), follow_ups)


def written(folder: Path, *rows: object, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(
    ("row", "script"),
    [
        ("How do I boil an egg?", says("How do I boil an egg?")),
        ({"turns": ["One?", "Two?"]}, says("One?", "Two?")),
        ({"instruction": "Sort these", "instances": [{"input": "b a"}]}, says("Sort these\n\nb a")),
        ({"instruction": "Sort these", "input": "b a"}, says("Sort these\n\nb a")),
        ({"instruction": "Say hello", "instances": [{"input": ""}]}, says("Say hello")),
        ({"prompt": "Hm?"}, says("Hm?")),
        ({"question": "Why?"}, says("Why?")),
        ('"A JSON string"', says("A JSON string")),
        ("{not json, but what somebody asked", says("{not json, but what somebody asked")),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "dropped"},
                ]
            },
            Script(({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})),
        ),
        ({"prompt": [{"role": "user", "content": "Hi"}], "chosen": []}, says("Hi")),
    ],
)
def test_every_known_shape_gives_its_prompt(row: object, script: Script, tmp_path: Path) -> None:
    assert read_scripts(written(tmp_path, row, "")) == [script]


def test_a_unicode_line_separator_inside_a_prompt_does_not_cut_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c"}\r\n', encoding="utf-8", newline="")
    assert read_scripts(path) == [says("a\u2028b"), says("c")]


def test_a_json_list_is_read_entry_by_entry(tmp_path: Path) -> None:
    assert read_scripts(written(tmp_path, ["One?", {"prompt": "Two?"}], name="p.json")) == [
        says("One?"),
        says("Two?"),
    ]


@pytest.mark.parametrize("row", [{"answer": "42"}, {"turns": []}, {"messages": []}, 42])
def test_an_object_without_a_prompt_is_refused_by_its_line(row: object, tmp_path: Path) -> None:
    path = written(tmp_path, "fine", f"[{json.dumps(row)}]" if isinstance(row, int) else row)
    with pytest.raises(SetupError, match="line 2"):
        read_scripts(path)


def test_an_empty_or_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    for path in (written(tmp_path, " ", ""), tmp_path / "none.jsonl", binary):
        with pytest.raises(SetupError, match=path.name):
            read_scripts(path)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the real prompt files")
@pytest.mark.parametrize(
    ("name", "count"),
    [("mt_bench", 80), ("vicuna", 80), ("self_instruct_seed", 175), ("self_instruct_user", 252)],
)
def test_real_prompt_files_are_read_whole(name: str, count: int) -> None:
    scripts = read_scripts(SHARED / f"prompts_{name}.jsonl")
    assert len(scripts) == count
    assert all(script.messages[-1]["content"].strip() for script in scripts)
    assert all(len(script.follow_ups) == (1 if name == "mt_bench" else 0) for script in scripts)


def test_a_file_is_used_up_before_it_repeats(tmp_path: Path) -> None:
    path = written(tmp_path, *[f"prompt {n}" for n in range(20)])
    source = FileSource(path, seed=1, held_out=False)
    count = len(source)
    first = [source.script(n) for n in range(count)]
    assert len(set(map(repr, first))) == count
    assert [source.script(n) for n in range(count, 2 * count)] == first
    assert source.script(0, attempt=1) != source.script(0)
    other = FileSource(path, seed=2, held_out=False)
    assert [other.script(n) for n in range(count)] != first


def test_a_file_keeps_prompts_apart_for_evaluation(tmp_path: Path) -> None:
    """Both took all of them, and versions were compared on what had been voted on."""
    path = written(tmp_path, *[f"prompt {n}" for n in range(40)])
    rated, unseen = (FileSource(path, seed=seed, held_out=seed == 1) for seed in (0, 1))
    assert not rated.shared
    assert not unseen.shared
    assert len(unseen) >= 5
    both = [source.script(n).messages[0]["content"] for source in (rated, unseen) for n in range(len(source))]
    assert sorted(both) == sorted(f"prompt {n}" for n in range(40))


@pytest.mark.parametrize("texts", [[f"prompt {n}" for n in range(7)], ["the same"] * 20])
def test_a_file_that_cannot_be_split_is_used_whole_for_both(tmp_path: Path, texts: list[str]) -> None:
    for held_out in (False, True):
        source = FileSource(written(tmp_path, *texts), seed=0, held_out=held_out)
        assert source.shared
        assert len(source) == len(texts)


def test_no_choice_of_seeds_mixes_what_is_rated_with_what_is_evaluated() -> None:
    world = World()
    rated = {
        repr(WorldSource(world, seed=seed, held_out=False).script(n).messages)
        for seed in (0, 1)
        for n in range(300)
    }
    unseen = {
        repr(WorldSource(world, seed=seed, held_out=True).script(n).messages)
        for seed in (0, 1)
        for n in range(300)
    }
    assert len(unseen) > 400
    assert not rated & unseen


def test_about_a_quarter_of_the_worlds_prompts_is_held_out() -> None:
    import random

    world, rng = World(), random.Random(0)
    share = sum(is_held_out(tuple(world.prompt(rng))) for _ in range(2000)) / 2000
    assert 0.2 < share < 0.3
