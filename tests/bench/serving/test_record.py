"""Which lines count, and which runs need not be made again."""

from pathlib import Path
from typing import Any

import pytest

from tests.bench.serving import record

CASE = {"contestant": "hone", "concurrency": 4, "repeat": 0}


def kept(folder: Path, result: dict[str, Any], code: str = "a", **case: Any) -> None:
    record.keep("throughput", CASE | case, result, code=code, folder=folder)


def done(folder: Path, code: str = "a", **case: Any) -> bool:
    return record.is_done(record.read("throughput", folder), CASE | case, code=code)


def test_a_measured_case_is_done_on_its_own_code_alone(tmp_path: Path) -> None:
    assert not done(tmp_path)
    kept(tmp_path, {"tokens": 1})
    assert done(tmp_path)
    assert not done(tmp_path, code="b")
    assert not done(tmp_path, repeat=1)
    assert not done(tmp_path, concurrency=1)


def test_what_broke_off_or_could_not_run_is_tried_again(tmp_path: Path) -> None:
    kept(tmp_path, {"error": "cut off"})
    kept(tmp_path, {"cannot": "not prepared"})
    assert not done(tmp_path)
    kept(tmp_path, {"tokens": 1})
    assert done(tmp_path)


def test_the_same_refusal_is_written_once(tmp_path: Path) -> None:
    for _ in range(3):
        kept(tmp_path, {"cannot": "not prepared"})
    kept(tmp_path, {"cannot": "other words"})
    kept(tmp_path, {"cannot": "other words"}, repeat=1)
    assert len(record.read("throughput", tmp_path)) == 3


def test_a_line_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "throughput", "--out", f"{record.ROOT}/build"])
    kept(tmp_path, {"tokens": 1})
    (line,) = record.read("throughput", tmp_path)
    assert line["command"] == "python -m tests.bench.serving throughput --out ./build"
    assert {"commit", "code", "threads", "machine", "at", "load"} <= line.keys()


def test_the_code_is_what_serves_and_how_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    before = record.fingerprint()
    monkeypatch.setattr(record, "METHOD", record.METHOD + 1)
    assert record.fingerprint() != before
