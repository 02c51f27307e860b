"""One run with one outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """`run` gets an empty folder and returns figures; `holds` among them says whether the claim stood."""

    name: str
    seed: int
    run: Callable[[Path], dict[str, Any]]
