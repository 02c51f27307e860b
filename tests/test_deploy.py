"""What starts vLLM for Hone, as it is written: the flags that docs/vllm.md asks for, ports, and times to end in."""

import re
import subprocess
from itertools import pairwise
from typing import Any

import pytest
import yaml

from server.cli.listener import LAST_WORDS_SECONDS
from server.settings import Settings
from tests.running import ROOT

SITUATIONAL = {"--model", "--dtype", "--max-model-len", "--max-num-seqs", "--api-key"}
"""Flags that the page explains and that not every start needs."""


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.vllm.yaml").read_text())
    services: dict[str, Any] = read["services"]
    return services


def servers() -> list[dict[str, Any]]:
    return [service for name, service in compose().items() if name.startswith("vllm")]


def made() -> str:
    """What `make serve-vllm` would run."""
    done = subprocess.run(
        ["make", "--dry-run", "serve-vllm"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def flags(words: str) -> dict[str, str]:
    """Each flag with its value; a switch has none."""
    tokens = [*re.split(r"[\s=]+", words), "--"]
    return {
        name: "" if value.startswith("--") else value
        for name, value in pairwise(tokens)
        if name.startswith("--")
    }


def asked_for() -> dict[str, str]:
    """The first column of the page's table."""
    page = (ROOT / "docs" / "vllm.md").read_text()
    found: dict[str, str] = {}
    for row in re.findall(r"^\| `(--[^`]+)`", page, re.MULTILINE):
        found |= flags(row)
    return {name: value for name, value in found.items() if name not in SITUATIONAL}


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_the_page_names_flags() -> None:
    assert {"--enable-lora", "--max-loras", "--logprobs-mode", "--generation-config"} <= asked_for().keys()


@pytest.mark.parametrize("start", ["compose", "make"])
def test_whoever_starts_vllm_gives_it_what_the_page_asks_for(start: str) -> None:
    words = [made()] if start == "make" else ["\n".join(server["command"]) for server in servers()]
    for line in words:
        given = flags(line.replace("\\\n", " "))
        for name, value in asked_for().items():
            assert name in given
            assert not value or given[name] == value
        assert int(given["--max-loras"]) >= Settings().keep_resident + 2
        assert int(given["--max-cpu-loras"]) >= int(given["--max-loras"])


def test_adapters_can_be_loaded_at_run_time() -> None:
    assert {server["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] for server in servers()} == {"True"}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in made()


def test_what_is_stopped_has_time_to_end_what_it_writes() -> None:
    """Docker kills after ten seconds unless told otherwise; Hone lets replies go on for longer than that."""
    hone = seconds(compose()["hone"]["stop_grace_period"])
    assert hone > Settings().grace_seconds + LAST_WORDS_SECONDS
    for server in servers():
        drain = int(flags("\n".join(server["command"]))["--shutdown-timeout"])
        assert hone < drain < seconds(server["stop_grace_period"])


def test_hone_sends_a_server_as_much_as_it_writes_at_once() -> None:
    sent = compose()["hone"]["environment"]["HONE_MAX_RUNNING"]
    assert {flags("\n".join(server["command"]))["--max-num-seqs"] for server in servers()} == {sent}


def test_vllm_and_hone_on_one_machine_do_not_want_the_same_port() -> None:
    (port,) = re.findall(r"--port (\d+)", made())
    assert int(port) != Settings().port
    assert f"url=http://127.0.0.1:{port}" in made()


def test_what_compose_tells_hone_are_settings() -> None:
    told = compose()["hone"]["environment"]
    assert {name.removeprefix("HONE_").lower() for name in told} <= Settings.model_fields.keys()
    assert told["HONE_VLLM_URL"].split(",") == [f"http://{name}:8000" for name in compose() if "vllm" in name]
