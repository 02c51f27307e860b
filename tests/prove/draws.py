"""Replies of the bare demo model to unseen prompts, drawn once for all tastes and kept in `build/prove`.

They say which prompts a taste separates, whether a taste is fair, and what PPO on the taste itself is compared with.
Drawn in this process, by the decoder and at the sampling that the server uses; asked for again they are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from learner.simulation.scripts import Message, Script
from learner.simulation.seeds import stable_seed
from server.settings import DEMO_MODEL, Settings
from tests.running import ROOT

if TYPE_CHECKING:
    from server.modeling import Base

KEPT = ROOT / "build" / "prove"
SERVED = Settings.model_construct()
"""What a server does when nobody tells it otherwise."""
CHUNK = 200
"""Prompts whose draws are written down at a time: a proof that is killed loses no more."""
SLOTS = 64


class Drawn(NamedTuple):
    text: str
    tokens: int


class Draws:
    """Any number of replies to each prompt, from the file or made now."""

    def __init__(self, folder: Path = KEPT, model: Path = DEMO_MODEL) -> None:
        self._model = model
        self._path = folder / f"draws-{fingerprint(model)}.jsonl"
        self._kept: dict[str, list[Drawn]] = {}
        self._base: Base | None = None
        if self._path.exists():
            written = self._path.read_bytes()
            whole = written[: written.rfind(b"\n") + 1]
            if whole != written:  # killed while it wrote the last line
                self._path.write_bytes(whole)
            for line in whole.decode().split("\n")[:-1]:
                self._keep(json.loads(line))

    def of(self, prompts: Sequence[Script], count: int) -> list[list[Drawn]]:
        """`count` replies to each prompt; the first ones stay the same when more are asked for."""
        for start in range(0, len(prompts), CHUNK):
            some = {named(script): script for script in prompts[start : start + CHUNK]}
            lacking = {name: script for name, script in some.items() if len(self._have(name)) < count}
            if lacking:
                self._draw(lacking, count)
        return [self._have(named(script))[:count] for script in prompts]

    def _have(self, name: str) -> list[Drawn]:
        return self._kept.get(name, [])

    def _keep(self, row: dict[str, object]) -> None:
        """A row that does not go on where its prompt's replies end is another process's copy of what is there."""
        replies = self._kept.setdefault(str(row["prompt"]), [])
        if row["from"] == len(replies):
            replies += [Drawn(*reply) for reply in row["replies"]]  # type: ignore[attr-defined]

    def _draw(self, lacking: dict[str, Script], count: int) -> None:
        from server.modeling import load_base

        self._base = self._base or load_base(str(self._model))
        places = [(name, i) for name in lacking for i in range(len(self._have(name)), count)]
        made = answer(
            self._base,
            [lacking[name].messages for name, _ in places],
            seeds=[stable_seed("draws", name, i) for name, i in places],
        )
        rows: dict[str, list[Drawn]] = {}
        for (name, _), reply in zip(places, made, strict=True):
            rows.setdefault(name, []).append(reply)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as out:
            for name, replies in rows.items():
                row = {"prompt": name, "from": len(self._have(name)), "replies": replies}
                out.write(json.dumps(row) + "\n")
                self._keep(row)


def answer(base: Base, prompts: Sequence[Sequence[Message]], *, seeds: Sequence[int]) -> list[Drawn]:
    """One reply to each, under whatever adapter is active, as the server would draw it."""
    import torch

    from server.decoding import Decoder, DecodeRequest, Sampling, generate_offline

    requests = []
    for i, (messages, seed) in enumerate(zip(prompts, seeds, strict=True)):
        ids = base.renderer.render(messages, max_prompt_tokens=base.context - SERVED.max_tokens).token_ids
        sampling = Sampling(
            temperature=SERVED.temperature,
            max_tokens=min(SERVED.max_tokens, base.context - len(ids)),
            stop=base.renderer.stop_strings,
            seed=seed,
        )
        requests.append(DecodeRequest(i, ids, sampling))
    with torch.no_grad():
        done = generate_offline(Decoder(base, slots=SLOTS), requests)
    return [Drawn(reply.text, len(reply.token_ids)) for reply in done]


def named(script: Script) -> str:
    """A prompt by its words."""
    return hashlib.sha256(json.dumps(script.messages).encode()).hexdigest()[:16]


def fingerprint(model: Path) -> str:
    """Of everything that decides what is drawn: the model's files and the sampling."""
    digest = hashlib.sha256(f"{SERVED.temperature} {SERVED.max_tokens}".encode())
    for path in sorted(model.glob("*")):
        if path.is_file() and path.suffix != ".md":
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
