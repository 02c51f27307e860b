"""`hone adapters compare` before a real server: what it asks, counts and shows, and what it says when it cannot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner, Result

from server.__main__ import app
from server.cli import compare, served
from server.cli.compare import Case, Contrast, Said
from server.cli.served import Served
from server.cli.side_by_side import print_contrast
from server.cli.words import prose
from server.errors import Busy
from tests.server.live import LiveServer, ask
from tests.server.publishing import publish

LEARNED = {
    "picks": 300,
    "thumbs": 120,
    "people": 24,
    "verdict": {
        "passed": True,
        "reasons": [],
        "numbers": {
            "preference": {"win_rate": 0.84, "lower_bound": 0.79, "prompts": 64},
            "candidate": {"kl": 1.25},
        },
    },
}


@pytest.fixture(scope="module")
def version(live: LiveServer) -> int:
    return publish(live.store, live.settings, **LEARNED)


def hone(live: LiveServer, *words: object) -> Result:
    where = ("--url", live.url, "--data-dir", str(live.settings.data_dir))
    return CliRunner().invoke(app, ["adapters", "compare", *map(str, words), *where], prog_name="hone")


def compared(live: LiveServer, *words: object) -> dict[str, Any]:
    result = hone(live, *words, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(result: Result) -> str:
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


# --- what it asks ------------------------------------------------------------------------------------------


def test_everyday_questions_stand_in_while_nobody_has_asked_anything(live: LiveServer, version: int) -> None:
    found = compared(live, 0, version, "--prompts", 3)
    assert [case["messages"][-1]["content"] for case in found["prompts"]] == list(compare.EVERYDAY[:3])
    assert not found["from_record"]


def test_it_asks_what_people_asked_last_and_leaves_nothing_to_train_on(
    live: LiveServer, admin: httpx.Client, version: int
) -> None:
    before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    longer = [*before, {"role": "user", "content": "and rain?"}]
    for body in (
        ask("tea?"),
        ask("a test", metadata={"hone_train": "false"}),
        ask("rain?"),
        ask("tea?"),
        ask() | {"messages": longer},
    ):
        admin.post("/v1/chat/completions", json=body).raise_for_status()
    trainable = len(admin.get("/v1/turns", params={"train": True}).json()["data"])

    found = compared(live, version, 0, "--prompts", 10)
    assert [case["messages"][-1]["content"] for case in found["prompts"]] == ["and rain?", "tea?", "rain?"]
    assert found["from_record"]
    assert found["prompts"][0]["messages"] == longer
    assert len(admin.get("/v1/turns", params={"train": True}).json()["data"]) == trainable
    asked = admin.get("/v1/turns", params={"train": False, "limit": 6}).json()["data"]
    replies = [admin.get(f"/v1/turns/{turn['id']}").json()["replies"][0] for turn in asked]
    assert {reply["version"] for reply in replies} == {0, version}
    assert {reply["purpose"] for reply in replies} == {"pinned"}
    seeds = [
        {
            reply["seed"]
            for turn, reply in zip(asked, replies, strict=True)
            if turn["messages"] == case["messages"]
        }
        for case in found["prompts"]
    ]
    assert all(len(one) == 1 for one in seeds)
    assert found["prompts"] == compared(live, version, 0, "--prompts", 10)["prompts"]
    assert len(compared(live, 0, version, "--prompts", 1)["prompts"]) == 1


def test_counts_and_facts_are_those_of_the_two_versions(live: LiveServer, version: int) -> None:
    found = compared(live, 0, version, "--prompts", 2)
    assert (found["versions"], found["champion"]) == ([0, version], 0)
    assert found["facts"]["0"] == {"state": "champion"}
    known = found["facts"][str(version)]
    assert {name: known[name] for name in ("picks", "thumbs", "people", "parent", "passed", "kl")} == {
        "picks": 300, "thumbs": 120, "people": 24, "parent": 0, "passed": True, "kl": 1.25,
    }  # fmt: skip
    assert (known["win_rate"], known["win_rate_at_least"], known["judged_on"]) == (0.84, 0.79, 64)
    lengths = [case["replies"][str(version)]["tokens"] for case in found["prompts"]]
    assert found["changed"][str(version)]["tokens"] == sum(lengths) / len(lengths) > 0
    assert found["identical"] == 0


# --- what it says when it cannot ---------------------------------------------------------------------------


def test_one_version_is_not_compared_with_itself(live: LiveServer) -> None:
    result = hone(live, 3, 3)
    assert result.exit_code == 2
    assert "compared with itself" in result.stderr


def test_an_unknown_version_or_segment_is_named(live: LiveServer, version: int) -> None:
    assert "There is no version 999" in refused(hone(live, 0, 999))
    assert "there is no segment 'nowhere'" in refused(hone(live, 0, version, "--segment", "nowhere"))


def test_a_version_of_another_segment_is_said_to_be_that(live: LiveServer, admin: httpx.Client) -> None:
    admin.put("/v1/segments/lane", json={}).raise_for_status()
    stranger = publish(live.store, live.settings, segment="lane")
    assert "try --segment lane" in refused(hone(live, 0, stranger))
    assert compared(live, 0, stranger, "--segment", "lane")["segment"] == "lane"


def test_a_version_that_cannot_be_loaded_is_said_to_be_that(live: LiveServer) -> None:
    broken = publish(live.store, live.settings, base_hash="another")
    assert f"version {broken} cannot answer: " in refused(hone(live, 0, broken))
    assert "another base" in refused(hone(live, 0, broken))


def test_without_a_running_server_it_says_what_to_do(tmp_path: Path) -> None:
    words = ["adapters", "compare", "0", "1", "--data-dir", str(tmp_path)]
    said = refused(CliRunner().invoke(app, words, prog_name="hone"))
    assert "no server serves" in said
    assert "hone serve" in said
    said = refused(CliRunner().invoke(app, [*words, "--url", "http://127.0.0.1:9"], prog_name="hone"))
    assert "nothing answers at http://127.0.0.1:9" in said


def test_prompts_too_long_for_the_context_are_left_out_and_counted(
    live: LiveServer, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record may hold prompts from before the base was changed for one that reads less."""
    long = [{"role": "user", "content": "x" * 9000}]
    short = [{"role": "user", "content": "hello"}]
    monkeypatch.setattr(compare, "_recent", lambda hone, segment: iter([long, short]))
    found = compared(live, 0, version)
    assert (len(found["prompts"]), found["left_out"]) == (1, 1)
    monkeypatch.setattr(compare, "_recent", lambda hone, segment: iter([long]))
    assert "none of the prompts fits" in refused(hone(live, 0, version))


def test_a_busy_server_is_asked_again_until_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    full = httpx.Response(
        429, headers={"Retry-After": "2"}, json={"error": {"message": "full", "code": "engine_busy"}}
    )
    slept: list[float] = []
    monkeypatch.setattr(served.time, "sleep", slept.append)

    def behind(handler: Callable[[httpx.Request], httpx.Response]) -> Served:
        return Served("http://hone.test", "k", transport=httpx.MockTransport(handler))

    answers = iter([full, full, httpx.Response(200, json={"choices": []})])
    assert behind(lambda _: next(answers)).chat({}) == {"choices": []}
    assert slept == [2.0, 2.0]
    monkeypatch.setattr(served, "PATIENCE_SECONDS", 1.0)
    with pytest.raises(Busy, match="engine_busy"):
        behind(lambda _: full).chat({})


# --- how it looks ------------------------------------------------------------------------------------------


def contrast(
    first: str, second: str, *, question: str = "Why?", facts: dict[str, Any] | None = None
) -> Contrast:
    case = Case([{"role": "user", "content": question}], (Said(first, 4), Said(second, 2)))
    return Contrast(
        "default",
        champion=3,
        versions=(0, 3),
        facts=({}, facts or {}),
        from_record=True,
        cases=[case],
        left_out=0,
    )


def printed(found: Contrast, *, width: int) -> list[str]:
    out = io.StringIO()
    print_contrast(found, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    return lines


def test_replies_stand_side_by_side_where_there_is_room_and_else_below_each_other() -> None:
    found = contrast("One [bold]two[/bold].\nLine two.", "- tea 👩‍👩‍👧\n- 日本語")
    wide = printed(found, width=100)
    (row,) = [line for line in wide if "One [bold]two[/bold]." in line]
    assert "- tea 👩‍👩‍👧" in row
    (row,) = [line for line in wide if "Line two." in line]
    assert "- 日本語" in row
    narrow = printed(found, width=99)
    first, second = (
        next(i for i, line in enumerate(narrow) if words in line) for words in ("Line two.", "- tea")
    )
    assert first < second
    assert "version 3 · serves now" in "".join(narrow)


def test_long_words_are_folded_and_never_run_out_of_their_column() -> None:
    for width in (40, 80, 120):
        lines = printed(contrast("a" * 300, "日" * 300, question="q" * 900), width=width)
        assert "".join(lines).count("日") == 300
        assert "".join(lines).count("a") >= 300


def test_what_changed_is_counted_line_by_line() -> None:
    facts = {
        "state": "champion", "parent": 0, "picks": 300, "thumbs": 1, "people": 1, "passed": True, "win_rate": 0.84,
        "win_rate_at_least": 0.79, "judged_on": 64, "kl": 1.25, "votes": {"thumb_up": 5, "pick_first": 2},
    }  # fmt: skip
    said = "\n".join(
        " ".join(line.split()) for line in printed(contrast("Is it so?", "Yes! 🙂", facts=facts), width=140)
    )
    for line in (
        "tokens per reply 4.0 2.0 −2.0",
        "words per reply 3.0 2.0 −1.0",
        "with a list 0% 0% –",
        "with a question 100% 0% −100 points",
        "with emoji 0% 100% +100 points",
        "with an exclamation mark 0% 100% +100 points",
        "continues – version 0",
        "learned from – 300 picks and 1 thumb by 1 person",
        "gate – passed",
        "judged against its parent – wins 84% of 64 prompts, at least 79%",
        "KL from the base – 1.25 nats per reply",
        "thumbs on its replies – 5 up, 0 down",
        "1 prompt, asked last by people here; identical replies: 0.",
    ):
        assert line in said
    assert "identical replies: 1." in "\n".join(printed(contrast("same", "same"), width=80))
    assert "(empty)" in "\n".join(printed(contrast("", "x"), width=80))


def test_a_reply_cannot_move_the_cursor_or_turn_the_writing_around() -> None:
    assert prose("a\x1b[2Jb\r\nc\td\x00\u202ee\u2028f") == "a[2Jb\nc   de\nf"
    assert prose("👩‍👩‍👧 می‌خواهم 日本語 e\u0301 \U0001fae8") == "👩‍👩‍👧 می‌خواهم 日本語 e\u0301 \U0001fae8"
