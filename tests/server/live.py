"""A real server on a free port of loopback, in a thread, with the engine that needs no model."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn
from sqlmodel import Session

from server.app import create_app
from server.cli.listener import Listener
from server.engine import Served, make_engine
from server.settings import Settings
from server.store import keys, migrate
from server.store.session import Store, open_store

ALL = ("chat", "feedback", "operator", "admin")


class LiveServer:
    """uvicorn around `create_app`; `store` is the very store that the server writes to."""

    def __init__(self, data_dir: Path, *, served: Served | None = None, **options: Any) -> None:
        usual: dict[str, Any] = {
            "engine": "echo",
            "learner": False,
            "follow_seconds": 0.05,
            "grace_seconds": 1,
        }
        self.settings = Settings(data_dir=data_dir, **usual | options)
        data_dir.mkdir(parents=True, exist_ok=True)
        migrate.upgrade(self.settings.resolved_database_url)
        self.store: Store = open_store(self.settings.resolved_database_url)
        self.served = served or make_engine(self.settings)
        off_the_loop(self.store, "read", "write")
        off_the_loop(self.served.renderer, "render", "encode_text", "decode", "spelling")
        self.app = create_app(self.settings, store=self.store, served=self.served)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_config=None, ws="none")
        self.server = Listener(config, grace_seconds=self.settings.grace_seconds)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> Self:
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.store.close()
        self.socket.close()

    def stop(self) -> None:
        """As SIGTERM does."""
        if not self.server.should_exit:
            self.signal()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def signal(self) -> None:
        """Ask it to end, and do not wait."""
        self.server.handle_exit(signal.SIGTERM, None)

    @property
    def admin_key(self) -> str:
        return self.settings.admin_key_path.read_text().strip()

    def key(self, *scopes: str, client: str = "shop") -> str:
        """A new key straight from the record."""

        def work(session: Session) -> str:
            return keys.create_client_key(session, client=client, name="test", scopes=scopes or ALL)[1]

        return self.store.write(work)

    @contextmanager
    def client(self, token: str | None = None) -> Iterator[httpx.Client]:
        headers = {} if token == "" else {"Authorization": f"Bearer {token or self.admin_key}"}
        # Plain HTTP: reading the certificates of the whole world for each client would take most of a test's time.
        with httpx.Client(base_url=self.url, headers=headers, timeout=20, verify=False) as client:
            yield client


def off_the_loop(part: Any, *names: str) -> None:
    """Make slow calls fail where they would hold everybody up: on the thread of an event loop."""

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return call(*args, **options)
            raise AssertionError(f"{call.__qualname__} was called on the event loop")

        return run

    for name in names:
        setattr(part, name, watched(getattr(part, name)))


def ask(text: str = "tell me about rain", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": "default", "messages": [{"role": "user", "content": text}], **more}


def events(response: httpx.Response) -> list[str]:
    """The payloads of a finished stream."""
    return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]


def wait_until(claim: Any, *, patience: float = 5) -> Any:
    """The first true answer of `claim`."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if answer := claim():
            return answer
        time.sleep(0.02)
    raise AssertionError("it did not come true in time")
