"""`python -m learner`: one cycle now, the scheduler, and the simulated world's verbs.

Owns the process: settings, signals, priority, exit codes (0 done, 1 a deliberate error in one line, 2 usage). What
the commands do is in the module named for each; heavy libraries are imported only by the command that needs them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from learner.simulation import commands
from learner.simulation.demo import demo
from server import logs
from server.errors import HoneError, SetupError
from server.settings import Settings

if TYPE_CHECKING:
    from learner.duty import Duty

log = logging.getLogger(__name__)

LOW_PRIORITY = 10
"""Added to the process's niceness: people who wait for a reply come first."""

# Batches of ever new shapes tear the heap to pieces: small blocks that a thread keeps for itself come to lie between
# large ones, and after twelve minutes of training 4.6 GB were resident. What all steps share fits in 64 primitives;
# the 1000 that are kept by default are never met again. These variables are read before Python runs.
TIDY_MEMORY = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.tcache_count=0",
            f"glibc.malloc.mmap_threshold={32 * 2**20}",
            f"glibc.malloc.trim_threshold={2**30}",
        )
    ),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def learner() -> None:
    """From what users said to a better adapter."""


@app.command()
def once(
    segment: Annotated[str, typer.Option(help="The lane to train.")] = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Train and judge, publish nothing.")] = False,
) -> None:
    """One cycle now, without waiting for triggers; goes on with an interrupted one first."""
    from learner.watch import Stopped

    with duty_of(Settings()) as duty:
        try:
            cycle = duty.once(segment=segment, dry_run=dry_run)
        except Stopped:
            say("stopped; the next start goes on from here")
            raise typer.Exit(1) from None
    say(f"{cycle.state}: {cycle.reason}")
    for reason in (cycle.verdict or {}).get("reasons", []):
        say(f"  - {reason}")
    if cycle.state in ("failed", "cancelled"):
        raise typer.Exit(1)


@app.command()
def run(
    parent: Annotated[int | None, typer.Option(help="End when this process has ended.")] = None,
) -> None:
    """Watch the record and run a cycle whenever one is due, until told to stop."""
    settings = Settings()
    os.nice(LOW_PRIORITY)
    stop = threading.Event()
    with duty_of(settings, stop=stop) as duty:
        from learner.schedule import Schedule

        schedule = Schedule(stop=stop)
        schedule.every(settings.learner_poll_seconds, "look", duty.look)
        if parent is not None:
            schedule.every(1.0, "parent", lambda: end_with(parent, stop))
        log.info("watching the record every %g s", settings.learner_poll_seconds)
        schedule.run()


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("server/demo_model"),
    seed: int = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; another number, other weights.")] = 2,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this long; the next call goes on.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint, if there is one.")] = True,
    measure: Annotated[bool, typer.Option("--measure", help="Only measure the model that is there.")] = False,
) -> None:
    """Train the demo model from scratch on the simulated world's dialogues."""
    from learner.simulation.card import compare, read_figures

    if measure:
        stated = read_figures(out)  # before the minutes that measuring takes
        from learner.simulation.measure import measure as measured

        text, holds = compare(stated, measured(out, seed=seed))
        say(text)
        raise typer.Exit(0 if holds else 1)
    start_again_with(TIDY_MEMORY)
    from learner.simulation.pretrain import pretrain as train

    figures = train(
        out,
        seed=seed,
        threads=threads,
        minutes=minutes,
        resume=resume,
        on_progress=lambda step, steps, loss: say(f"step {step} of {steps}, loss {loss:.3f}"),
    )
    say(compare(figures, figures)[0] if figures else "stopped; the next call goes on from here")


app.command()(commands.simulate)
app.command()(commands.evaluate)
app.command()(demo)


@contextmanager
def duty_of(settings: Settings, *, stop: threading.Event | None = None) -> Iterator[Duty]:
    """A learner on duty over this installation's record; SIGTERM and SIGINT ask it to stop in good order."""
    from learner.duty import Duty
    from server.artifacts import Artifacts
    from server.store.session import open_store

    stop = stop or threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    store = open_store(settings.resolved_database_url)
    try:
        artifacts = Artifacts(settings.resolved_artifacts_url, cache=settings.data_dir)
        threads = settings.learner_threads or all_but_one()
        yield Duty(settings.model_copy(update={"learner_threads": threads}), store, artifacts, stop=stop)
    finally:
        store.close()


def all_but_one() -> int:
    """The cores that this process may use, less one for replies: a thread that waits for a core that is in use makes
    all others spin, and a step of PPO five times as long (learning log)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed - 1)


def end_with(parent: int, stop: threading.Event) -> None:
    """Stop when the process that started this one has ended: its children are handed to another then."""
    if os.getppid() != parent and not stop.is_set():
        log.warning("the server that started this learner has ended; so does the learner")
        stop.set()


def start_again_with(variables: dict[str, str]) -> None:
    """The same command in this very process with these variables, unless some of them have been given."""
    given = Settings().environment()
    if not variables.keys() & given.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**given, **variables})  # noqa: S606 our own command, no shell


def settings_given() -> Settings:
    """This process's settings. Raises SetupError when a variable cannot stand."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(f"HONE_{str(at['loc'][0]).upper()}: {at['msg']}" for at in error.errors())
        raise SetupError(f"settings cannot stand: {wrong}") from error


def say(text: str) -> None:
    typer.echo(text)


def main() -> None:
    """The entry point: deliberate errors are one line, everything else is a traceback."""
    try:
        settings = settings_given()
        logs.configure(level=settings.log_level, as_json=settings.log_json)
        app()
    except HoneError as error:
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
