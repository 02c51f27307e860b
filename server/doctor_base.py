"""The doctor at the base: loaded and fitted as serving does it, to say which forward runs it and what it needs.

    load -> server.decoding.fit (each way is tried against the model's own forward) -> what was chosen, in words

Takes seconds and the base's memory; both are given back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from server.decoding import Fitted, affordable_tokens, bytes_per_token
from server.doctor import Finding, Level
from server.engine.machine import fitted_for
from server.errors import SetupError
from server.modeling import STRANGE, Base
from server.settings import Settings

KIB, GIB = 2**10, 2**30
ELSEWHERE = "serve another base (--model PATH_OR_NAME), or let vLLM run this one: docs/vllm.md"
SMALLER = "HONE_DTYPE=bfloat16 takes half, a smaller base less; vLLM servers take it elsewhere: docs/vllm.md"


class Heard(logging.Handler):
    """What fitting says of the ways that it could not take."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def check_base(settings: Settings) -> Iterator[Finding]:
    """The forward and the cache of the base that the settings name."""
    heard, ways = Heard(), logging.getLogger("server.decoding")
    ways.addHandler(heard)
    try:
        fitted = fitted_for(settings)
    except SetupError as error:
        yield Finding("forward", Level.FAIL, error.message, ELSEWHERE)
    except (MemoryError, *STRANGE) as error:
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error)
        says = "does not fit into memory" if is_full else "cannot be run"
        first = (str(error).splitlines() or [type(error).__name__])[0]
        yield Finding("forward", Level.FAIL, f"the base {says}: {first}", SMALLER if is_full else ELSEWHERE)
    else:
        yield forward(fitted, heard.lines)
        base = fitted.base
        affordable = affordable_tokens(base.model.config, base.dtype, base.device)
        yield cache(base, settings, affordable=affordable)
    finally:
        ways.removeHandler(heard)


def forward(fitted: Fitted, slower_because: list[str]) -> Finding:
    """What runs the base, on what, in which type; a warning when a faster way was tried and was not exact."""
    base = fitted.base
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if base.device.type == "cpu" else ""
    dtype = str(base.dtype).removeprefix("torch.")
    says = f"{fitted.trunk.name}: {base.model.config.model_type} in {dtype} on {base.device}{threads}"
    if slower_because:
        says = f"{says}; faster was tried: {'; '.join(slower_because)}"
        return Finding("forward", Level.WARN, says, "nothing must be mended: replies are exact, only slower")
    return Finding("forward", Level.OK, says)


def cache(base: Base, settings: Settings, *, affordable: int) -> Finding:
    """What keys and values may take; `affordable` tokens are half of what is free now that the weights are there."""
    each = bytes_per_token(base.model.config, base.dtype)
    tokens = settings.cache_tokens or affordable
    bound = (
        f"HONE_CACHE_TOKENS={tokens}" if settings.cache_tokens else f"half of the free memory holds {tokens}"
    )
    whole = min(tokens // base.context, settings.max_running)
    says = (
        f"keys and values take about {each / KIB:.1f} KiB a token; {bound}, {each * tokens / GIB:.2f} GiB: "
        f"{whole} of {settings.max_running} replies may use the whole context of {base.context}"
    )
    if tokens > 2 * affordable:
        mend = f"more than is free: HONE_CACHE_TOKENS={affordable} leaves half of it, 0 does that by itself"
        return Finding("cache", Level.WARN, says, mend)
    if not whole:
        return Finding("cache", Level.WARN, says, f"replies will wait for each other; {SMALLER}")
    return Finding("cache", Level.OK, says)
