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
from pathlib import Path
from typing import Any, Self, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.engine.base import Delta, Prompt, Sampling
from server.engine.local import LocalEngine
from server.engine.replica import Replica
from server.engine.vllm import AdaptersSeen, VllmEngine
from server.errors import HoneError
from server.prompts import Renderer
from tests.fakes import byte_tokenizer

FIELDS = {
    "model", "prompt", "max_tokens", "n", "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop_token_ids", "logprobs", "prompt_logprobs", "stream",
    "return_tokens_as_token_ids",
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
    ) -> None:
        self.truth = truth
        self.key = key
        self.context = context or truth.base.context
        self.takes_adapters, self.has_lora, self.logprobs = takes_adapters, has_lora, logprobs
        self.base = "/models/tiny"
        self.adapters: dict[str, str] = {}
        self.said: list[tuple[str, Any]] = []
        """What it was asked for, in order: ("load", name), ("unload", name), ("draw", body), ("score", body)."""
        self.unknown = 0
        """Requests for a name that it does not hold."""
        self.cancelled = 0
        """Streams whose reader left before their end."""
        self.health = 200
        self.is_vllm = True
        self.failures: list[int] = []
        """Statuses with which the next completions fail."""
        self.cut_after: int | None = None
        """Events after which a stream breaks off."""
        self.stall_after: int | None = None
        """Events after which a stream falls silent."""
        self.pause = 0.0
        """Seconds between two events."""
        self._socket = bound(0)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
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
        return Response(status_code=self.health)

    async def _metrics(self, _: Request) -> Response:
        lora = "# TYPE vllm:lora_requests_info gauge\n" if self.has_lora else ""
        return PlainTextResponse(f"vllm:num_requests_running 0.0\n{lora}")

    async def _models(self, request: Request) -> Response:
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
        if not await asyncio.to_thread(Path(path).is_dir):
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
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
        if self.adapters.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        is_greeting = body.get("temperature") == 10 or (
            body.get("model") == self.base and not body.get("stream")
        )
        self.said.append(("greet" if is_greeting else "draw" if body.get("stream") else "score", body))
        if not is_greeting and self.failures:
            return error(self.failures.pop(0), "EngineCore encountered an issue.")
        assert body.keys() <= FIELDS, body.keys() - FIELDS
        if body["model"] != self.base and body["model"] not in self.adapters:
            self.unknown += 1
            return error(404, f"The model `{body['model']}` does not exist.")
        version = 0 if body["model"] == self.base else _number(self.adapters[body["model"]])
        if len(body["prompt"]) + body["max_tokens"] > self.context:
            return error(400, f"This model's maximum context length is {self.context} tokens.")
        if body.get("n", 1) > 1 and body["temperature"] == 0:
            return error(400, f"n must be 1 when using greedy sampling, got {body['n']}.")
        if not body.get("stream"):
            return await self._score(version, body["prompt"])
        assert body["return_tokens_as_token_ids"]
        return StreamingResponse(self._stream(version, body), media_type="text/event-stream")

    async def _score(self, version: int, ids: list[int]) -> Response:
        values = await self.truth.logprobs(version, Prompt(tuple(ids[:1])), tuple(ids[1:]))
        told = [
            {str(i): {"logprob": value, "rank": 1, "decoded_token": "x"}}
            for i, value in zip(ids[1:], values, strict=True)
        ]
        rows = [None, *told]
        return JSONResponse(
            {"choices": [{"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": rows}]}
        )

    async def _stream(self, version: int, body: dict[str, Any]) -> AsyncIterator[bytes]:
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            top_k=body.get("top_k", 0),
            max_tokens=body["max_tokens"],
            seed=body["seed"],
            top_logprobs=body["logprobs"],
        )
        stream = self.truth.generate(Prompt(tuple(body["prompt"])), sampling, version, body.get("n", 1))
        events = 0
        whole = False
        try:
            async with aclosing(cast(Any, stream)) as deltas:
                async for delta in deltas:
                    if events == self.cut_after and "top_p" in body:
                        raise ConnectionAbortedError("the server died")
                    if events == self.stall_after and "top_p" in body:
                        await asyncio.sleep(600)
                    await asyncio.sleep(self.pause)
                    event = {"object": "text_completion", "choices": [self._choice(delta, body)]}
                    yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
                    events += 1
            whole = True
            yield b"data: [DONE]\n\n"
        finally:
            self.cancelled += not whole

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
