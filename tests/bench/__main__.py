"""`python -m tests.bench`: how fast it answers and how many votes it keeps; medians of alternating runs here.

Figures that belong in the docs come from `tests.prove`; this is for seeing what a change did.
"""

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.flood import post_all
from tests.planting import QUESTIONS
from tests.prove.votes import throughput
from tests.running import RunningHone

ROUNDS = 3
CONCURRENT = (1, 4, 16)


def tokens_per_second(hone: RunningHone, clients: int) -> float:
    """Reply tokens a second over HTTP with so many clients at once, each asking again as soon as it is answered."""
    bodies = [
        {
            "model": "default",
            "messages": [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}],
            "max_tokens": 64,
            "seed": i,
        }
        for i in range(8 * clients)
    ]
    began = time.monotonic()
    flood = asyncio.run(post_all(hone.url, "/v1/chat/completions", bodies, key=hone.key, connections=clients))
    tokens = sum(got["usage"]["completion_tokens"] for _, got in flood.with_status(200))
    return tokens / (time.monotonic() - began)


def main() -> None:
    rates: dict[int, list[float]] = {clients: [] for clients in CONCURRENT}
    with tempfile.TemporaryDirectory() as folder, RunningHone(Path(folder)) as hone:
        for _ in range(ROUNDS):
            for clients in CONCURRENT:
                rates[clients].append(tokens_per_second(hone, clients))
    for clients, found in rates.items():
        print(f"{clients:>3} clients  {statistics.median(found):8.0f} tokens/s")
    with tempfile.TemporaryDirectory() as folder:
        print("votes", json.dumps(throughput(Path(folder), added_ms=0)))


if __name__ == "__main__":
    main()
