"""What a person looks at beside a new adapter: plots of its training and its answers to canary prompts.

Writes `plots/*.svg` and `samples.md` into a folder that will be published, so nothing in them comes from a user: the
prompts are Hone's own. The same run gives the same bytes (no dates, no random ids). Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learner.probe import CANARIES
from learner.rollout import generate
from server.modeling import Base, load_adapter, use_adapter

Row = Mapping[str, float]

PLOTS: dict[str, tuple[tuple[str, ...], str]] = {
    "score": (("score", "paid"), "score (sd of base replies)"),
    "kl": (("kl",), "nats per reply from the base"),
    "length": (("length",), "tokens per reply"),
    "entropy": (("entropy",), "nats per token"),
    "critic": (("explained_variance",), "explained variance"),
}
"""File name -> the columns drawn against the step, and what the axis says."""

SALT = "hone"
COLOURS = ("#2b6cb0", "#c05621")


def write_report(
    folder: Path,
    *,
    history: Sequence[Row],
    checkpoints: Sequence[Row],
    chosen_step: int,
    samples: Sequence[tuple[str, str, str]],
) -> None:
    """Write plots and samples into `folder`.

    `history`: one row per PPO step. `checkpoints`: the judge's table. `samples`: (canary, before, after).
    """
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name, (columns, label) in PLOTS.items():
        _draw(plots / f"{name}.svg", history, columns, label=label, mark=chosen_step)
    _draw(
        plots / "judge.svg",
        checkpoints,
        ("judge_gain", "proxy_gain"),
        label="gain over the champion (sd)",
        mark=chosen_step,
    )
    (folder / "samples.md").write_text(samples_page(samples), encoding="utf-8")


def canary_samples(
    base: Base, model: Any, *, before: Path | None, after: Path, seed: int, max_new_tokens: int
) -> list[tuple[str, str, str]]:
    """Each canary with a reply under the adapter in `before` (None: the bare base) and one under `after`, same seed.

    The adapters stay on `model` as `before` and `after`; one of them stays active.
    """
    room = base.context - max_new_tokens
    prompts = [
        base.renderer.render([{"role": "user", "content": text}], max_prompt_tokens=room).token_ids
        for text in CANARIES
    ]
    texts = []
    for name, folder in (("before", before), ("after", after)):
        held = load_adapter(model, name, folder) if folder else model
        use_adapter(held, name if folder else None, trainable=False)
        seeds = [seed + i for i in range(len(prompts))]
        replies = generate(base, prompts, seeds=seeds, max_new_tokens=max_new_tokens)
        texts.append([base.renderer.decode(response) for response in replies.responses])
    return list(zip(CANARIES, *texts, strict=True))


def samples_page(samples: Sequence[tuple[str, str, str]]) -> str:
    """Canary prompts with the reply before and after, as Markdown in which no reply can break out."""
    parts = ["# Samples\n\nHone's own canary prompts, one reply before and one after this cycle.\n"]
    for prompt, before, after in samples:
        parts.append(f"\n## {prompt}\n\nBefore:\n\n{_quoted(before)}\n\nAfter:\n\n{_quoted(after)}\n")
    return "".join(parts)


def _quoted(text: str) -> str:
    """Indented as code, so that whatever was generated is shown and not rendered."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _draw(path: Path, rows: Sequence[Row], columns: Sequence[str], *, label: str, mark: int) -> None:
    """One small plot; a column that no row has is left out."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for column, colour in zip(columns, COLOURS, strict=False):
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=column.replace("_", " "))
        axes.axvline(mark, color="#718096", linestyle=":", label="chosen")
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(str(path), metadata={"Date": None})
