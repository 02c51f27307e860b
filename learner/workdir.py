"""A cycle's own folder: what each finished step left, so that a killed cycle goes on where it stopped.

Every file appears whole or not at all (written beside, synced, renamed). Holds token ids of users' prompts, so it
is removed when its cycle ends; what is published leaves it through `server.artifacts`. Knows no database.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from learner.dataset import Comparison, Dataset, Example, Outcome, PromptRow, Role, Thumb

PROCESS = secrets.token_hex(8)
"""This process, told from those before it: its id does not do, which in a container is the same for each of them."""
CYCLES, STARTS = "cycles", "starts.json"


class WorkDir:
    """`<data_dir>/cycles/<cycle_id>/`."""

    def __init__(self, root: Path, cycle_id: str) -> None:
        self.path = root / CYCLES / cycle_id

    def open(self) -> int:
        """Make the folder, and drop what a killed writer left half done.

        Returns how many processes, this one included, have begun the step at hand; those before it died in it.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self.path.glob("*.part"):
            leftover.unlink()
        finished = sorted(path.stem for path in self.path.glob("*.json") if path.name != STARTS)
        starts = self._read(STARTS) or {"finished": finished, "processes": []}
        if starts["finished"] != finished:  # only the last of them got as far as the step at hand
            starts = {"finished": finished, "processes": starts["processes"][-1:]}
        if PROCESS not in starts["processes"]:
            starts["processes"].append(PROCESS)
        self._write(STARTS, starts)
        return len(starts["processes"])

    def leave(self) -> None:
        """This process goes in good order: whoever comes next counts from the beginning."""
        (self.path / STARTS).unlink(missing_ok=True)

    def result(self, step: str) -> dict[str, Any] | None:
        """What `step` left when it finished; None when it has not."""
        found = self._read(f"{step}.json")
        assert found is None or isinstance(found, dict)
        return found

    def finish(self, step: str, result: Mapping[str, Any]) -> None:
        """Mark `step` as finished, with its result; its other files must be whole by now."""
        self._write(f"{step}.json", result)

    def folder(self, step: str) -> Path:
        """A folder for a step's own files."""
        path = self.path / step
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self) -> None:
        """The cycle has ended: nothing of it may linger."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: Any) -> None:
        with whole_file(self.path / name) as out:
            json.dump(content, out, indent=1, sort_keys=True)

    # --- the dataset, one line per row --------------------------------------------------------------------

    def save_dataset(self, dataset: Dataset) -> None:
        """Write the rows one by one; weights come back to the last bit."""
        with whole_file(self.path / "dataset.jsonl") as out:
            for row in _lines(dataset):
                out.write(json.dumps(row, separators=(",", ":")) + "\n")

    def load_dataset(self) -> Dataset:
        """The dataset that `save_dataset` wrote."""
        comparisons: list[Comparison] = []
        thumbs: list[Thumb] = []
        prompts: list[PromptRow] = []
        counts: dict[str, int] = {}
        with (self.path / "dataset.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                kind, *row = json.loads(line)
                if kind == "comparison":
                    prompt, first, second, outcome, user, role, weight, seq = row
                    asked = tuple(prompt)
                    one, other = Example(asked, tuple(first)), Example(asked, tuple(second))
                    comparisons.append(
                        Comparison(one, other, Outcome(outcome), user, Role(role), weight, seq)
                    )
                elif kind == "thumb":
                    prompt, response, up, user, role, weight, seq = row
                    example = Example(tuple(prompt), tuple(response))
                    thumbs.append(Thumb(example, up, user, Role(role), weight, seq))
                elif kind == "prompt":
                    ids, turn_id, user, role, weight = row
                    prompts.append(PromptRow(tuple(ids), turn_id, user, Role(role), weight))
                else:
                    counts = row[0]
        return Dataset(tuple(comparisons), tuple(thumbs), tuple(prompts), counts)


def sweep(root: Path, *, is_active: Callable[[str], bool]) -> None:
    """Remove the folders of all cycles but `is_active` ones: they hold what users wrote, and nobody needs them."""
    folders = [path for path in (root / CYCLES).glob("*") if path.is_dir()]
    # Asked after listing: a cycle has its row before its folder, and never comes back once it has ended.
    for folder in folders:
        if not is_active(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _lines(dataset: Dataset) -> Iterator[list[Any]]:
    for c in dataset.comparisons:
        yield [
            "comparison",
            c.first.prompt_ids,
            c.first.response_ids,
            c.second.response_ids,
            c.outcome,
            c.user,
            c.role,
            c.weight,
            c.seq,
        ]
    for t in dataset.thumbs:
        yield [
            "thumb",
            t.example.prompt_ids,
            t.example.response_ids,
            t.up,
            t.user,
            t.role,
            t.weight,
            t.seq,
        ]
    for p in dataset.prompts:
        yield ["prompt", p.token_ids, p.turn_id, p.user, p.role, p.weight]
    yield ["counts", dict(dataset.counts)]


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Write `path` so that a reader, and a kill at any moment, sees the old file or the whole new one."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        yield out
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
