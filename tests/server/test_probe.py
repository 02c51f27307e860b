"""Whether what an engine holds is what was trained."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from server.errors import AdapterRejected
from server.probe import Probe

ROW = {"prompt_ids": [1, 2], "response_ids": [3, 4], "logprobs": [-1.0, -2.0], "base_logprobs": [-1.5, -2.5]}


def written(tmp_path: Path, *rows: dict[str, Any], dtype: str = "float32") -> Path:
    (tmp_path / "probe.json").write_text(json.dumps({"prompts": list(rows), "dtype": dtype}))
    return tmp_path


def test_the_same_numbers_pass(tmp_path: Path) -> None:
    found = Probe.read(written(tmp_path, ROW)).judge([[-1.0, -2.0]])
    assert "0.500 nats from the base" in found


@pytest.mark.parametrize("scored", [[-1.0, -2.002], [-1.5, -2.5], [-1.0, math.nan]])
def test_other_numbers_are_refused(tmp_path: Path, scored: list[float]) -> None:
    with pytest.raises(AdapterRejected) as caught:
        Probe.read(written(tmp_path, ROW)).judge([scored])
    assert caught.value.code == "probe_mismatch"


def test_half_precision_may_lie_further_off(tmp_path: Path) -> None:
    probe = Probe.read(written(tmp_path, ROW))
    probe.judge([[-1.01, -2.01]], dtype="bfloat16")
    with pytest.raises(AdapterRejected):
        probe.judge([[-1.01, -2.01]], dtype="float32")
    with pytest.raises(AdapterRejected):
        probe.judge([[-1.1, -2.1]], dtype="bfloat16")


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    same = ROW | {"base_logprobs": ROW["logprobs"]}
    with pytest.raises(AdapterRejected) as caught:
        Probe.read(written(tmp_path, same)).judge([[-1.0, -2.0]])
    assert caught.value.code == "probe_like_base"


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        '{"prompts": []}',
        json.dumps({"prompts": [ROW | {"response_ids": [], "logprobs": [], "base_logprobs": []}]}),
        json.dumps({"prompts": [ROW | {"logprobs": [-1.0]}]}),
        json.dumps({"prompts": [{"prompt_ids": [1]}]}),
    ],
)
def test_a_probe_that_cannot_be_read_refuses_its_adapter(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "probe.json").write_text(content)
    with pytest.raises(AdapterRejected) as caught:
        Probe.read(tmp_path)
    assert caught.value.code == "probe_unreadable"
