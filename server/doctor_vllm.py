"""The doctor at the vLLM servers: whether each is well, serves the base, and can be given adapters.

It asks and changes nothing: no adapter is loaded and no reply drawn to find out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from server.doctor import Finding, Level
from server.doctor_record import count_champions
from server.engine.replica import OLDEST, Reach, release_of
from server.errors import SetupError
from server.settings import Settings

PATIENCE_SECONDS = 3.0
PAGE = "see docs/vllm.md"


def check_vllm(settings: Settings) -> Iterator[Finding]:
    """One row of findings for each server that the settings name."""
    if settings.engine != "vllm":
        return
    if not settings.vllm_urls:
        yield Finding(
            "vllm",
            Level.FAIL,
            "no vLLM server is named",
            "hone serve --engine vllm --vllm-url http://HOST:PORT",
        )
    key = settings.vllm_key.get_secret_value()
    for url in settings.vllm_urls:
        try:
            reach = Reach.of(url, key=key)
        except (SetupError, ValueError):
            yield Finding(
                "vllm", Level.FAIL, "HONE_VLLM_URL holds what is no address", f"http://HOST:PORT; {PAGE}"
            )
            continue
        try:
            with httpx.Client(
                base_url=reach.base_url,
                headers=reach.headers,
                verify=reach.verify,
                timeout=PATIENCE_SECONDS,
                trust_env=False,  # as the engine asks them: past any proxy
            ) as client:
                yield from _check_server(reach.name, client, settings)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            yield Finding(
                "vllm",
                Level.FAIL,
                f"{reach.name} does not answer ({type(error).__name__})",
                f"start it, or mend HONE_VLLM_URL; {PAGE}",
            )


def _check_server(place: str, client: httpx.Client, settings: Settings) -> Iterator[Finding]:
    health = client.get("/health")
    if health.status_code != 200:
        yield Finding(
            "vllm",
            Level.FAIL,
            f"{place} is not well ({health.status_code})",
            "its own log says why; restart it",
        )
        return
    listed = client.get("/v1/models")
    if listed.status_code in (401, 403):
        yield Finding(
            "vllm", Level.FAIL, f"{place} refuses the key", "set HONE_VLLM_KEY to what its --api-key is"
        )
        return
    release = release_of(client.get("/version").text)
    if release and release < OLDEST:
        yield Finding(
            "vllm",
            Level.FAIL,
            f"{place} is vLLM {release[0]}.{release[1]}: a load may push an adapter out from under a running reply",
            f"take {OLDEST[0]}.{OLDEST[1]} or later",
        )
    yield _base(place, listed, settings)
    yield _adapters(place, client, settings)


def _base(place: str, listed: httpx.Response, settings: Settings) -> Finding:
    """Names can be told apart, weights cannot: those are told by an adapter's probe when it is loaded."""
    try:
        cards: list[dict[str, Any]] = listed.json()["data"]
        base = next(card for card in cards if not card.get("parent"))
        named, context = {str(base["id"]), str(base.get("root"))}, int(base["max_model_len"])
    except (ValueError, KeyError, TypeError, StopIteration):
        return Finding(
            "vllm", Level.FAIL, f"{place} lists no base model: is it vLLM?", f"mend HONE_VLLM_URL; {PAGE}"
        )
    ours = Path(settings.model).name
    says = f"{place} is well and serves {base['id']}, {context} tokens of context"
    if ours in {Path(name).name for name in named}:
        return Finding("vllm", Level.OK, says)
    return Finding(
        "vllm",
        Level.WARN,
        f"{says}; here the base is {ours}",
        "fine when both are the same checkpoint; else start both with the same: --model",
    )


def _adapters(place: str, client: httpx.Client, settings: Settings) -> Finding:
    """A route that takes POST answers GET with 405; one that is not there, with 404."""
    if client.get("/v1/load_lora_adapter").status_code == 404:
        return Finding(
            "vllm adapters",
            Level.FAIL,
            f"{place} takes no adapters at run time",
            "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment",
        )
    numbers = client.get("/metrics")
    # The gauge is there exactly when LoRA is on. A server that keeps no numbers leaves it open.
    if "vllm:" in numbers.text and "vllm:lora_requests_info" not in numbers.text:
        return Finding(
            "vllm adapters",
            Level.FAIL,
            f"{place} was started without adapters",
            "start it with --enable-lora",
        )
    needed = settings.keep_resident + count_champions(settings) + 1
    told = re.search(r'vllm:lora_requests_info\{[^\n]*max_lora="(\d+)"', numbers.text)
    if told and int(told[1]) < needed:
        return Finding(
            "vllm adapters",
            Level.WARN,
            f"{place} has room for {told[1]} adapters in one batch; up to {needed} versions may be in use at once",
            f"start it with --max-loras {needed}, or lower HONE_KEEP_RESIDENT",
        )
    return Finding("vllm adapters", Level.OK, f"{place} takes adapters at run time")
