"""The engine's door: what the server may ask of anything that turns token ids into more token ids.

Knows nothing of conversations, users, segments or the store. Prompts arrive as token ids (rendered by
`server.prompts`), so that every engine sees the very same bytes. An adapter version is an argument of each
call, never state of the engine; version 0 is the bare base.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

NOTHING_PROMISED: Mapping[str, int] = MappingProxyType({})


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"
    """The policy ended its turn, or a stop string was met."""
    LENGTH = "length"
    """`max_tokens` or the context was used up."""
    CANCELLED = "cancelled"
    """The caller went away, or the server was stopped."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation: ids that end where the reply begins."""

    token_ids: tuple[int, ...]


Answered = tuple[Prompt, tuple[int, ...]]
"""A prompt and the ids of a response to it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw a reply. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 truncate nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0
    top_logprobs: int = 0
    """How many alternatives to report beside each chosen token."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at one position, under the raw policy."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one reply.

    `token_ids` are all the ids the policy chose (the end-of-turn id and the ids behind a stop string included),
    `logprobs` their log probabilities in nats under the raw policy: temperature 1, nothing truncated, so that
    they can be re-scored. `text` may lag behind the ids while a character or a possible stop string is
    incomplete. Exactly one delta per reply, its last, carries `finish_reason`.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None = None
    index: int = 0
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine holds right now."""

    ready: bool
    name: str
    versions: tuple[int, ...]
    running: int
    waiting: int
    detail: str = ""
    rows: int = 0
    """Replies that the decoder itself works on or holds back, by its own count; `running` is of promised places."""
    held_bytes: int = 0
    """Memory of its keys and values, those of finished replies included."""


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Which base weights and which template an engine answers with; adapters must be made for both."""

    base_id: str
    base_hash: str
    template_hash: str
    dtype: str = "float32"


class Engine(Protocol):
    """Turns prompts into replies, with the adapter version named in each call."""

    async def load(self, version: int, path: Path) -> None:
        """Hold the adapter in `path` under `version`. Raises AdapterRejected when it does not fit the base."""

    async def unload(self, version: int) -> None:
        """Let go of `version`. The caller has made sure that no reply still runs on it."""

    def must_admit(self, n: int, *, who: str = "", promised: Mapping[str, int] = NOTHING_PROMISED) -> None:
        """Refuse what `generate` would refuse now for `n` more replies: Busy when full, Unavailable when away.

        An engine with a queue also refuses a `who` that has its share of it: what is admitted is not refused for
        that later. `promised` are replies of each who that were admitted and have not yet asked. Takes no place and
        waits for nothing, so that a caller may ask before it writes anything down.
        """

    def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        """Stream `n` replies, told apart by `Delta.index`; reply i draws with seed `sampling.seed + i`.

        `who` is an opaque name; an engine with a queue serves one who after the other, not all of one first.
        Closing the iterator cancels within one step. Raises Busy when the queue is full, Unavailable when the engine
        is away, NotFound (code `unknown_version`) when `version` is not held.
        """

    async def logprobs(self, version: int, prompt: Prompt, response: tuple[int, ...]) -> tuple[float, ...]:
        """Raw-policy log probability of each response id, in nats."""

    async def score_many(self, version: int, items: Sequence[Answered]) -> list[tuple[float, ...]]:
        """`logprobs` of each item, in their order, as one piece of work that running replies hardly notice."""

    async def status(self) -> EngineStatus:
        """What is held and how busy it is; cheap enough to ask every second."""

    async def close(self) -> None:
        """Stop; running replies end as cancelled."""
