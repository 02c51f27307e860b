"""How log lines look."""

import json
import logging
import sys

from server.logs import Json, Plain


def record(**ids: object) -> logging.LogRecord:
    made = logging.LogRecord("server.serving", logging.WARNING, __file__, 1, "cannot load %s", ("v13",), None)
    made.__dict__.update(ids)
    return made


def test_plain_lines_end_with_their_ids() -> None:
    line = Plain().format(record(version=13, segment="default"))
    assert line.endswith("WARNING server.serving: cannot load v13 (version=13 segment=default)")
    assert Plain().format(record()).endswith("cannot load v13")


def test_json_lines_are_one_object_with_ids_and_traceback() -> None:
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        failed = record(version=13)
        failed.exc_info = sys.exc_info()
    line = Json().format(failed)
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["version"] == 13
    assert parsed["message"] == "cannot load v13"
    assert "ValueError" in parsed["traceback"]


def test_fields_that_are_no_ids_stay_out() -> None:
    assert "secret" not in Json().format(record(text="secret"))
