"""`hone serve`: the API with its engine in this process, the learner beside it as a child that ends with it."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
from contextlib import closing
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from server.cli.child import Child
from server.cli.words import DataDir, VllmUrl, joined, make_data_dir, settings_from
from server.errors import SetupError
from server.settings import Settings

log = logging.getLogger(__name__)

LEARNER_PARTS = ("apscheduler", "torch")


class EngineName(StrEnum):
    LOCAL = "local"
    VLLM = "vllm"
    ECHO = "echo"


def serve(
    host: Annotated[
        str | None, typer.Option(envvar="HONE_HOST", show_default="127.0.0.1", help="Address to listen on.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, envvar="HONE_PORT", show_default="8000", help="Port; 0 takes a free one."
        ),
    ] = None,
    data_dir: DataDir = None,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="HONE_MODEL", show_default="the demo model", help="Base model: a folder or a hub name."
        ),
    ] = None,
    engine: Annotated[
        EngineName | None, typer.Option(envvar="HONE_ENGINE", show_default="local", help="Who answers.")
    ] = None,
    vllm_url: VllmUrl = None,
    learner: Annotated[
        bool | None,
        typer.Option(
            "--learner/--no-learner", envvar="HONE_LEARNER", show_default="on", help="Learn beside serving."
        ),
    ] = None,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(
            envvar="HONE_TRUSTED_PROXIES",
            show_default="none",
            help="Addresses whose X-Forwarded-For is believed, with commas.",
        ),
    ] = None,
    cors_origins: Annotated[
        str | None,
        typer.Option(
            envvar="HONE_CORS_ORIGINS",
            show_default="none",
            help="Origins whose pages may call the API, with commas; * for any.",
        ),
    ] = None,
    upgrade: Annotated[
        bool,
        typer.Option("--upgrade", envvar="HONE_UPGRADE", help="Bring an older database up to date first."),
    ] = False,
) -> None:
    """Serve the chat page and the API, and learn from what users say."""
    settings = settings_from(
        host=host,
        port=port,
        data_dir=data_dir,
        model=model,
        engine=engine and str(engine),
        vllm_url=joined(vllm_url),
        learner=learner,
        trusted_proxies=trusted_proxies,
        cors_origins=cors_origins,
    )
    # An exit instead of a death by signal, so that what is below is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    bound = take_port(settings)
    with bound:
        prepare(settings, upgrade=upgrade)
        run(settings, bound)


def take_port(settings: Settings) -> socket.socket:
    """The bound socket, before anything slow is started. Raises SetupError with the doctor's words."""
    from server.doctor import Level, bind, check_port

    try:
        return bind(settings.host, settings.port)
    except OSError as error:
        found = next((one for one in check_port(settings) if one.level is Level.FAIL), None)
        says = (
            f"{found.says}: {found.mend}"
            if found
            else f"cannot listen on {settings.host}:{settings.port}: {error}"
        )
        raise SetupError(says) from error


def prepare(settings: Settings, *, upgrade: bool) -> None:
    """A data directory, and a record of this version's schema: made when there is none, changed only when asked."""
    from server.store import migrate

    make_data_dir(settings)
    if upgrade or migrate.is_empty(settings.resolved_database_url):
        migrate.upgrade(settings.resolved_database_url)
    else:
        migrate.check(settings.resolved_database_url)


def run(settings: Settings, bound: socket.socket) -> None:
    """Serve on `bound` until a signal, with the learner beside."""
    from server import logs
    from server.app import create_app, show_first_key
    from server.cli.listener import listen
    from server.store.session import open_store

    logs.configure(level=settings.log_level, as_json=settings.log_json)
    # Here and not only in the app, so that a door without keys is refused in one line.
    with closing(open_store(settings.resolved_database_url)) as store:
        show_first_key(store, settings)
    url = url_of(settings, bound)
    children = learner_beside(settings)

    def announce() -> None:
        settle_memory()
        leave_address(settings.address_path, url)
        typer.echo(f"Hone answers at {url}")
        for child in children:
            child.start()

    def ask_children() -> None:
        for child in children:
            child.ask()

    def hurry_children() -> None:
        for child in children:
            child.hurry()

    try:
        listen(
            create_app(settings),
            bound,
            grace_seconds=settings.grace_seconds,
            on_start=announce,
            on_stop=ask_children,
            on_hurry=hurry_children,
        )
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
    finally:
        for child in children:
            child.stop()
        remove_address(settings.address_path)


def settle_memory() -> None:
    """Spare what was loaded at start from every later garbage collection.

    Half a million objects of libraries and model never become garbage; walking them would halt all streams for some
    0.2 s, whenever the collector thinks of it.
    """
    gc.collect()
    gc.freeze()


def learner_beside(settings: Settings) -> list[Child]:
    """The scheduler, at low priority (its own doing), watching this process so as not to outlive it; or nobody."""
    if not settings.learner or settings.engine == "echo":
        return []
    if not all(map(find_spec, LEARNER_PARTS)):
        log.warning("the learner is not installed: pip install 'hone-chat[learner]'")
        return []
    command = [sys.executable, "-m", "learner", "run", "--parent", str(os.getpid())]
    return [Child("learner", command, settings.environment())]


def url_of(settings: Settings, bound: socket.socket) -> str:
    """Where a person on this machine would look: a wildcard address is reached over loopback."""
    port = bound.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 compared, not bound
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def leave_address(path: Path, url: str) -> None:
    """Tell operators' verbs on this machine where to ask. Whole or not at all: others read it at any time."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        draft.replace(path)
    except OSError as error:
        # A full disk is no reason not to answer; verbs will use the record instead.
        log.warning("cannot write %s: %s", path, error.strerror)


def remove_address(path: Path) -> None:
    """Take our own address back; another server's stays."""
    try:
        if json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()
    except (OSError, ValueError, KeyError, TypeError):
        return
