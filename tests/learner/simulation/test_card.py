"""The demo model's card: its bars, its verdict on another measurement, and cards that cannot be read."""

import copy
from pathlib import Path
from typing import Any

import pytest

from learner.simulation.card import BARS, CARD, bar_of, below_bars, compare, read_figures, write_card
from server.errors import SetupError

GOOD: dict[str, Any] = {
    "replies": 2000,
    "temperature": 0.7,
    "on_topic": 0.98,
    "well_formed": 0.99,
    "acceptable": 0.96,
    "tokens_mean": 47.0,
    "styles": {"emoji": {"emoji": 0.07, "no emoji": 0.93}},
    "cramers_v_max": 0.12,
    "cramers_v_pair": "sentences x name",
    "recall": {"0": {"recalled": 0.88, "right": 1.0}, "4": {"recalled": 0.87, "right": 0.95}},
}


def having(figure: str, value: object) -> dict[str, Any]:
    """Good figures but for one."""
    figures = copy.deepcopy(GOOD)
    *path, last = figure.split(".")
    inner = figures
    for part in path:
        inner = inner[part]
    inner[last] = value
    return figures


def line(text: str, figure: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(f"{figure} "))


def written(folder: Path, figures: dict[str, Any]) -> str:
    write_card(
        folder,
        figures,
        recipe={"context": 512, "vocabulary": 4096},
        topics=["sleeping well"],
        parameters=2_400_000,
        seed=0,
        threads=2,
        seconds=4920,
        peak_bytes=2_340_000_000,
    )
    return (folder / CARD).read_text()


def test_a_card_that_misses_a_bar_does_not_hold_however_well_it_is_confirmed() -> None:
    """With 80 % on topic on the card and in the measurement, all held."""
    for figure, value in (
        ("on_topic", 0.8),
        ("well_formed", 0.94),
        ("recall.4.right", 0.89),
        ("styles.emoji.emoji", 0.04),
        ("cramers_v_max", 0.16),
    ):
        bad = having(figure, value)
        text, holds = compare(bad, bad)
        assert not holds
        assert line(text, figure).split()[-3:] == [*str(bar_of(figure)).split(), "NO"]
        assert [missed.split()[0] for missed in below_bars(bad)] == [figure]
    assert below_bars(GOOD) == []
    assert compare(GOOD, GOOD)[1]


def test_a_style_that_is_never_shown_misses_its_bar() -> None:
    assert below_bars(having("styles.emoji", {"emoji": 0.0, "no emoji": 1.0}))


def test_a_bar_without_a_figure_is_missed() -> None:
    for bar in BARS:
        name = bar.figure.split(".")[0]
        missing = {key: value for key, value in GOOD.items() if key != name}
        assert below_bars(missing) == [f"{bar.figure} not measured, must be {bar}"]
        assert not compare(GOOD, missing)[1]
        assert not compare(missing, GOOD)[1]


def test_chance_is_allowed_for_and_no_more() -> None:
    """Two measurements of one model differ; a figure just under its bar may be above it in truth."""
    edge = having("on_topic", 0.955)
    assert compare(edge, having("on_topic", 0.945))[1]
    assert not compare(edge, having("on_topic", 0.92))[1]
    assert not compare(GOOD, having("acceptable", 0.92))[1]
    assert compare(GOOD, having("cramers_v_max", 0.16))[1]
    assert not compare(GOOD, having("cramers_v_max", 0.2))[1]
    assert not compare(GOOD, having("tokens_mean", 60.0))[1]
    assert not compare(GOOD, having("temperature", 1.0))[1], "figures of another temperature say nothing"


def test_the_verdict_is_said_line_by_line() -> None:
    text, _ = compare(GOOD, having("on_topic", 0.97))
    assert text.splitlines()[0].split() == ["figure", "card", "now", "interval", "bar", "holds"]
    assert line(text, "on_topic").split() == ["on_topic", "0.98", "0.97", "0.955..0.980", ">=", "0.95", "yes"]
    assert line(text, "acceptable").split()[-1] == "yes"
    assert line(text, "styles.emoji.no emoji").endswith("yes")
    assert "sentences x name" in line(text, "cramers_v_pair")


def test_the_card_shows_bars_recalls_and_the_strongest_pair(tmp_path: Path) -> None:
    text = written(tmp_path, GOOD)
    assert read_figures(tmp_path) == GOOD
    assert "| on topic | 0.98 | >= 0.95 |" in text
    assert "| cramers v pair | sentences x name |" in text
    assert "| turns | recalled | right when tried |" in text
    assert "| 4 | 87.0% | 95.0% |" in text
    assert "82 minutes" in text
    assert "2.3 GB" in text


@pytest.mark.parametrize(
    "text",
    [
        "# A card without figures",
        "```json\nnot json\n```",
        "```json\n[1]\n```",
        '```json\n{"figures": [1]}\n```',
        '```json\n{"figures": {"on_topic": "good"}}\n```',
        '```json\n{"figures": {"on_topic": 98}}\n```',
    ],
)
def test_a_card_that_states_no_figures_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_text(text)
    with pytest.raises(SetupError, match=r"^the card .* states no figure"):
        read_figures(tmp_path)


def test_a_card_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^cannot read the card .*: No such file"):
        read_figures(tmp_path / "missing")
    (tmp_path / CARD).write_bytes(b"\xff\xfe")
    with pytest.raises(SetupError, match=r"^cannot read the card .*: not text"):
        read_figures(tmp_path)
