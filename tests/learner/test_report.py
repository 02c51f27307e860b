"""The report beside an adapter: plots that open, samples that cannot break out, the same bytes each time."""

from pathlib import Path
from xml.etree import ElementTree

from learner.report import PLOTS, samples_page, write_report

HISTORY = [
    {"step": float(i), "score": i / 10, "paid": i / 12, "kl": i / 5, "length": 30.0 - i, "entropy": 1.0}
    for i in range(1, 9)
]
CHECKPOINTS = [
    {"step": 4.0, "judge_gain": 0.3, "proxy_gain": 0.5},
    {"step": 8.0, "judge_gain": 0.2, "proxy_gain": 0.9},
]
SAMPLES = [("Hello!", "Hi.", "Hello, friend! 😊")]


def write(folder: Path) -> None:
    write_report(folder, history=HISTORY, checkpoints=CHECKPOINTS, chosen_step=4, samples=SAMPLES)


def test_every_plot_is_a_drawing(tmp_path: Path) -> None:
    write(tmp_path)
    found = {path.stem for path in (tmp_path / "plots").glob("*.svg")}
    assert found == {*PLOTS, "judge"}
    for path in (tmp_path / "plots").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_reply_is_shown_and_not_rendered() -> None:
    page = samples_page([("Hello!", "# Not a heading\n<script>alert(1)</script>", "")])
    assert "\n    # Not a heading\n    <script>alert(1)</script>\n" in page


def test_an_empty_history_still_reports(tmp_path: Path) -> None:
    write_report(tmp_path, history=[], checkpoints=[], chosen_step=0, samples=[])
    assert (tmp_path / "samples.md").read_text().startswith("# Samples")
