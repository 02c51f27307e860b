"""The demo model's card: what it is, how to make it again, what was measured and what it must hold.

Text in, text out: knows nothing of tensors.
"""

from __future__ import annotations

import json
import math
import platform
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import SetupError

CARD = "MODEL_CARD.md"


class Bar(NamedTuple):
    """What a figure, or each that a pattern such as `styles.*` names, must reach or may not pass."""

    figure: str
    limit: float
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:.2f}"


BARS = (
    Bar("on_topic", 0.95),
    Bar("well_formed", 0.95),
    # When a name is said, it is the right one: at each distance.
    Bar("recall.*.right", 0.90),
    # A style that the model hardly ever shows cannot be learnt from picks.
    Bar("styles.*", 0.05),
    # Nor can one that comes with another.
    Bar("cramers_v_max", 0.15, at_most=True),
)
_Z = 3.3
"""Standard errors that chance passes once in a thousand measurements."""

_TEXT = """# The demo model

A small Llama-style chat model that Hone starts with. It was trained from scratch on dialogues made by
`learner/simulation`; no other data went into it, so there is nothing to license.

- **Make it again**: `{command}` (seed {seed}, {threads} threads; {minutes:.0f} minutes and
  {gigabytes:.1f} GB of memory at its peak, on {machine})
- **Measure it again**: `python -m learner pretrain --measure`
- **Size**: {parameters:,} parameters in bfloat16, context {context}, own byte-level BPE of {vocabulary} entries

It talks about {topic_count} everyday topics ({topics}), knows small talk, recalls what it was told, and
says kindly what it knows when asked for anything else. It holds every style on purpose: the learner moves it.
It is a demonstration: do not take advice from it.

## Figures

Over {replies} sampled replies (temperature {temperature}) to prompts whose names never occur in training, read by the
world's own parser.

| figure | value | must be |
|---|---|---|
{rows}

## Recall of a name, by the turns between its statement and the question

| turns | recalled | right when tried |
|---|---|---|
{recalls}

`recalled` is the share of questions in which the name was said at all; of the answers that say one,
`right when tried` (must be {recall_bar}) say the true one.

## Styles of replies about a topic, and of answers to "what is my name?"

Each value must have a share {style_bar}.

| axis | shares |
|---|---|
{styles}

## All of it for programs

```json
{figures}
```
"""


def write_card(
    out_dir: Path,
    figures: dict[str, Any],
    *,
    recipe: dict[str, Any],
    topics: list[str],
    parameters: int,
    seed: int,
    threads: int,
    seconds: float,
    peak_bytes: int,
) -> None:
    plain = {key: value for key, value in figures.items() if not isinstance(value, dict)}
    text = _TEXT.format(
        command=f"python -m learner pretrain --seed {seed} --threads {threads}",
        seed=seed,
        threads=threads,
        minutes=seconds / 60,
        gigabytes=peak_bytes / 1e9,
        machine=f"{threads} cores of {platform.machine()}",
        parameters=parameters,
        context=recipe["context"],
        vocabulary=recipe["vocabulary"],
        topic_count=len(topics),
        topics=", ".join(topics),
        replies=figures["replies"],
        temperature=figures["temperature"],
        rows="\n".join(
            f"| {key.replace('_', ' ')} | {value} | {bar_of(key) or ''} |" for key, value in plain.items()
        ),
        recalls="\n".join(
            f"| {turns} | {seen['recalled']:.1%} | {seen['right']:.1%} |"
            for turns, seen in figures["recall"].items()
        ),
        recall_bar=bar_of("recall.0.right"),
        style_bar=bar_of("styles.tone.warm"),
        styles="\n".join(
            f"| {axis} | {', '.join(f'{value} {share:.1%}' for value, share in shares.items())} |"
            for axis, shares in figures["styles"].items()
        ),
        figures=json.dumps(
            {
                "figures": figures,
                "recipe": recipe,
                "seed": seed,
                "threads": threads,
                "seconds": round(seconds),
                "peak_megabytes": round(peak_bytes / 1e6),
            },
            indent=1,
        ),
    )
    (out_dir / CARD).write_text(text, encoding="utf-8")


def bar_of(figure: str) -> Bar | None:
    return next((bar for bar in BARS if fnmatchcase(figure, bar.figure)), None)


def below_bars(figures: dict[str, Any]) -> list[str]:
    """The figures that miss their bar, each in a few words; a bar that no figure answers to is missed too."""
    flat = _flat(figures)
    missed = [
        f"{name} {value}, must be {bar}"
        for name, value in flat.items()
        if (bar := bar_of(name)) and not bar.is_met(value)
    ]
    silent = [bar for bar in BARS if not any(bar_of(name) is bar for name in flat)]
    return missed + [f"{bar.figure} not measured, must be {bar}" for bar in silent]


def compare(card: dict[str, Any], measured: dict[str, Any]) -> tuple[str, bool]:
    """The card's figures beside those just measured, one a line, and whether all hold.

    A figure holds when the two differ by no more than chance may do once in a thousand measurements, the card's
    meets its bar, and the one just measured meets it or has the bar within its interval.
    """
    stated, again = _flat(card), _flat(measured)
    rows, all_hold = [_row("figure", "card", "now", "interval", "bar", "holds")], True
    for name in again | stated:
        if name == "cramers_v_pair":  # words, not a figure
            rows.append(_row(name, stated.get(name, "-"), again.get(name, "-"), "", "", ""))
            continue
        low, high = _interval(name, again.get(name, math.nan), n=_replies(name, measured["replies"]))
        bar = bar_of(name)
        holds = (
            name in stated
            and name in again
            and _agree(name, stated[name], again[name], n=_replies(name, measured["replies"]))
            and (bar is None or (bar.is_met(stated[name]) and bar.is_met(low if bar.at_most else high)))
        )
        interval = f"{low:.3f}..{high:.3f}" if low < high else ""
        said = "yes" if holds else "NO"
        rows.append(_row(name, stated.get(name, "-"), again.get(name, "-"), interval, bar or "", said))
        all_hold &= holds
    return "\n".join(rows), all_hold


def _row(figure: str, card: object, now: object, interval: str, bar: object, holds: str) -> str:
    return f"{figure:<36} {card!s:>10} {now!s:>10}  {interval:<14} {bar!s:<8} {holds}".rstrip()


def _agree(name: str, stated: float, measured: float, *, n: int) -> bool:
    if name == "replies" or name == "cramers_v_max":  # of the latter the bar alone decides
        return True
    if name == "temperature":
        return measured == stated
    if name == "tokens_mean":
        return abs(measured - stated) <= 0.1 * stated
    share = (stated + measured) / 2
    return abs(measured - stated) <= _Z * math.sqrt(2 * share * (1 - share) / n) + 0.005


def _interval(name: str, value: float, *, n: int) -> tuple[float, float]:
    """Where the true figure may lie, given one measured on n replies."""
    if name in ("replies", "temperature", "tokens_mean"):
        return value, value
    if name == "cramers_v_max":
        # One pair's standard error is 1 / √n; the largest of many pairs varies by a third of that.
        return max(0.0, value - 0.5 / math.sqrt(n)), min(1.0, value + 0.5 / math.sqrt(n))
    # Wilson's score interval: sound near 0 and 1, where most of these shares lie.
    shrink = 1 + _Z**2 / n
    centre = (value + _Z**2 / (2 * n)) / shrink
    width = _Z * math.sqrt(value * (1 - value) / n + (_Z / (2 * n)) ** 2) / shrink
    return centre - width, centre + width


def _replies(name: str, replies: int) -> int:
    """How many replies a figure rests on, at least; styles are read from those about a topic, some from fewer."""
    parts = {"recall": replies // 10, "styles": replies // 4, "cramers_v_max": replies * 2 // 5}
    return max(1, parts.get(name.split(".")[0], replies))


def _flat(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures with one dotted name each."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def read_figures(model_dir: Path) -> dict[str, Any]:
    """The figures that the card states. Raises SetupError when there is no card, or none that can be read."""
    try:
        text = (model_dir / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SetupError(f"cannot read the card {model_dir / CARD}: {reason}") from error
    try:
        figures: dict[str, Any] = json.loads(text.split("```json\n")[1].split("```")[0])["figures"]
        wrong = [name for name, value in _flat(figures).items() if not _is_figure(name, value)]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SetupError(f"the card {model_dir / CARD} states no figures") from error
    if wrong:
        raise SetupError(f"the card {model_dir / CARD} states no figure as {wrong[0]}")
    return figures


def _is_figure(name: str, value: Any) -> bool:
    if name in ("tokens_mean", "replies", "temperature"):
        return isinstance(value, int | float)
    return name == "cramers_v_pair" or (isinstance(value, int | float) and not value < 0 and not value > 1)
