"""A chart of win rates as SVG, written by hand: the same figures give the same bytes. Legible in light and in dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Literal, NamedTuple

WIDTH, LEFT, RIGHT, TOP, ROW = 760, 220, 110, 58, 22
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.faint { fill: #59636e }
.grid { stroke: #d1d9e0 }
.bar { stroke: #0969da; stroke-dasharray: 5 4 }
.range { stroke: #59636e; stroke-width: 2 }
.dot { fill: #1a7f37 }
.low { fill: #cf222e }
.old { fill: #ffffff; stroke: #59636e; stroke-width: 2 }
.gold { stroke: #9a6700; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .faint { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .bar { stroke: #4493f8 }
  .range { stroke: #9198a1 }
  .dot { fill: #3fb950 }
  .low { fill: #f85149 }
  .old { fill: #0d1117; stroke: #9198a1 }
  .gold { stroke: #d29922 }
}
</style>"""


Dot = Literal["dot", "low", "old"]
"""It holds; it does not; it was measured in another way than the others."""


class Row(NamedTuple):
    """One case; `rate` is None where nothing was promoted, and `said` stands in its place."""

    name: str
    rate: float | None
    ci95: tuple[float, float] = (0.0, 0.0)
    gold: float | None = None
    dot: Dot = "dot"
    said: str = ""


def win_rates(title: str, rows: Sequence[Row], *, bar: float) -> str:
    """A dot with its interval for each row, a short line where PPO on the taste ends, a dashed one at `bar`."""
    low = min([0.4, *(int(10 * row.ci95[0]) / 10 for row in rows if row.rate is not None)])
    height = TOP + ROW * len(rows) + 20
    notes = ["dot: wins with 95 % interval", "dashed: the bar"]
    notes += ["upright: PPO on the taste itself"] if any(row.gold is not None for row in rows) else []
    notes += ["hollow: on all prompts, from older lines"] if any(row.dot == "old" for row in rows) else []
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(title)}">',
        STYLE,
        f'<text class="title" x="8" y="18">{escape(title)}</text>',
        f'<text class="faint" x="8" y="36">{" · ".join(notes)}</text>',
    ]

    def x(share: float) -> str:
        place = (min(max(share, low), 1.0) - low) / (1.0 - low)
        return f"{LEFT + place * (WIDTH - LEFT - RIGHT):.1f}"

    bottom = TOP + ROW * len(rows)
    for tenth in range(round(10 * low), 11):
        at = x(tenth / 10)
        parts.append(f'<line class="grid" x1="{at}" y1="{TOP - 6}" x2="{at}" y2="{bottom}"/>')
        parts.append(
            f'<text class="faint" x="{at}" y="{bottom + 13}" text-anchor="middle">{10 * tenth} %</text>'
        )
    parts.append(f'<line class="bar" x1="{x(bar)}" y1="{TOP - 6}" x2="{x(bar)}" y2="{bottom}"/>')
    for number, row in enumerate(rows):
        parts += _row(row, TOP + ROW * number + ROW // 2, x)
    return "\n".join([*parts, "</svg>", ""])


def _row(row: Row, y: int, x: Callable[[float], str]) -> list[str]:
    name = f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.name)}</text>'
    said = f"{100 * row.rate:.1f} %" if row.rate is not None else row.said
    label = f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{escape(said)}</text>'
    if row.rate is None:
        return [name, label]
    marks = [
        f'<line class="range" x1="{x(row.ci95[0])}" y1="{y}" x2="{x(row.ci95[1])}" y2="{y}"/>',
        f'<circle class="{row.dot}" cx="{x(row.rate)}" cy="{y}" r="5"/>',
    ]
    if row.gold is not None:
        marks.append(f'<line class="gold" x1="{x(row.gold)}" y1="{y - 8}" x2="{x(row.gold)}" y2="{y + 8}"/>')
    return [name, *marks, label]
