"""An engine without a model: deterministic answers, for tests of the API and for measuring what the API itself costs.

Owns a byte-level tokenizer and a way of answering. Loads any folder that has a manifest or an adapter
configuration, without reading weights. Refuses torch and transformers, so that it starts at once.

A reply is made of words of the prompt, drawn by (seed, version): two candidates differ, the same call repeats.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.engine.base import (
    NOTHING_PROMISED,
    Answered,
    Delta,
    EngineStatus,
    FinishReason,
    Prompt,
    Sampling,
    TopLogprob,
)
from server.errors import AdapterRejected, Busy, NotFound, Unavailable
from server.prompts import Renderer

END = 256
"""The id that ends a turn; 0..255 are the bytes of UTF-8."""
SPECIALS = {END: "<|end|>", 257: "<|system|>", 258: "<|user|>", 259: "<|assistant|>"}
CONTEXT = 8192
OPENINGS = ("You said", "I heard", "So it is about", "Let us talk of", "Thank you for", "About")
CLOSINGS = (".", "!", ", I think.", ", is that right?", ", with pleasure.", " and more.")
MEMORY = 12
"""How many words of the prompt a reply gives back."""


class ByteTokenizer:
    """One id per byte, and the few special ones of a small chat template."""

    chat_template: Any = "{role}{content}{end}"
    eos_token_id: int | None = END

    def __init__(self) -> None:
        self.added_tokens_decoder: Mapping[int, Any] = dict(SPECIALS)
        self._ids = {text: i for i, text in SPECIALS.items()}
        self._splitter = re.compile("(" + "|".join(map(re.escape, SPECIALS.values())) + ")")

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        text = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in conversation)
        return text + "<|assistant|>" if options.get("add_generation_prompt") else text

    def encode(self, text: str, **options: Any) -> list[int]:
        if options.get("split_special_tokens"):
            return list(text.encode())
        ids: list[int] = []
        for part in self._splitter.split(text):
            ids += [self._ids[part]] if part in self._ids else list(part.encode())
        return ids

    def decode(self, token_ids: Any, **options: Any) -> str:
        names = {} if options.get("skip_special_tokens") else SPECIALS
        parts = [bytes([i]) if i < END else names.get(i, "").encode() for i in token_ids]
        return b"".join(parts).decode(errors="replace")

    def convert_ids_to_tokens(self, ids: int) -> str:
        return SPECIALS.get(ids) or f"<0x{ids:02X}>"

    def get_vocab(self) -> dict[str, int]:
        return {self.convert_ids_to_tokens(i): i for i in range(END)} | self._ids


def echo_renderer() -> Renderer:
    """The renderer that belongs to EchoEngine."""
    return Renderer(ByteTokenizer(), context=CONTEXT)


class EchoEngine:
    """Answers from the prompt's own words, `delay` seconds apart."""

    def __init__(self, *, delay: float = 0.0, max_open: int = 4096) -> None:
        self.delay = delay
        self.max_open = max_open
        self._versions: set[int] = {0}
        self._open = 0
        self._closed = False

    async def load(self, version: int, path: Path) -> None:
        """Hold `version`; the folder must at least look like an adapter."""
        known = ("manifest.json", "adapter_config.json")
        if not any((path / name).is_file() for name in known):
            raise AdapterRejected(f"{path.name} holds neither {' nor '.join(known)}")
        self._versions.add(version)

    async def unload(self, version: int) -> None:
        """Let go of `version`; the base stays."""
        if version:
            self._versions.discard(version)

    def must_admit(self, n: int, *, who: str = "", promised: Mapping[str, int] = NOTHING_PROMISED) -> None:
        """Raises Busy when `n` more replies would find no place, Unavailable when closed. Nobody waits here."""
        self._must_be_open()
        if self._open + n + sum(promised.values()) > self.max_open:
            raise Busy("all places are taken", retry_after=1.0)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, version: int, n: int = 1, *, who: str = ""
    ) -> AsyncIterator[Delta]:
        """Stream `n` replies word by word, interleaved."""
        self._must_hold(version)
        self.must_admit(n)
        self._open += n
        try:
            streams = [(i, self._deltas(prompt, sampling, version=version, index=i)) for i in range(n)]
            while streams:
                for index, stream in list(streams):
                    if self._closed:
                        yield Delta("", (), (), FinishReason.CANCELLED, index)
                        streams = [s for s in streams if s[0] != index]
                        continue
                    await asyncio.sleep(self.delay)
                    delta = next(stream)
                    yield delta
                    if delta.finish_reason:
                        streams = [s for s in streams if s[0] != index]
        finally:
            self._open -= n

    async def logprobs(self, version: int, prompt: Prompt, response: tuple[int, ...]) -> tuple[float, ...]:
        """The same made-up numbers that `generate` reported for these ids."""
        self._must_hold(version)
        return tuple(logprob(version, prompt.token_ids, response, at) for at in range(len(response)))

    async def score_many(self, version: int, items: Sequence[Answered]) -> list[tuple[float, ...]]:
        """`logprobs` of each item."""
        return [await self.logprobs(version, prompt, response) for prompt, response in items]

    async def status(self) -> EngineStatus:
        """Ready until closed."""
        return EngineStatus(
            ready=not self._closed,
            name="echo",
            versions=tuple(sorted(self._versions)),
            running=self._open,
            waiting=0,
            detail="closed" if self._closed else "",
        )

    async def close(self) -> None:
        """Running replies end as cancelled."""
        self._closed = True

    def _must_be_open(self) -> None:
        if self._closed:
            raise Unavailable("the engine is closed", code="engine_unavailable", retry_after=1.0)

    def _must_hold(self, version: int) -> None:
        self._must_be_open()
        if version not in self._versions:
            raise NotFound(f"version {version} is not held", code="unknown_version")

    def _deltas(self, prompt: Prompt, sampling: Sampling, *, version: int, index: int) -> Iterator[Delta]:
        seed = sampling.seed + index if sampling.temperature > 0 else 0
        text, met = _cut_at_stop(answer(prompt.token_ids, seed=seed, version=version), sampling.stop)
        response: list[int] = []
        for word in re.findall(r"\s*\S+", text):
            room = sampling.max_tokens - len(response)
            ids = list(word.encode())[:room]
            start = len(response)
            response += ids
            # A word that was cut may end in half a character, which is never sent.
            sent = bytes(ids).decode(errors="ignore")
            yield self._delta(
                prompt, sampling, response, start=start, text=sent, version=version, index=index
            )
            if len(response) == sampling.max_tokens:
                yield Delta("", (), (), FinishReason.LENGTH, index)
                return
        if met:
            yield Delta("", (), (), FinishReason.STOP, index)
            return
        response.append(END)
        last = self._delta(
            prompt, sampling, response, start=len(response) - 1, text="", version=version, index=index
        )
        yield Delta("", last.token_ids, last.logprobs, FinishReason.STOP, index, last.top_logprobs)

    def _delta(
        self,
        prompt: Prompt,
        sampling: Sampling,
        response: Sequence[int],
        *,
        start: int,
        text: str,
        version: int,
        index: int,
    ) -> Delta:
        places = range(start, len(response))
        values = tuple(logprob(version, prompt.token_ids, response, at) for at in places)
        tops = tuple(
            tuple(_alternative(response[at], k, value) for k in range(sampling.top_logprobs))
            for at, value in zip(places, values, strict=True)
        )
        ids = tuple(response[start:])
        return Delta(text, ids, values, None, index, tops if sampling.top_logprobs else ())


def answer(prompt_ids: Sequence[int], *, seed: int, version: int) -> str:
    """A short reply made of the last user message's words, different for each (seed, version)."""
    text = bytes(i if i < END else 0 for i in prompt_ids).decode(errors="replace")
    parts = [part for part in text.split("\0") if part.strip()]
    words = re.findall(r"\S+", parts[-1] if parts else "") or ["nothing"]
    draw = _draw("answer", version, seed)
    opening = OPENINGS[draw % len(OPENINGS)]
    closing = CLOSINGS[draw // 7 % len(CLOSINGS)]
    start = draw // 53 % len(words)
    said = [*words[start:], *words[:start]][:MEMORY]
    mark = f" [v{version}]" if version else ""
    return f"{opening} {' '.join(said)}{closing}{mark} #{draw % 9973}"


def logprob(version: int, prompt_ids: Sequence[int], response: Sequence[int], at: int) -> float:
    """A made-up log probability in [-2, 0), fixed by version, place and id, so that probes can tell versions apart."""
    # A plain sum: a hash for each id cost a tenth of a whole request.
    mixed = 7919 * version + 104_729 * len(prompt_ids) + 611_953 * at + 15_731 * response[at]
    return -2.0 * (mixed % 9999 + 1) / 10_000


def _alternative(token_id: int, k: int, value: float) -> TopLogprob:
    other = (token_id + k) % END if k else token_id
    return TopLogprob(other, value - 0.5 * k)


def _draw(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    places = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
