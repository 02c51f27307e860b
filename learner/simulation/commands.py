"""`simulate` and `evaluate` as a person types them: options, a bar while it runs, a table at the end."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from server.errors import HoneError
from server.settings import Settings

if TYPE_CHECKING:
    from learner.simulation.drive import Tally
    from learner.simulation.rest import Hone
    from learner.simulation.scripts import Source

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="HONE_URL", show_default="the server of the data directory", help="A running Hone."
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="HONE_API_KEY", show_default="<data-dir>/admin.key", help="API key."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="HONE_DATA_DIR", show_default="./data", help="Where to look for URL and key."
    ),
]
TasteName = Annotated[
    str,
    typer.Option(
        "--taste",
        envvar="HONE_TASTE",
        help="friendly-brief, bullets-thorough, remembers, random:SEED or FILE.py:FUNCTION, "
        "a function (messages, reply) -> float.",
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts-file",
        envvar="HONE_PROMPTS_FILE",
        exists=True,
        dir_okay=False,
        help="JSONL of prompts, turns or messages, or plain lines; else the simulated world. A quarter of them is kept "
        "for evaluate, and simulate takes the others.",
    ),
]
Segment = Annotated[str, typer.Option("--segment", envvar="HONE_SEGMENT", help="The lane to talk to.")]
Seed = Annotated[int, typer.Option("--seed", envvar="HONE_SEED", help="Draws everything that is drawn.")]
CrowdSeed = Annotated[
    int,
    typer.Option(
        "--seed",
        envvar="HONE_SEED",
        help="Draws everything that is drawn. Another run with the same seed: the same people, new conversations.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", envvar="HONE_JSON", help="Print JSON for programs.")]
Connections = Annotated[
    int, typer.Option("--connections", min=1, max=1024, envvar="HONE_CONNECTIONS", help="Requests at a time.")
]


def _noise(text: str) -> float:
    try:
        noise = float(text)
    except ValueError:
        noise = math.nan
    if math.isnan(noise) or noise < 0:
        raise typer.BadParameter(f"{text!r} is neither a number of at least 0 nor inf")
    return noise


def _versions(text: str) -> list[int]:
    try:
        versions = [int(word) for word in text.split(",")]
    except ValueError:
        versions = [-1]
    if min(versions) < 0 or len(set(versions)) < len(versions):
        raise typer.BadParameter(f"{text!r} is not a list of different version numbers such as 0,1")
    return versions


def simulate(
    url: Url = None,
    key: Key = None,
    users: Annotated[int, typer.Option(min=1, envvar="HONE_USERS", help="People who vote.")] = 24,
    picks: Annotated[
        int, typer.Option(min=0, envvar="HONE_PICKS", help="Picks of all users together.")
    ] = 300,
    thumbs: Annotated[
        int, typer.Option(min=0, envvar="HONE_THUMBS", help="Thumbs of all users together.")
    ] = 300,
    taste: TasteName = "friendly-brief",
    noise: Annotated[
        float,
        typer.Option(
            parser=_noise,
            metavar="X|inf",
            envvar="HONE_NOISE",
            help="0 is exact, at 1 two users agree on about 70 % of decided picks, inf tosses coins.",
        ),
    ] = 1.0,
    adversaries: Annotated[
        float,
        typer.Option(min=0, max=1, envvar="HONE_ADVERSARIES", help="Share of users with the opposite taste."),
    ] = 0.0,
    prompts_file: PromptsFile = None,
    segment: Segment = "default",
    seed: CrowdSeed = 0,
    connections: Connections = 16,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Play users with a hidden taste against a running server: they chat, pick and give thumbs."""
    from learner.simulation.drive import Crowd, simulate

    with plain_errors():
        source = source_of(prompts_file, seed=seed, held_out=False)
        crowd = Crowd(
            taste=taste,
            users=users,
            picks=picks,
            thumbs=thumbs,
            noise=noise,
            adversaries=adversaries,
            seed=seed,
        )
        with bar("voting", picks + thumbs) as advance:
            tally = talk_to(
                url,
                key,
                data_dir,
                connections,
                lambda hone: simulate(hone, crowd, source=source, segment=segment, on_progress=advance),
            )
    if as_json:
        typer.echo(json.dumps(tally.as_dict(), indent=2))
    else:
        print_tally(tally, taste)


def evaluate(
    url: Url = None,
    key: Key = None,
    taste: TasteName = "friendly-brief",
    versions: Annotated[
        str | None,
        typer.Option(
            envvar="HONE_VERSIONS",
            show_default="0 and the champion",
            help="Such as 0,1; the first is the yardstick.",
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=1, envvar="HONE_PROMPTS", help="How many different prompts.")
    ] = 200,
    prompts_file: PromptsFile = None,
    draws: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            envvar="HONE_DRAWS",
            help="More replies of the first version to each prompt: which prompts does the taste separate, and is it "
            "fair (16 tell)?",
        ),
    ] = 0,
    segment: Segment = "default",
    seed: Seed = 0,
    connections: Connections = 16,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare versions on prompts that simulate leaves alone; the key needs the scopes chat and operator."""
    from learner.simulation.evaluation import choose_prompts, evaluate, requests_per_prompt
    from learner.simulation.scoreboard import left_out_of, print_evaluation
    from learner.simulation.world import World

    wanted = None if versions is None else _versions(versions)
    if draws == 1:
        raise typer.BadParameter("one reply makes no pair: 0, or 2 and more", param_hint="--draws")
    with plain_errors():
        world = None if prompts_file else World()
        chosen = choose_prompts(source_of(prompts_file, seed=seed, held_out=True), prompts)

        async def compare(hone: Hone) -> dict[str, Any]:
            named = wanted if wanted is not None else sorted({0, await hone.champion(segment)})
            with bar("answering", len(chosen) * requests_per_prompt(len(named), draws)) as advance:
                return await evaluate(
                    hone,
                    taste=taste,
                    versions=named,
                    prompts=chosen,
                    world=world,
                    segment=segment,
                    seed=seed,
                    draws=draws,
                    on_progress=advance,
                )

        table = talk_to(url, key, data_dir, connections, compare)
    if left_out := left_out_of(prompts, found=len(chosen), used=table["prompts"]):
        typer.echo(left_out, err=True)
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    else:
        print_evaluation(table)


def source_of(prompts_file: Path | None, *, seed: int, held_out: bool) -> Source:
    """The prompts that the options name; says so where those that are rated cannot be told from those evaluated on."""
    from learner.simulation.scripts import FileSource, WorldSource
    from learner.simulation.world import World

    if prompts_file is None:
        return WorldSource(World(), seed=seed, held_out=held_out)
    source = FileSource(prompts_file, seed=seed, held_out=held_out)
    if source.shared:
        typer.echo(
            f"{prompts_file} holds too few prompts to keep some apart: simulate and evaluate use the same ones",
            err=True,
        )
    return source


def talk_to(
    url: str | None,
    key: str | None,
    data_dir: Path | None,
    connections: int,
    work: Callable[[Hone], Coroutine[Any, Any, T]],
) -> T:
    """Run `work` against the installation that the options name."""
    from learner.simulation.rest import Hone

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    target = url or settings.answering_url or DEFAULT_URL
    if key is None:
        try:
            key = settings.admin_key_path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise HoneError(
                f"no key: give --key, set HONE_API_KEY, or let {settings.admin_key_path} be readable"
            ) from error

    async def run() -> T:
        async with Hone(target, key, connections=connections) as hone:
            return await work(hone)

    return asyncio.run(run())


@contextmanager
def plain_errors() -> Iterator[None]:
    """Deliberate errors as one line and exit code 1."""
    try:
        yield
    except HoneError as error:
        fail(error.message)


def fail(message: str) -> NoReturn:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error in a terminal; nothing where there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)


def print_tally(tally: Tally, taste: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("vote", "value", "count", box=None, header_style="bold", pad_edge=False)
    for kind, counts in (("pick", tally.picks), ("thumb", tally.thumbs)):
        for value, count in counts.most_common():
            table.add_row(kind, value, str(count))
    Console().print(table)
    if tally.agreement is not None:
        typer.echo(f"{tally.agreement:.0%} of decided picks agree with the taste {taste}")
    for count, why in (
        (tally.equal, "pairs came out equal and took no pick"),
        (tally.too_long, "prompts were too long for the context"),
        (tally.missed, "votes could not be cast, after several prompts each"),
    ):
        if count:
            typer.echo(f"{count} {why}")
