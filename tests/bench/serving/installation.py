"""An installation of Hone for a model and its adapters: a data directory with versions, made once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.bench.serving import shapes
from tests.bench.serving.shapes import Shape
from tests.prove import lines
from tests.running import RunningHone


def installed(shape: Shape, adapters: int, folder: Path) -> Path:
    """A data directory in `folder`, its versions 1 to `adapters` published and none of them promoted."""
    # By the code too: a record of another day's schema would be refused.
    kept = shapes.CACHE / "installations" / f"{shape.name}-{adapters}-{lines.fingerprint()}"
    if not kept.exists():
        draft = kept.with_name(kept.name + ".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        RunningHone(draft).cli("db", "upgrade")
        if adapters:
            from tests.planting import plant_folders

            folders = shapes.adapters(shape, adapters)
            found = plant_folders(draft, folders, model=str(shapes.made(shape)))
            assert found == [*range(1, adapters + 1)], found
        draft.rename(kept)
    shutil.copytree(kept, folder)
    return folder
