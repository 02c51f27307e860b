"""Fixtures of the server's tests."""

from collections.abc import Iterator

import httpx
import pytest

from tests.server.live import LiveServer


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for a module's tests; each test makes its own clients and users."""
    with LiveServer(tmp_path_factory.mktemp("hone") / "data") as server:
        yield server


@pytest.fixture
def admin(live: LiveServer) -> Iterator[httpx.Client]:
    """A caller that may do everything."""
    with live.client() as client:
        yield client
