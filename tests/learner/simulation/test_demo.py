"""The demo touches nothing but its scratch directory, and says what became of the cycle."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from learner.__main__ import app
from learner.simulation import commands
from learner.simulation import demo as story
from server.settings import Settings


def cycle(state: str, reason: str = "") -> dict[str, Any]:
    return {"state": state, "reason": reason}


class Stage:
    """Everything that the demo does outside of its own process, replaced; `told` is what it did."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, exit_code: int, newest: dict[str, Any] | None
    ) -> None:
        self.told: list[str] = []
        self.environment: dict[str, str] = {}
        version = [1 if newest and newest["state"] == "promoted" else 0]
        stage = self

        @contextmanager
        def serving(settings: Settings) -> Iterator[str]:
            settings.admin_key_path.write_text("key")
            yield "http://hone.test"

        class Talk:
            def __init__(self, url: str, key: str) -> None:
                self.key = key

            def ask(self, question: str) -> str:
                return "Hello."

            def newest_cycle(self) -> dict[str, Any] | None:
                return newest

            def champion(self) -> int:
                return version[0]

            def roll_back(self) -> None:
                version[0] = 0
                stage.told.append("rolled back")

        def run(
            command: list[str], *, env: dict[str, str], check: bool
        ) -> subprocess.CompletedProcess[bytes]:
            stage.environment = env
            return subprocess.CompletedProcess(command, exit_code)

        monkeypatch.setattr(story, "serving", serving)
        monkeypatch.setattr(story, "Talk", Talk)
        monkeypatch.setattr(story.subprocess, "run", run)
        monkeypatch.setattr(commands, "simulate", lambda *_, **__: stage.told.append("simulated"))
        monkeypatch.setattr(commands, "evaluate", lambda *_, **__: stage.told.append("evaluated"))

    def play(self) -> Result:
        return CliRunner().invoke(app, ["demo"])


def test_the_whole_story_ends_with_the_rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, 0, cycle("promoted"))
    done = stage.play()
    assert done.exit_code == 0
    assert stage.told == ["simulated", "evaluated", "rolled back"]
    assert "Version 1 serves now" in done.output
    assert "Version 0 answers again" in done.output


def test_a_refusal_is_an_end_like_another(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, 0, cycle("refused", "no signal"))
    done = stage.play()
    assert done.exit_code == 0
    assert stage.told == ["simulated"]
    assert "Refused, for the reasons above" in done.output


@pytest.mark.parametrize(
    ("exit_code", "newest", "says"),
    [
        (1, None, "the learner ended with exit code 1 before it began a cycle"),
        (1, cycle("failed", "MemoryError"), "ended with exit code 1 and left its cycle failed, MemoryError"),
        (-9, cycle("running"), "was killed by signal 9 and left its cycle running: nothing was learned"),
        (0, cycle("cancelled", "by an operator"), "left its cycle cancelled"),
    ],
)
def test_a_cycle_that_broke_is_no_refusal(
    monkeypatch: pytest.MonkeyPatch, exit_code: int, newest: dict[str, Any] | None, says: str
) -> None:
    """A learner that crashed was told as a refusal of the gate, and the demo ended well."""
    done = Stage(monkeypatch, exit_code, newest).play()
    assert done.exit_code == 1
    assert says in done.output
    assert "Refused" not in done.output


def test_the_learner_works_in_the_scratch_directory_whatever_the_shell_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HONE_DATABASE_URL", "postgresql+psycopg://real/record")
    monkeypatch.setenv("HONE_DATA_DIR", "/real")
    stage = Stage(monkeypatch, 0, cycle("refused"))
    assert stage.play().exit_code == 0
    assert stage.environment["HONE_DATABASE_URL"] == ""
    assert "hone-demo-" in stage.environment["HONE_DATA_DIR"]
