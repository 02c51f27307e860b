"""Evaluation counts wins as it says, on prompts of its own, and keeps out of training."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer

from learner.simulation import commands
from learner.simulation.evaluation import choose_prompts, evaluate
from learner.simulation.scoreboard import print_evaluation
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
    assert set(table) == {"taste", "prompts", "versions", "wins", "losses"}
    assert table["prompts"] == 40
    assert list(table["versions"]) == ["0", "2", "5"]
    assert list(table["wins"]) == ["2>0", "5>0"]
    for row in table["versions"].values():
        assert set(row) == {"taste_mean", "tokens_mean", "on_topic", "well_formed"}
        assert row["on_topic"] == row["well_formed"] == 1.0
    for row in table["wins"].values():
        assert set(row) == {"rate", "ci95", "ties"}
        assert row["ci95"][0] <= row["rate"] <= row["ci95"][1]
    nothing = {"mean": 0.0, "upper95": 0.0}
    assert table["losses"] == {name: {"on_topic": nothing, "well_formed": nothing} for name in ("2>0", "5>0")}


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
    chosen = choose_prompts(FileSource(path, seed=0, held_out=True), 1000)
    assert len(chosen) == 3
    table = compare(FakeHone(lambda messages, version, seed: f"v{version}"), prompts=3, world=None)
    assert {row["on_topic"] for row in table["versions"].values()} == {None}
    assert table["losses"]["1>0"] == {"on_topic": None, "well_formed": None}


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
    shared = f"{path} holds too few prompts to keep some apart: simulate and evaluate use the same ones\n"
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
    assert capsys.readouterr().err == f"{shared}asked for 3 prompts, used 2: 1 too long for the context\n"
    commands.evaluate(prompts=200, **options)
    said = "asked for 200 prompts, used 2: there are 3 different ones, 1 too long for the context\n"
    assert capsys.readouterr().err == shared + said
    path.write_text("".join(f"prompt {n}\n" for n in range(20)))
    commands.evaluate(prompts=2, **options)
    assert capsys.readouterr().err == ""
    assert all(is_held_out(tuple(chat["messages"])) for chat in fake.chats[-4:])


def test_draws_tell_which_prompts_the_taste_separates() -> None:
    """A version whose every second prompt always gets the same answer: only the others are separated."""
    answered = world_reply(WORLD)

    def respond(messages: list[dict[str, str]], version: int, seed: int) -> str:
        dull = len(messages[-1]["content"]) % 2 == 0
        return "The same every time." if dull and version == 0 else answered(messages, version, seed)

    fake = FakeHone(respond)
    table = compare(fake, draws=6)
    dull = sum(
        len(chat["messages"][-1]["content"]) % 2 == 0 for chat in fake.chats if chat["model"] == "default@1"
    )
    assert 0 < dull < 40
    assert table["separated"]["prompts"] <= 40 - dull
    assert set(table["separated"]["wins"]["1>0"]) == {"rate", "ci95", "ties"}
    assert table["draws"]["per_prompt"] == table["draws"]["best_of"] == 6
    assert table["draws"]["ties"] >= dull / 40
    assert table["draws"]["fair"] is False


def test_draws_are_few_requests_of_the_first_version_outside_training() -> None:
    fake = FakeHone(world_reply(WORLD))
    table = compare(fake, prompts=5, draws=6)
    assert json.loads(json.dumps(table)) == table
    drawn = [chat for chat in fake.chats if "n" in chat]
    assert Counter((chat["model"], chat["n"]) for chat in drawn) == {("default@0", 4): 5, ("default@0", 2): 5}
    assert all(chat["metadata"] == {"hone_train": "false"} for chat in drawn)
    seeds = [chat["seed"] + i for chat in drawn for i in range(chat["n"])]
    assert len(set(seeds)) == len(seeds) == 30


def test_draws_from_an_earlier_time_are_not_asked_for_again() -> None:
    fake = FakeHone(world_reply(WORLD))
    earlier = [["No.", "No.", "No."] for _ in range(40)]
    table = compare(fake, drawn=earlier)
    assert len(fake.chats) == 80
    assert table["separated"] == {"prompts": 0, "wins": {}}
    assert table["draws"]["ties"] == 1.0


def test_a_person_reads_wins_losses_and_whether_the_taste_is_fair(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(compare(FakeHone(world_reply(WORLD)), versions=(0, 2), draws=4))
    said = capsys.readouterr().out
    assert "taste friendly-brief, 40 prompts, wins against version 0" in said
    assert "prompts that the taste separates" in said
    assert "on topic lost" in said
    assert "of 4 replies of version 0 to each prompt" in said
    print_evaluation(compare(FakeHone(world_reply(WORLD)), versions=(0, 2)))
    said = capsys.readouterr().out
    assert "on topic lost" in said
    assert "separates" not in said
    print_evaluation(compare(FakeHone(world_reply(WORLD)), versions=(3,)))
    assert "lost" not in capsys.readouterr().out


def test_one_draw_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="no pair"):
        commands.evaluate(draws=1)
