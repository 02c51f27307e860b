"""The demo model's card: what it is, how to make it again and what was measured. Text in, text out."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

CARD = "MODEL_CARD.md"
CRAMERS_V = 0.15
"""What any two axes of style may have to do with each other."""

_TEXT = """# The demo model

A small Llama-style chat model that Hone starts with. It was trained from scratch on dialogues made by
`learner/simulation`; no other data went into it, so there is nothing to license.

- **Make it again**: `{command}` (seed {seed}, {threads} threads; {minutes:.0f} minutes on {machine})
- **Measure it again**: `python -m learner pretrain --measure`
- **Size**: {parameters:,} parameters in bfloat16, context {context}, own byte-level BPE of {vocabulary} entries

It talks about {topic_count} everyday topics ({topics}), knows small talk, recalls what it was told, and
says kindly what it knows when asked for anything else. It holds every style on purpose: the learner moves it.
It is a demonstration: do not take advice from it.

## Figures

Over {replies} sampled replies (temperature {temperature}) to prompts whose names never occur in training, read by the
world's own parser.

| figure | value |
|---|---|
{rows}

## Styles of replies about a topic, and of answers to "what is my name?"

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
) -> None:
    recall = {f"recall after {n} turns, right when tried": v["right"] for n, v in figures["recall"].items()}
    plain = {key: value for key, value in figures.items() if isinstance(value, int | float)} | recall
    text = _TEXT.format(
        command=f"python -m learner pretrain --seed {seed} --threads {threads}",
        seed=seed,
        threads=threads,
        minutes=seconds / 60,
        machine=f"{threads} cores of {platform.machine()}",
        parameters=parameters,
        context=recipe["context"],
        vocabulary=recipe["vocabulary"],
        topic_count=len(topics),
        topics=", ".join(topics),
        replies=figures["replies"],
        temperature=figures["temperature"],
        rows="\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in plain.items()),
        styles="\n".join(
            f"| {axis} | {', '.join(f'{value} {share:.1%}' for value, share in shares.items())} |"
            for axis, shares in figures["styles"].items()
        ),
        figures=json.dumps(
            {"figures": figures, "recipe": recipe, "seed": seed, "seconds": round(seconds)}, indent=1
        ),
    )
    (out_dir / CARD).write_text(text, encoding="utf-8")


def compare(model_dir: Path, measured: dict[str, Any]) -> tuple[str, bool]:
    """The card's figures beside those just measured, one a line, and whether all hold.

    A share holds when the two differ by no more than chance may do once in a thousand measurements.
    """
    stated, again = _flat(read_figures(model_dir)), _flat(measured)
    rows, all_hold = [f"{'figure':<36} {'card':>10} {'measured':>10}"], True
    for name, value in again.items():
        holds = name in stated and _agree(name, stated[name], value, n=_replies(name, measured["replies"]))
        rows.append(f"{name:<36} {stated.get(name, '-')!s:>10} {value!s:>10}{'' if holds else '  differs'}")
        all_hold &= holds
    return "\n".join(rows), all_hold


def _agree(name: str, stated: float, measured: float, *, n: int) -> bool:
    if name in ("replies", "temperature"):
        return True
    if name == "tokens_mean":
        return abs(measured - stated) <= 0.1 * stated
    if name == "cramers_v_max":
        return measured <= CRAMERS_V
    share = (stated + measured) / 2
    return abs(measured - stated) <= 3.3 * math.sqrt(2 * share * (1 - share) / n) + 0.005


def _replies(name: str, replies: int) -> int:
    """How many replies a figure rests on, at least; styles are read from those about a topic, some from fewer."""
    return {"recall": replies // 10, "styles": replies // 4}.get(name.split(".")[0], replies)


def _flat(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures with one dotted name each."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def read_figures(model_dir: Path) -> dict[str, Any]:
    """The figures that the card states."""
    text = (model_dir / CARD).read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(text.split("```json\n")[1].split("```")[0])["figures"]
    return figures
