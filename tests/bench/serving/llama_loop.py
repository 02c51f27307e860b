"""Continuous batching over llama.cpp's `llama_decode`, for whoever writes jobs as lines of JSON on standard input.

    python -m tests.bench.serving.llama_loop --model FILE --slots 32 [--adapter FILE]

Runs in the peer's environment: needs llama-cpp-python and numpy, and nothing of Hone's. Greedy, and blind to ids that
end a turn. A client's next prompt enters the batch in the step after its last reply has ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BATCH = 512
"""Tokens of one step: as llama.cpp's own server has it by default for what it computes at once."""
CONTEXT_OF_SLOT = 512


class Entry(NamedTuple):
    """One token of a step, and whether the one behind it is wanted."""

    token: int
    position: int
    slot: int
    wanted: bool


Decode = Callable[[Sequence[Entry]], Sequence[int]]
"""One step: for each entry that is wanted, the likeliest next token."""


@dataclass
class Row:
    """One client's slot: its prompts one after the other, and how far the present one has come."""

    slot: int
    prompts: list[list[int]]
    asked: float
    unread: list[int] = field(default_factory=list)
    position: int = 0
    last: int = -1
    arrivals: list[float] = field(default_factory=list)


def work(
    decode: Decode,
    forget: Callable[[int], None],
    prompts: Sequence[Sequence[list[int]]],
    *,
    new_tokens: int,
    batch: int = BATCH,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Answer all prompts; for each when it was asked for and when each of its tokens came."""
    done: list[dict[str, Any]] = []
    rows = [Row(i, list(mine), clock()) for i, mine in enumerate(prompts) if mine]
    for row in rows:
        row.unread = list(row.prompts[0])
    while rows:
        entries = fill(rows, batch)
        found = iter(decode(entries))
        now = clock()
        by_slot = {row.slot: row for row in rows}
        for entry in entries:
            if not entry.wanted:
                continue
            row = by_slot[entry.slot]
            row.last = next(found)
            row.arrivals.append(now)
            if len(row.arrivals) == new_tokens:
                prompt = row.prompts.pop(0)
                done.append({"asked": row.asked, "arrivals": row.arrivals, "prompt_tokens": len(prompt)})
                forget(row.slot)
                row.position, row.last, row.asked, row.arrivals = 0, -1, now, []
                row.unread = list(row.prompts[0]) if row.prompts else []
        rows = [row for row in rows if row.prompts]
    return done


def fill(rows: Sequence[Row], batch: int) -> list[Entry]:
    """The tokens of the next step: one for each reply that is being written, then as much of prompts as has room."""
    entries = []
    for row in rows:
        if row.last >= 0:
            entries.append(Entry(row.last, row.position, row.slot, True))
            row.position += 1
    for row in rows:
        room = batch - len(entries)
        part, row.unread = row.unread[:room], row.unread[room:]
        for i, token in enumerate(part):
            is_last = not row.unread and i == len(part) - 1
            entries.append(Entry(token, row.position, row.slot, is_last))
            row.position += 1
    return entries


class LlamaCpp:
    """The binding: a model, a context with one sequence for each slot, and the two calls that `work` needs."""

    def __init__(self, model: str, *, slots: int, adapter: str | None) -> None:
        import llama_cpp
        import numpy as np

        self.api, self.np = llama_cpp, np
        llama_cpp.llama_backend_init()
        loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = slots * CONTEXT_OF_SLOT, slots
        options.n_batch = options.n_ubatch = BATCH
        options.n_threads = options.n_threads_batch = 1
        self.context = llama_cpp.llama_init_from_model(loaded, options)
        if not loaded or not self.context:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        if adapter:
            self._apply(loaded, adapter)

    def _apply(self, loaded: Any, adapter: str) -> None:
        """To the whole context: that is how llama.cpp has adapters."""
        import ctypes

        held = self.api.llama_adapter_lora_init(loaded, adapter.encode())
        if not held:
            raise RuntimeError(f"llama.cpp cannot load {adapter}")
        many = (self.api.llama_adapter_lora_p_ctypes * 1)(held)
        if self.api.llama_set_adapters_lora(self.context, many, 1, (ctypes.c_float * 1)(1.0)):
            raise RuntimeError("llama.cpp cannot apply the adapter")

    def decode(self, entries: Sequence[Entry]) -> list[int]:
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, slot, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = slot, wanted
        if code := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed: {code}")
        return [self._likeliest(i) for i, entry in enumerate(entries) if entry.wanted]

    def _likeliest(self, place: int) -> int:
        logits = self.api.llama_get_logits_ith(self.context, place)
        return int(self.np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())

    def forget(self, slot: int) -> None:
        self.api.llama_memory_seq_rm(self.memory, slot, -1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--adapter")
    options = parser.parse_args()
    held = LlamaCpp(options.model, slots=options.slots, adapter=options.adapter)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        done = work(held.decode, held.forget, job["prompts"], new_tokens=job["new_tokens"])
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
