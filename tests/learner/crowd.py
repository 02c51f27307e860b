"""A tiny base model on disk and a crowd that plainly prefers one byte: enough votes for a real cycle of seconds."""

import random
from pathlib import Path

from server.modeling import load_base
from server.store import cycles
from tests.fakes import save_model
from tests.learner.record import Record, fresh_store

LIKED = 65
ENDED = 256


def prepare(folder: Path, *, users: int = 16, picks: int = 160, request: bool = True) -> None:
    """Model, record and, if wanted, a cycle asked for: copies of the folder then train with one and the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model")
    template = load_base(str(folder / "model")).renderer.template_hash
    store = fresh_store(folder)
    record, rng = Record(store, template_hash=template), random.Random(0)
    for n in range(picks):
        asked = [257, *(rng.randrange(97, 120) for _ in range(6)), ENDED, 259]
        first_is_liked = rng.random() < 0.5
        turn = record.turn(
            f"user{n % users}", asked, reply(rng, liked=first_is_liked), reply(rng, liked=not first_is_liked)
        )
        record.pick(turn, "first" if first_is_liked else "second")
    if request:
        store.write(lambda s: cycles.request_cycle(s, segment="default", by="operator"))
    store.close()


def reply(rng: random.Random, *, liked: bool) -> list[int]:
    return [LIKED if liked and rng.random() < 0.5 else rng.randrange(97, 120) for _ in range(8)] + [ENDED]
