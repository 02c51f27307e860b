"""What serving must reach, and whether the lines show it. Pure: lines of one code in, bars with their figures out.

A bar is judged by every figure that it names. Until all of them are there it does not hold yet; one that misses is
enough to say that it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

from tests.bench.serving.record import Line, is_measured
from tests.bench.serving.table import DASH, HOME, median, number

IN_MEMORY = "hone-in-memory"
TOKENS = 64
"""New tokens of the replies that the bars are about."""
SWAP_STREAMS, SWAP_MOVES, SOAK_MINUTES, RATE = 32, 100, 30, 200
FIRST_TOKEN_MS = {"S": 100, "M": 300}
MOST_GROWTH = 0.05
"""Of memory that is said not to grow: what an allocator may do by itself."""
EXACT = {"float32": ("rescore_max", 1e-3), "bfloat16": ("rescore_mean", 2e-2)}
"""By which figure a stored reply is judged when it is scored again, and how far it may lie off, in nats."""

Figure = float | None


class Bar(NamedTuple):
    """One thing that was asked for."""

    what: str
    limit: float
    values: Sequence[Figure]
    at_most: bool = False
    unit: str = "×"

    @property
    def asked(self) -> str:
        if self.at_most and not self.limit:
            return "none"
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}{self.unit}"

    @property
    def measured(self) -> str:
        if all(value is None for value in self.values):
            return "not measured"
        return " / ".join(DASH if value is None else shown(value) + self.unit for value in self.values)

    @property
    def holds(self) -> bool | None:
        """None: not all of it was measured."""
        known = [value for value in self.values if value is not None]
        if any(value > self.limit if self.at_most else value < self.limit for value in known):
            return False
        return True if known and len(known) == len(self.values) else None

    @property
    def verdict(self) -> str:
        if self.holds is not None:
            return "yes" if self.holds else "**no**"
        return DASH if all(value is None for value in self.values) else "not all measured"


# --- throughput --------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Lines of throughput of one model in one type."""

    lines: Sequence[Line]
    model: str
    dtype: str

    def figure(
        self,
        measure: str,
        streams: int,
        *,
        who: str = HOME,
        adapters: int = 0,
        prompt: int = 64,
    ) -> Figure:
        """The median over the repeats."""
        wanted = {
            "model": self.model,
            "dtype": self.dtype,
            "contestant": who,
            "adapters": adapters,
            "concurrency": streams,
            "prompt": prompt,
            "tokens": TOKENS,
        }
        return median((line for line in self.lines if _is(line, wanted)), measure)

    def beside(
        self,
        peer: str,
        streams: Iterable[int],
        *,
        measure: str = "tokens_per_cpu_second",
        adapters: int = 0,
        of_peer: int | None = None,
        prompt: int = 64,
    ) -> list[Figure]:
        """Hone's figure over the peer's, for each number of streams; `of_peer` are its adapters when not as many."""
        return [
            _over(
                self.figure(measure, many, adapters=adapters, prompt=prompt),
                self.figure(
                    measure,
                    many,
                    who=peer,
                    adapters=adapters if of_peer is None else of_peer,
                    prompt=prompt,
                ),
            )
            for many in streams
        ]

    def cost(self, adapters: int, streams: int) -> list[Figure]:
        """Percent of its own tokens per CPU second that so many adapters take."""
        measure = "tokens_per_cpu_second"
        share = _over(self.figure(measure, streams, adapters=adapters), self.figure(measure, streams))
        return [None if share is None else 100 * (1 - share)]


def throughput(lines: Sequence[Line]) -> list[Bar]:
    """Beside each peer, and what adapters cost."""
    main = Rows(lines, "M", "bfloat16")
    return [*_transformers(main), *_vllm(lines), *_llamacpp(main), *_adapters(main)]


def _transformers(main: Rows) -> list[Bar]:
    peer, where = "transformers", "M bfloat16, tokens/CPU-s ÷ transformers'"
    mixed = main.beside(peer, (4, 16), adapters=4, of_peer=0)
    waits = {many: main.beside(peer, [many], measure="ttft_p95_ms") for many in (4, 16)}
    return [
        Bar(f"{where}, 1 stream", 1.5, main.beside(peer, [1])),
        Bar(f"{where}, 4 / 16 streams", 2.2, main.beside(peer, (4, 16))),
        Bar(f"{where} base, 4 adapters mixed, 4 / 16 streams", 1.5, mixed),
        Bar(f"{where}, 32 streams, prompts of 256", 3.5, main.beside(peer, [32], prompt=256)),
        Bar("M bfloat16, TTFT p95 ÷ transformers', 4 streams", 1.0, waits[4], at_most=True),
        Bar("M bfloat16, TTFT p95 ÷ transformers', 16 streams", 0.65, waits[16], at_most=True),
        Bar(
            "M bfloat16, peak memory ÷ transformers', 1 / 4 / 16 streams",
            1.0,
            main.beside(peer, (1, 4, 16), measure="peak_mib"),
            at_most=True,
        ),
    ]


def _vllm(lines: Sequence[Line]) -> list[Bar]:
    bars = []
    for model, dtype in product(("S", "M"), ("float32", "bfloat16")):
        rows = Rows(lines, model, dtype)
        for adapters, limit, on in ((1, 2.0, "one adapter"), (0, 1.1, "the bare base")):
            what = f"{model} {dtype}, tokens/CPU-s ÷ vLLM's, {on}, 1 / 4 / 16 / 32 streams"
            bars.append(Bar(what, limit, rows.beside("vllm", (1, 4, 16, 32), adapters=adapters)))
    return bars


def _llamacpp(main: Rows) -> list[Bar]:
    what = "M bfloat16, tokens/CPU-s ÷ llama.cpp's"
    return [
        Bar(f"{what}, 16 streams", 1.3, main.beside("llamacpp", [16])),
        Bar(f"{what}, 1 stream", 0.7, main.beside("llamacpp", [1])),
    ]


def _adapters(main: Rows) -> list[Bar]:
    return [
        Bar(f"M bfloat16, cost of {what}", limit, main.cost(adapters, streams), at_most=True, unit=" %")
        for what, adapters, streams, limit in (
            ("one adapter, 16 streams", 1, 16, 15),
            ("one adapter, 1 stream", 1, 1, 25),
            ("four adapters mixed, 16 streams", 4, 16, 30),
        )
    ]


# --- the others --------------------------------------------------------------------------------------------


def swap(lines: Sequence[Line]) -> list[Bar]:
    """Promotions under load, in both types."""
    bars = []
    for model in ("S", "M"):
        runs = {
            dtype: _result(
                line
                for line in lines
                if _is(line, {"model": model, "dtype": dtype})
                and line["streams"] >= SWAP_STREAMS
                and line["moves"] >= SWAP_MOVES
            )
            for dtype in EXACT
        }

        def each(name: str, runs: dict[str, dict[str, Any]] = runs) -> list[Figure]:
            return [result.get(name) for result in runs.values()]

        around = [
            _over(result.get("moving_gap_p99_ms"), result.get("steady_gap_p99_ms"))
            for result in runs.values()
        ]
        off = [
            None if result.get(name) is None else result[name] / limit
            for (name, limit), result in zip(EXACT.values(), runs.values(), strict=True)
        ]
        where = f"{model} float32 / bfloat16, {SWAP_MOVES} moves under {SWAP_STREAMS} streams"
        first = each("disk_to_first_token_p50_ms")
        growth = [None if value is None else 100 * value for value in each("rss_growth")]
        bars += [
            Bar(f"{where}: promote to first token", FIRST_TOKEN_MS[model], first, at_most=True, unit=" ms"),
            Bar(f"{where}: p99 between tokens ÷ steady", 1.15, around, at_most=True),
            Bar(f"{where}: failed streams", 0, each("failed_streams"), at_most=True, unit=""),
            Bar(f"{where}: distance re-scored ÷ allowed", 1, off, at_most=True),
            Bar(f"{where}: memory grown", 100 * MOST_GROWTH, growth, at_most=True, unit=" %"),
        ]
    return bars


def overhead(lines: Sequence[Line]) -> list[Bar]:
    """What the API adds."""

    def figure(who: str, measure: str) -> Figure:
        here = [line for line in lines if _is(line, {"contestant": who, "rate": RATE})]
        return median((line for line in here if measure in line["result"]), measure)

    ours, theirs = (figure(who, "closed_per_second") for who in (HOME, "litellm"))
    at_rate = [
        Bar(
            f"added at {RATE} requests/s{where}, {quantile}",
            limit,
            [figure(who, f"added_{quantile}_ms")],
            at_most=True,
            unit=" ms",
        )
        for who, where in ((HOME, ""), (IN_MEMORY, " with the record in memory"))
        for quantile, limit in (("p50", 2), ("p99", 10))
    ]
    return [
        *at_rate,
        Bar("requests/s ÷ LiteLLM's", 4, [_over(ours, theirs)]),
        Bar("votes/s on disk", 1000, [figure(HOME, "votes_per_second")], unit=""),
    ]


def soak(lines: Sequence[Line]) -> list[Bar]:
    """Nothing left behind."""
    result = _result(line for line in lines if line["minutes"] >= SOAK_MINUTES)
    where = f"soak of {SOAK_MINUTES} minutes"
    grown, lacks = result.get("rss_growth"), result.get("lacks")
    return [
        Bar(f"{where}: errors", 0, [result.get("errors")], at_most=True, unit=""),
        Bar(
            f"{where}: things not as they must be",
            0,
            [None if lacks is None else len(lacks)],
            at_most=True,
            unit="",
        ),
        Bar(
            f"{where}: memory grown",
            100 * MOST_GROWTH,
            [None if grown is None else 100 * grown],
            at_most=True,
            unit=" %",
        ),
    ]


JUDGES: dict[str, Callable[[Sequence[Line]], list[Bar]]] = {
    "throughput": throughput,
    "swap": swap,
    "overhead": overhead,
    "soak": soak,
}


def shown(value: float) -> str:
    """A count as it is, anything else to three places or so."""
    return str(value) if isinstance(value, int) else number(value)


def _is(line: Line, wanted: dict[str, Any]) -> bool:
    return all(line[name] == value for name, value in wanted.items())


def _result(lines: Iterable[Line]) -> dict[str, Any]:
    """Of the newest line that has figures; empty when none has."""
    measured = [line["result"] for line in lines if is_measured(line)]
    return dict(measured[-1]) if measured else {}


def _over(ours: Figure, theirs: Figure) -> Figure:
    return None if ours is None or not theirs else ours / theirs
