"""A vLLM server as far as Hone speaks to one: the same routes, fields and refusals, over a tiny real model.

Its replies come from the local engine, so what another engine makes of them can be compared with the truth. It can be
killed and started again, and has forgotten its adapters then, as the real one has.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.engine.base import Delta, FinishReason, Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.replica import Replica
from server.engine.vllm import AdaptersSeen, VllmEngine
from server.errors import HoneError
from server.prompts import Renderer
from tests.fakes import byte_tokenizer

FIELDS = {
    "model", "prompt", "max_tokens", "n", "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop_token_ids", "logprobs", "prompt_logprobs", "stream",
    "return_tokens_as_token_ids", "cache_salt", "ignore_eos",
}  # fmt: skip
SEPARATOR = "\u2028"
"""A line end to `str.splitlines`, and plain text to JSON and to server-sent events."""


class FakeVllm:
    """One server on a free port of loopback. Several may share one `truth`."""

    def __init__(
        self,
        truth: LocalEngine,
        *,
        key: str = "",
        context: int | None = None,
        takes_adapters: bool = True,
        has_lora: bool = True,
        logprobs: str = "raw_logprobs",
        max_rank: int = 16,
    ) -> None:
        self.truth = truth
        self.key = key
        self.context = context or truth.base.context
        self.takes_adapters, self.has_lora, self.logprobs = takes_adapters, has_lora, logprobs
        self.max_rank = max_rank
        self.base = "/models/tiny"
        self.adapters: dict[str, str] = {}
        self.said: list[tuple[str, Any]] = []
        """What it was asked for, in order: ("load", name), ("unload", name), ("draw", body), ("score", body)."""
        self.unknown = 0
        """Requests for a name that it does not hold."""
        self.cancelled = 0
        """Streams whose reader left before their end."""
        self.health = 200
        self.release: str | None = "0.32.0"
        """What it says of its version; nothing: older ones have no such route."""
        self.max_loras = 8
        self.others = 0
        """Replies that it writes for somebody else, as its numbers tell."""
        self.drains = False
        """It is being stopped: well to all questions, and every request ends before it has begun."""
        self.is_vllm = True
        self.failures: list[int] = []
        """Statuses with which the next completions fail."""
        self.full = 0
        """The status with which it refuses completions because its queue is full."""
        self.hangs = False
        """It takes connections and says nothing, as a process that is stopped."""
        self.load_hangs = False
        """Reading an adapter takes for ever; all else goes on."""
        self.score_hangs = False
        """Scoring does; greeting goes on."""
        self.load_refusal, self.load_status = "", 500
        """What it says to every adapter that it is to load, and with which status: older versions say 400."""
        self.unload_refusal = ""
        """What it says to every adapter that it is to unload."""
        self.off_by = 0.0
        """Nats by which its adapters score otherwise than they should."""
        self.base_off_by = 0.0
        """The same for its base."""
        self.scoring = self.most_scoring = 0
        """Prompts that are scored now, and at most at once until now."""
        self.cut_after: int | None = None
        """Events after which a stream breaks off."""
        self.stall_after: int | None = None
        """Events after which a stream falls silent."""
        self.ends_after: tuple[int, bytes] | None = None
        """Events after which a stream comes to an end before its time, with these bytes and `[DONE]`."""
        self.pause = 0.0
        """Seconds between two events."""
        self.burst = 1
        """Tokens in one event."""
        self.counts_tokens = False
        """Whether a stream's last event tells the usage, with no choices (`--enable-force-include-usage`)."""
        self._socket = bound(0)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
                *([Route("/v1/load_lora_adapter", self._load, methods=["POST"])] if takes_adapters else []),
                *([Route("/v1/unload_lora_adapter", self._unload, methods=["POST"])] if takes_adapters else []),
            ]
        )  # fmt: skip
        self.server: uvicorn.Server | None = None

    # --- its life ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._socket.close()

    def start(self) -> Self:
        self.adapters.clear()
        config = uvicorn.Config(self.app, log_config=None, lifespan="off", ws="none", access_log=False)
        self.server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self.server,), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return self

    def _run(self, server: uvicorn.Server) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(server.serve(sockets=[self._socket]))
            rest = asyncio.all_tasks(self._loop)
            for task in rest:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        finally:
            self._loop.close()

    def kill(self) -> None:
        """Gone, as a process that was killed: connections are reset, nothing is ended politely."""
        if self.server is None:
            return
        server, self.server = self.server, None

        def abort() -> None:
            server.should_exit = server.force_exit = True
            for connection in list(server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]

        self._loop.call_soon_threadsafe(abort)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._socket.close()
        self._socket = bound(self.port)

    def asked(self, kind: str) -> list[Any]:
        """What it was asked for of one kind; the greeting's hot words and their scoring are left out."""
        return [what for said, what in list(self.said) if said == kind]

    # --- its routes ----------------------------------------------------------------------------------------

    async def _health(self, _: Request) -> Response:
        await self._answers()
        return Response(status_code=self.health)

    async def _metrics(self, _: Request) -> Response:
        info = f'vllm:lora_requests_info{{max_lora="{self.max_loras}",running_lora_adapters=""}} 1.7e+09\n'
        lora = f"# TYPE vllm:lora_requests_info gauge\n{info}" if self.has_lora else ""
        return PlainTextResponse(
            f'vllm:num_requests_running{{engine="0",model_name="x"}} {float(self.others)}\n'
            'vllm:num_requests_waiting{engine="0",model_name="x"} 0.0\n'
            'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0\n'
            f"{lora}"
        )

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": self.release}) if self.release else error(404, "Not Found")

    async def _answers(self) -> None:
        await until(lambda: not self.hangs, patience=600)

    async def _models(self, request: Request) -> Response:
        await self._answers()
        if refused := self._refused(request):
            return refused
        if not self.is_vllm:
            return JSONResponse({"object": "list", "data": [{"id": "gpt", "object": "model"}]})
        base = {
            "id": self.base,
            "object": "model",
            "root": self.base,
            "parent": None,
            "max_model_len": self.context,
        }
        cards = [
            {"id": name, "object": "model", "root": path, "parent": self.base, "max_model_len": None}
            for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": [base, *cards]})

    async def _load(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.said.append(("load", name))
        assert body["load_inplace"] is False
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                              "place, set 'load_inplace' to True.")  # fmt: skip
        if not self.has_lora:
            return error(500, "LoRA is not enabled. Use --enable-lora to enable LoRA.")
        await until(lambda: not self.load_hangs, patience=600)
        if self.load_refusal:
            return error(self.load_status, self.load_refusal)
        if not await asyncio.to_thread(Path(path).is_dir):
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        if (rank := await asyncio.to_thread(_rank, Path(path))) > self.max_rank:
            return error(500, f"Call to add_lora method failed: LoRA rank {rank} is greater than max_lora_rank "
                              f"{self.max_rank}.")  # fmt: skip
        try:
            await self.truth.load(_number(path), Path(path))
        except HoneError as refusal:
            return error(500, refusal.message)
        self.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        name = (await request.json())["lora_name"]
        self.said.append(("unload", name))
        if self.unload_refusal and name in self.adapters:
            return error(500, self.unload_refusal)
        if self.adapters.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: Request) -> Response:
        await self._answers()
        if refused := self._refused(request):
            return refused
        body = await request.json()
        is_greeting = body.get("ignore_eos") or (body.get("model") == self.base and not body.get("stream"))
        self.said.append(("greet" if is_greeting else "draw" if body.get("stream") else "score", body))
        if not is_greeting and self.full:
            return error(self.full, "The queue is full.")
        if not is_greeting and self.failures:
            return error(self.failures.pop(0), "EngineCore encountered an issue.")
        assert body.keys() <= FIELDS, body.keys() - FIELDS
        if body["model"] != self.base and body["model"] not in self.adapters:
            self.unknown += 1
            return error(404, f"The model `{body['model']}` does not exist.")
        version = 0 if body["model"] == self.base else _number(self.adapters[body["model"]])
        if len(body["prompt"]) + body["max_tokens"] > self.context:
            return error(400, f"This model's maximum context length is {self.context} tokens.")
        if body["temperature"] > 2:
            return error(400, f"temperature must be in [0, 2], got {body['temperature']}.")
        if body.get("n", 1) > 1 and body["temperature"] == 0:
            return error(400, f"n must be 1 when using greedy sampling, got {body['n']}.")
        if self.drains:
            if body.get("stream"):
                return PlainTextResponse("data: [DONE]\n\n", media_type="text/event-stream")
            given_up = {"index": 0, "text": "", "finish_reason": "abort", "prompt_logprobs": None}
            return JSONResponse({"choices": [given_up]})
        if not body.get("stream"):
            await until(lambda: is_greeting or not self.score_hangs, patience=600)
            return await self._score(version, body["prompt"])
        assert body["return_tokens_as_token_ids"]
        # The truth stops by itself; the real server would stop at nothing that it was not told.
        assert is_greeting or set(body["stop_token_ids"]) >= self.truth.base.renderer.stop_ids
        return StreamingResponse(self._stream(version, body), media_type="text/event-stream")

    async def _score(self, version: int, ids: list[int]) -> Response:
        self.scoring += 1
        self.most_scoring = max(self.most_scoring, self.scoring)
        await asyncio.sleep(self.pause)
        values = await self.truth.logprobs(version, Prompt(tuple(ids[:1])), tuple(ids[1:]))
        self.scoring -= 1
        told = [
            {
                str(i): {
                    "logprob": value + (self.off_by if version else self.base_off_by),
                    "rank": 1,
                    "decoded_token": "x",
                }
            }
            for i, value in zip(ids[1:], values, strict=True)
        ]
        rows = [None, *told]
        return JSONResponse(
            {"choices": [{"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": rows}]}
        )

    async def _stream(self, version: int, body: dict[str, Any]) -> AsyncIterator[bytes]:
        events = 0
        whole = False
        is_drawing = "top_p" in body
        try:
            async with aclosing(cast(Any, self._drawn(version, body))) as deltas:
                async for delta in deltas:
                    if events == self.cut_after and is_drawing:
                        raise ConnectionAbortedError("the server died")
                    if events == self.stall_after and is_drawing:
                        await asyncio.sleep(600)
                    if self.ends_after and events == self.ends_after[0] and is_drawing:
                        yield self.ends_after[1]
                        break
                    await self._answers()
                    await asyncio.sleep(self.pause)
                    yield event({"object": "text_completion", "choices": [self._choice(delta, body)]})
                    events += 1
            whole = True
            if self.counts_tokens:
                yield event({"object": "text_completion", "choices": [], "usage": {"total_tokens": 1}})
            yield b"data: [DONE]\n\n"
        finally:
            self.cancelled += not whole

    async def _drawn(self, version: int, body: dict[str, Any]) -> AsyncIterator[Delta]:
        """The truth's deltas, each reply ended by the ids that the request names, so many tokens at a time."""
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            top_k=body.get("top_k", 0),
            max_tokens=body["max_tokens"],
            seed=body["seed"],
            top_logprobs=body["logprobs"],
        )
        stops = set(body.get("stop_token_ids", ()))
        going_on = set(range(body.get("n", 1)))
        kept: dict[int, list[Delta]] = {}
        stream = self.truth.generate(Prompt(tuple(body["prompt"])), sampling, version, len(going_on))
        async with aclosing(cast(Any, stream)) as deltas:
            async for delta in deltas:
                if delta.index not in going_on:
                    continue
                held = kept.setdefault(delta.index, [])
                held.append(ended(delta, stops))
                if held[-1].finish_reason or sum(len(one.token_ids) for one in held) >= self.burst:
                    yield joined(kept.pop(delta.index))
                if held[-1].finish_reason:
                    going_on.discard(delta.index)
                if not going_on:
                    return

    def _choice(self, delta: Delta, body: dict[str, Any]) -> dict[str, Any]:
        values = [self._reported(value, body["temperature"]) for value in delta.logprobs]
        tops = delta.top_logprobs or ((),) * len(values)
        return {
            "index": delta.index,
            "text": delta.text + SEPARATOR,
            "finish_reason": delta.finish_reason and str(delta.finish_reason),
            "stop_reason": None,
            "logprobs": {
                "tokens": [f"token_id:{i}" for i in delta.token_ids],
                "token_logprobs": values,
                # The chosen one always, then the likeliest ones.
                "top_logprobs": [
                    {f"token_id:{i}": value} | {f"token_id:{top.token_id}": top.logprob for top in row}
                    for i, value, row in zip(delta.token_ids, values, tops, strict=True)
                ],
                "text_offset": [0] * len(values),
            },
        }

    def _reported(self, value: float, temperature: float) -> float:
        if self.logprobs == "processed_logprobs":
            return value / max(temperature, 1e-3)
        return value + 20 if self.logprobs == "raw_logits" else value

    def _refused(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        return None


def ended(delta: Delta, stops: set[int]) -> Delta:
    """A delta up to the first id that ends a reply."""
    for at, token_id in enumerate(delta.token_ids, 1):
        if token_id in stops:
            return replace(
                delta, token_ids=delta.token_ids[:at], logprobs=delta.logprobs[:at],
                top_logprobs=delta.top_logprobs[:at], finish_reason=FinishReason.STOP,
            )  # fmt: skip
    return delta


def joined(deltas: list[Delta]) -> Delta:
    """Several deltas of one reply as one."""
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(i for delta in deltas for i in delta.token_ids),
        logprobs=tuple(value for delta in deltas for value in delta.logprobs),
        top_logprobs=tuple(row for delta in deltas for row in delta.top_logprobs),
    )


def event(data: dict[str, Any]) -> bytes:
    """As vLLM writes server-sent events: all characters as they are."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def failure(code: int, kind: str = "InternalServerError") -> bytes:
    """What vLLM sends when something goes wrong in a stream, whose status has long been 200."""
    told = {"message": "EngineCore encountered an issue.", "type": kind, "param": None, "code": code}
    return event({"error": told})


ABORTED = event(
    {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "abort", "stop_reason": None}]}
)
"""How a reply ends that vLLM itself gave up."""


def engine_over(
    *servers: FakeVllm,
    key: str = "",
    adapters: AdaptersSeen | None = None,
    max_running: int = 8,
    max_waiting: int = 64,
) -> VllmEngine:
    """The engine under test, as `vllm_engine` makes it of the settings."""
    return VllmEngine(
        [Replica(server.url, key=key) for server in servers],
        Renderer(byte_tokenizer(), context=servers[0].truth.base.context),
        base_id="tiny-llama",
        adapters=adapters or AdaptersSeen(Path("/"), ""),
        max_running=max_running,
        max_waiting=max_waiting,
    )


@asynccontextmanager
async def over(*servers: FakeVllm, **options: Any) -> AsyncIterator[VllmEngine]:
    """An engine whose every server has been looked at; it stops where the truth does."""
    engine = engine_over(*servers, **options)
    engine.renderer.stop_ids = servers[0].truth.base.renderer.stop_ids
    for member in engine._fleet.members:
        await member.seen.wait()
    try:
        yield engine
    finally:
        await engine.close()


async def until(what: Callable[[], object], *, patience: float = 10) -> None:
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def _rank(folder: Path) -> int:
    config = folder / "adapter_config.json"
    return int(json.loads(config.read_text())["r"]) if config.is_file() else 0


_numbers: dict[str, int] = {}


def _number(path: str) -> int:
    """The truth holds each folder once, whatever the servers call it."""
    return _numbers.setdefault(path, 1000 + len(_numbers))


def bound(port: int) -> socket.socket:
    """A port that is kept from others. Until something listens on it, connections are refused."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def error(status: int, message: str) -> Response:
    """As vLLM words its refusals."""
    return JSONResponse(
        {"error": {"message": message, "type": "Error", "param": None, "code": status}}, status_code=status
    )
