"""vLLM's ways of saying no, and what each of them means here.

Knows answers that have come, and sends nothing.
"""

from __future__ import annotations

import httpx

from server.errors import Busy, HoneError, Invalid, NotFound, Unavailable

AGAIN_SECONDS = 2.0
"""When a caller may try again after a replica was lost."""
FULL = frozenset({429, 503})
"""How a server says that its queue is full: 503 by its own bound, 429 by whatever stands before it."""
OWN_FAULTS = (
    (("lora is not enabled",), "it takes no adapters: start it with --enable-lora"),
    (("max_lora_rank",), "the adapter's rank is more than it takes: start it with a larger --max-lora-rank"),
    (("no free lora slots",), "every slot for adapters is in use: start it with a larger --max-loras"),
    (
        ("out of memory", "allocate memory", "outofmemory"),
        "it has no memory for another adapter: start it with a smaller --gpu-memory-utilization or --max-cpu-loras",
    ),
    (
        ("vllm_runtime_lora_allowed_path_prefixes", "allowed prefixes"),
        "it may not read adapters there: name their directory in its VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES",
    ),
    (("must exist and be accessible",), "it sees no adapter there (HONE_VLLM_ADAPTERS)"),
)
"""What a refusal to load says when the server is to blame, and how to mend that."""
ADAPTER_FAULTS = (
    "expected target modules",
    "unsupported lora weight",
    "does not yet support",
    "only supports modules_to_save",
    "missing required configuration fields",
)
"""… and when the adapter is. Anything else is not held against it: a rejection is for good."""


class Lost(Unavailable):
    """A replica could not be reached, or broke off.

    `reached`: it may have begun to work on the request. `silent`: it neither answered nor refused, it let time pass.
    """

    code = "engine_unavailable"

    def __init__(self, message: str, *, reached: bool, silent: bool = False) -> None:
        super().__init__(message, retry_after=AGAIN_SECONDS)
        self.reached, self.silent = reached, silent


class Lacks(NotFound):
    """A replica does not hold the name that was asked for."""

    code = "unknown_version"


def must_be_well(response: httpx.Response) -> httpx.Response:
    """An answer that says what was asked. Raises Lost, and Unavailable when the key is refused."""
    if response.status_code in (401, 403):
        raise Unavailable("it refuses the key (HONE_VLLM_KEY)")
    if not response.is_success:
        raise Lost(f"it answers {response.status_code}", reached=True)
    return response


def refusal(response: httpx.Response) -> HoneError:
    """Why a completion was refused, as an error of ours."""
    status, says = response.status_code, complaint(response)
    if status == 404:
        return Lacks(f"it does not know the name: {says}")
    if status in FULL:
        return Busy("vLLM is full", retry_after=AGAIN_SECONDS)
    if status in (401, 403):
        return Lost("it refuses the key (HONE_VLLM_KEY)", reached=False)
    if status >= 500:
        return Lost(f"it answers {status}: {says}", reached=True)
    return Invalid(f"vLLM refuses the request: {says}")


def complaint(response: httpx.Response) -> str:
    """What an answer says is wrong; newer servers wrap it in `error`."""
    try:
        body = response.json()
        found = body.get("error", body)
        return str(found.get("message") or found.get("detail") or body)
    except (ValueError, AttributeError):
        return response.text[:200]
