"""The chat page in a real Chromium, before a real server whose engine says what the test wrote down."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.server.live import LiveServer
from tests.web.script import ScriptedEngine, scripted
from tests.web.site import Site
from tests.web.wire import Wire

HERE = Path(__file__).parent
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
QUIET = [
    "--no-sandbox",  # the sandbox does not work for root
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
]


def missing(part: str) -> None:
    """A part that this machine lacks: no reason to fail, unless it was promised."""
    if os.environ.get("HONE_REQUIRE_PARTS") == "1":
        pytest.fail(f"{part} is needed and missing")
    pytest.skip(f"{part} is missing")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing("Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched at its pinned version when it is not there yet."""
    if not AXE.exists():
        npm = shutil.which("npm")
        if npm is None:
            missing("npm, which brings axe-core")
        done = subprocess.run([str(npm), "ci", "--no-audit", "--no-fund"], cwd=HERE, capture_output=True)
        if done.returncode:
            missing(f"axe-core ({done.stderr.decode(errors='replace')[-300:]})")
    return AXE.read_text()


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, engine: ScriptedEngine) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("hone") / "data", served=scripted(engine)) as server:
        yield server


@pytest.fixture
def site(browser: Browser, server: LiveServer, engine: ScriptedEngine) -> Iterator[Site]:
    """One visitor with a browser profile of their own. Fails when the page itself broke or its policy was hurt."""
    engine.reset()
    with Wire(server.socket.getsockname()[1]) as wire:
        site = Site(browser, server, engine, wire)
        try:
            yield site
        finally:
            engine.open_gates()
            site.close()
    assert site.breakages == []
