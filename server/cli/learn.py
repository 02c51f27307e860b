"""`hone learn`, `simulate` and `evaluate`: hand over to `python -m learner`, which replaces this process.

The server never imports the learner; words after `simulate` and `evaluate` are the learner's to understand.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from server.cli.words import DataDir, settings_from
from server.settings import Settings

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a command whose words, `--help` included, are somebody else's."""


def learn(
    once: Annotated[
        bool, typer.Option("--once", envvar="HONE_ONCE", help="One cycle now, without waiting for triggers.")
    ] = False,
    segment: Annotated[
        str | None,
        typer.Option(envvar="HONE_SEGMENT", show_default="default", help="The lane to train; needs --once."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", envvar="HONE_DRY_RUN", help="Train and judge, publish nothing; implies --once."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Learn from what users said: cycles when they are due, or one now."""
    once = once or dry_run
    if segment is not None and not once:
        raise typer.BadParameter("needs --once; the scheduler looks after every lane", param_hint="--segment")
    words = ["once" if once else "run"]
    words += ["--segment", segment] if segment is not None else []
    words += ["--dry-run"] if dry_run else []
    become_learner(settings_from(data_dir=data_dir), *words)


def simulate(context: typer.Context) -> None:
    """Play users with a hidden taste against a running server; `hone simulate --help` says more."""
    become_learner(settings_from(), "simulate", *context.args)


def evaluate(context: typer.Context) -> None:
    """Compare versions on unseen prompts by a taste; `hone evaluate --help` says more."""
    become_learner(settings_from(), "evaluate", *context.args)


def become_learner(settings: Settings, *words: str) -> NoReturn:
    """Replace this process, so that signals, terminal and exit code are the learner's own."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "learner", *words], settings.environment())  # noqa: S606 no shell wanted
