"""The whole story in a terminal: talk, pick, learn, swap, talk again, compare, roll back.

Starts a server of its own over a scratch data directory and then does only what anybody could type.

    base answers -> a crowd votes -> one cycle -> the same questions again -> win rate -> rollback
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from learner.simulation import commands
from server.errors import HoneError
from server.settings import Settings

QUESTIONS = (
    "Hi, my name is Mara. How do I make good coffee?",
    "Can you help me to sleep better?",
    "What should I know about growing tomatoes?",
)
START_SECONDS = 120.0


def demo(
    taste: commands.TasteName = "friendly-brief",
    picks: Annotated[int, typer.Option(min=1, help="Picks of 24 users together.")] = 300,
    thumbs: Annotated[int, typer.Option(min=0, help="Thumbs of 24 users together.")] = 300,
    prompts: Annotated[int, typer.Option(min=1, help="Unseen prompts for the win rate.")] = 300,
    seed: commands.Seed = 0,
) -> None:
    """Watch Hone learn a taste, serve it, and take it back: minutes, in a scratch directory."""
    with commands.plain_errors(), tempfile.TemporaryDirectory(prefix="hone-demo-") as folder:
        settings = Settings.apart(
            Path(folder)
        )  # the shell may well name the record of an installation in use
        tell("A server starts, with the bare base model (version 0).")
        with serving(settings) as url:
            talk = Talk(url, settings.admin_key_path.read_text(encoding="ascii").strip())
            before = [talk.ask(question) for question in QUESTIONS]
            for question, reply in zip(QUESTIONS, before, strict=True):
                show(question, {"v0": reply})

            tell(
                f"24 people with one hidden taste ({taste}) chat, pick between two replies, and give thumbs."
            )
            commands.simulate(url, talk.key, picks=picks, thumbs=thumbs, taste=taste, seed=seed)

            tell("The learner turns the votes into a reward model, a policy and a verdict.")
            done = subprocess.run(
                [sys.executable, "-m", "learner", "once"],
                env=settings.environment(apart=True),
                check=False,
            )
            if not is_promoted(done.returncode, talk.newest_cycle()):
                tell("Refused, for the reasons above: the base goes on serving. Nothing is promoted by hope.")
                return

            version = talk.champion()
            tell(f"Version {version} serves now; nobody was interrupted. The same questions again:")
            for question, reply in zip(QUESTIONS, before, strict=True):
                show(question, {"v0": reply, f"v{version}": talk.ask(question)})

            tell(f"{prompts} questions that nobody voted on, answered by both:")
            commands.evaluate(url, talk.key, taste=taste, versions=f"0,{version}", prompts=prompts, seed=seed)

            tell("And back, as `hone adapters rollback` does:")
            began = time.monotonic()
            talk.roll_back()
            tell(f"Version {talk.champion()} answers again, {time.monotonic() - began:.2f} s later.")


def is_promoted(exit_code: int, cycle: dict[str, Any] | None) -> bool:
    """Whether the learner's cycle was promoted or refused. Raises HoneError when it came to neither."""
    if exit_code == 0 and cycle and cycle["state"] in ("promoted", "refused"):
        return bool(cycle["state"] == "promoted")
    ended = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
    if cycle is None:
        raise HoneError(f"the learner {ended} before it began a cycle; its own words are above")
    why = f", {cycle['reason']}" if cycle["reason"] else ""
    raise HoneError(f"the learner {ended} and left its cycle {cycle['state']}{why}: nothing was learned")


class Talk:
    """One operator at the API, whose questions stay out of training."""

    def __init__(self, url: str, key: str) -> None:
        self.key = key
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def ask(self, question: str) -> str:
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": question}],
            "seed": 1,
            "metadata": {"hone_train": "false"},
        }
        answer = self._http.post("/v1/chat/completions", json=body).raise_for_status().json()
        return str(answer["choices"][0]["message"]["content"])

    def champion(self) -> int:
        rows = self._http.get("/v1/segments").raise_for_status().json()["data"]
        return next(int(row["champion"]) for row in rows if row["name"] == "default")

    def newest_cycle(self) -> dict[str, Any] | None:
        rows = self._http.get("/v1/learner/cycles", params={"limit": 1}).raise_for_status().json()["data"]
        return dict(rows[0]) if rows else None

    def roll_back(self) -> None:
        self._http.post(
            "/v1/segments/default/rollback", json={"reason": "the demo is over"}
        ).raise_for_status()


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """A server over this data directory, with no learner of its own; yields its URL and ends it afterwards."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--no-learner"]
    with (settings.data_dir / "server.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 our own command, no shell
            command, env=settings.environment(apart=True), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield wait_until_ready(settings, process)
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(settings: Settings, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        url = settings.answering_url
        if url is not None and is_ready(url):
            return url
        time.sleep(0.1)
    raise HoneError(f"the server did not start:\n{(settings.data_dir / 'server.log').read_text()[-2000:]}")


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.HTTPError:
        return False


def tell(text: str) -> None:
    typer.secho(f"\n{text}", bold=True)


def show(question: str, replies: dict[str, str]) -> None:
    typer.echo(f"\n  you  {question}")
    for who, text in replies.items():
        lines = text.splitlines() or [""]
        typer.echo(f"  {who:<4} {lines[0]}")
        for line in lines[1:]:
            typer.echo(f"       {line}")
