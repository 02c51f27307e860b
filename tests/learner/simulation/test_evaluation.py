"""Evaluation counts wins as it says, on prompts of its own, and keeps out of training."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.simulation import commands
from learner.simulation.evaluation import Outcome, choose_prompts, evaluate, summary, wilson, win_rate
from learner.simulation.scripts import FileSource, WorldSource, is_held_out
from learner.simulation.world import World
from server.errors import HoneError
from tests.learner.simulation.fake_hone import FakeHone, refusal, world_reply

WORLD = World()


def compare(
    fake: FakeHone, *, versions: tuple[int, ...] = (0, 1), prompts: int = 40, **fields: Any
) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with fake.client() as hone:
            chosen = choose_prompts(WorldSource(WORLD, seed=0, held_out=True), prompts)
            return await evaluate(
                hone,
                **{
                    "taste": "friendly-brief",
                    "versions": versions,
                    "prompts": chosen,
                    "world": WORLD,
                    **fields,
                },
            )

    return asyncio.run(run())


def test_the_table_has_exactly_the_promised_shape() -> None:
    table = compare(FakeHone(world_reply(WORLD)), versions=(0, 2, 5))
    assert json.loads(json.dumps(table)) == table
    assert set(table) == {"taste", "prompts", "versions", "wins"}
    assert table["prompts"] == 40
    assert list(table["versions"]) == ["0", "2", "5"]
    assert list(table["wins"]) == ["2>0", "5>0"]
    for row in table["versions"].values():
        assert set(row) == {"taste_mean", "tokens_mean", "on_topic", "well_formed"}
        assert row["on_topic"] == row["well_formed"] == 1.0
    for row in table["wins"].values():
        assert set(row) == {"rate", "ci95", "ties"}
        assert row["ci95"][0] <= row["rate"] <= row["ci95"][1]


def test_every_version_answers_every_prompt_once_outside_training() -> None:
    fake = FakeHone(world_reply(WORLD))
    compare(fake)
    assert Counter(chat["model"] for chat in fake.chats) == {"default@0": 40, "default@1": 40}
    assert all(chat["metadata"] == {"hone_train": "false"} for chat in fake.chats)
    assert all(chat["candidates"] == 1 for chat in fake.chats)
    assert all(is_held_out(tuple(chat["messages"])) for chat in fake.chats)
    assert len({json.dumps(chat["messages"]) for chat in fake.chats}) == 40
    assert not fake.votes


def test_a_better_version_wins_and_a_broken_one_shows_it() -> None:
    answered = world_reply(WORLD)
    fake = FakeHone(
        lambda messages, version, seed: (
            "grumble grumble grumble" if version == 0 else answered(messages, version, seed)
        )
    )
    table = compare(fake)
    assert table["wins"]["1>0"]["rate"] == 1.0
    assert table["wins"]["1>0"]["ci95"][0] > 0.9
    assert table["versions"]["0"]["on_topic"] == table["versions"]["0"]["well_formed"] == 0.0
    assert table["versions"]["0"]["tokens_mean"] == 3.0


def test_with_a_prompts_file_there_is_nothing_to_be_on_topic_of(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\nthree\n")
    chosen = choose_prompts(FileSource(path, seed=0), 1000)
    assert len(chosen) == 3
    table = compare(FakeHone(lambda messages, version, seed: f"v{version}"), prompts=3, world=None)
    assert {row["on_topic"] for row in table["versions"].values()} == {None}


def test_a_prompt_too_long_for_one_version_is_left_out_for_all() -> None:
    fake = FakeHone(world_reply(WORLD))
    unlucky = json.dumps(
        choose_prompts(WorldSource(WORLD, seed=0, held_out=True), 1)[0].messages[-1]
    ).encode()
    fake.trouble = lambda request: (
        refusal(400, "prompt_too_long")
        if json.loads(request.content)["model"] == "default@1"
        and json.dumps(json.loads(request.content)["messages"][-1]).encode() == unlucky
        else None
    )
    table = compare(fake)
    assert table["prompts"] < 40
    fake.trouble = lambda _: refusal(400, "prompt_too_long")
    with pytest.raises(HoneError, match="none of the prompts"):
        compare(fake)


def test_prompts_that_were_left_out_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for 200 prompts, it compared two, and the table alone told."""
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\ntoo long\n")
    fake = FakeHone(lambda messages, version, seed: f"v{version}")
    fake.trouble = lambda request: refusal(400, "prompt_too_long") if b"too long" in request.content else None

    def talk_to(url: Any, key: Any, data_dir: Any, connections: Any, work: Any) -> Any:
        async def run() -> Any:
            async with fake.client() as hone:
                return await work(hone)

        return asyncio.run(run())

    monkeypatch.setattr(commands, "talk_to", talk_to)
    options: dict[str, Any] = {"versions": "0,1", "prompts_file": path, "as_json": True}
    commands.evaluate(prompts=3, **options)
    assert capsys.readouterr().err == "asked for 3 prompts, used 2: 1 too long for the context\n"
    commands.evaluate(prompts=200, **options)
    said = "asked for 200 prompts, used 2: there are 3 different ones, 1 too long for the context\n"
    assert capsys.readouterr().err == said
    path.write_text("one\ntwo\n")
    commands.evaluate(prompts=2, **options)
    assert capsys.readouterr().err == ""


def test_wins_ties_and_losses_by_hand() -> None:
    def row(old: float, new: float) -> list[Outcome]:
        return [Outcome(old, 10, True, True), Outcome(new, 20, False, None)]

    table = summary("t", [0, 3], [row(0, 1), row(0, 1), row(1, 1), row(2, 1)])
    assert table["wins"] == {"3>0": {"rate": 2.5 / 4, "ci95": list(wilson(2.5 / 4, 4)), "ties": 1}}
    assert table["versions"]["0"] == {
        "taste_mean": 0.75,
        "tokens_mean": 10,
        "on_topic": 1.0,
        "well_formed": 1.0,
    }
    assert table["versions"]["3"] == {
        "taste_mean": 1.0,
        "tokens_mean": 20,
        "on_topic": 0.0,
        "well_formed": None,
    }


def test_wilsons_interval_agrees_with_a_published_value() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe, 1998, table I, method 3)."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=60))
def test_swapping_sides_mirrors_the_rate(pairs: list[tuple[int, int]]) -> None:
    ours = win_rate(pairs)
    theirs = win_rate([(right, left) for left, right in pairs])
    assert ours["rate"] + theirs["rate"] == pytest.approx(1)
    assert ours["ties"] == theirs["ties"]
    assert ours["ci95"] == pytest.approx([1 - theirs["ci95"][1], 1 - theirs["ci95"][0]])
    assert 0 <= ours["ci95"][0] <= ours["rate"] <= ours["ci95"][1] <= 1
