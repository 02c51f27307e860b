"""Two folders are the same model when every file but the card is."""

from pathlib import Path

from learner.simulation.card import CARD
from tests.prove.demo_model import different


def folder(place: Path, **files: str) -> Path:
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    return place


def test_only_the_card_may_differ(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", **{"weights": "a", "words": "b", CARD: "70 minutes"})
    assert different(one, folder(tmp_path / "two", **{"weights": "a", "words": "b", CARD: "71"})) == []
    assert different(one, folder(tmp_path / "three", **{"weights": "c", "more": "b"})) == [
        "more",
        "weights",
        "words",
    ]
