import asyncio
from collections.abc import Iterator

import pytest
import torch

from server.decoding import fit
from server.engine.local import LocalEngine
from tests.fakes import tiny_llama


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def truth() -> Iterator[LocalEngine]:
    """The local engine, behind the servers of `tests.vllm_fake` and beside them."""
    torch.set_num_threads(1)
    engine = LocalEngine(fit(tiny_llama), max_running=32, max_waiting=64)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
def endless(truth: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """No id ends a reply, so that only `max_tokens`, stop strings and cancellation do."""
    monkeypatch.setattr(truth.base.renderer, "stop_ids", frozenset())
    return truth
