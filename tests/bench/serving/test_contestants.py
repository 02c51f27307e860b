"""What a contestant is asked, without starting one."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.bench.serving import contestants
from tests.bench.serving.contestants import CONTESTANTS, Hone, Job, OverHttp, Setup
from tests.bench.serving.processes import CannotRun, Cores
from tests.bench.serving.shapes import S


def asked(
    policies: list[str], *, clients: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> list[list[Any]]:
    sent: list[list[Any]] = []

    async def keep(url: str, bodies: Any, *, key: str) -> list[Any]:
        sent.extend(bodies)
        return []

    monkeypatch.setattr(contestants, "closed_loop", keep)
    server = OverHttp("http://x", None, "", "", None, policies, extra={"ignore_eos": True})  # type: ignore[arg-type]
    asyncio.run(server.run(Job([["hello"] * each] * clients, 64)))
    return sent


def test_every_adapter_has_its_share_however_few_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a1", "a2", "a3", "a4"]
    for clients, each in ((1, 8), (2, 4), (4, 2), (16, 2)):
        bodies = asked(names, clients=clients, each=each, monkeypatch=monkeypatch)
        assert set(Counter(body["model"] for mine in bodies for body in mine).values()) == {
            clients * each // 4
        }
        at_once = {mine[0]["model"] for mine in bodies}
        assert len(at_once) == min(clients, 4)


def test_everybody_is_asked_for_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ((body,),) = asked(["default"], clients=1, each=1, monkeypatch=monkeypatch)
    assert (body["max_tokens"], body["temperature"], body["stream"], body["ignore_eos"]) == (
        64,
        0,
        True,
        True,
    )


def test_the_sampled_contestant_draws_and_all_others_are_greedy() -> None:
    server = OverHttp("http://x", None, "", "", None, extra=contestants.SAMPLED)  # type: ignore[arg-type]
    body = server.body("default", "hello", 64)
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
    sampled = [one.name for one in CONTESTANTS.values() if isinstance(one, Hone) and one.is_sampled]
    assert sampled == ["hone-sampled"]


@pytest.mark.parametrize(("name", "adapters"), [("transformers", 1), ("llamacpp", 4)])
def test_what_a_peer_has_no_way_to_do_is_said_before_it_starts(name: str, adapters: int) -> None:
    setup = Setup(S, "float32", adapters, 4, Cores(0, 0), Path())
    with pytest.raises(CannotRun, match="adapters"):
        CONTESTANTS[name].start(setup)
