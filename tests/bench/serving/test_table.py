"""Tables of lines written by hand: medians, ratios, and contestants that cannot run."""

from typing import Any

from tests.bench.serving import table
from tests.bench.serving.table import Group

GROUP = Group("S", "float32", 64, 64)


def line(who: str, rate: float | None = None, *, code: str = "a", **more: Any) -> dict[str, Any]:
    result: dict[str, Any] = {"cannot": "not prepared"}
    if rate is not None:
        names = [name for names in table.MEASURES.values() for name in names]
        result = dict.fromkeys(names, 7.0) | {"tokens_per_cpu_second": rate}
    case = {"contestant": who, "adapters": 0, "concurrency": 4, "repeat": 0}
    return {"code": code, **GROUP._asdict(), **case, "result": result} | more


def rows(*lines: dict[str, Any]) -> list[list[str]]:
    made = table.table(table.newest(lines), GROUP)[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in made]


def test_a_figure_is_the_median_of_its_repeats_and_a_ratio_is_of_medians() -> None:
    ours = [line("hone", rate, repeat=i) for i, rate in enumerate((90.0, 40.0, 60.0))]
    theirs = [line("vllm", rate, repeat=i) for i, rate in enumerate((30.0, 20.0, 400.0))]
    first, second = rows(*ours, *theirs)
    assert first[2:4] == ["hone", "60.0"]
    assert first[-2:] == ["", "3"]
    assert second[2:4] == ["vllm", "30.0"]
    assert second[-2:] == ["2.00×", "3"]


def test_whoever_cannot_run_says_why_in_the_table() -> None:
    _, second = rows(line("hone", 60.0), line("vllm"))
    assert second[2:4] == ["vllm", "cannot: not prepared"]
    assert second[-2:] == ["–", "0"]


def test_a_run_that_broke_off_says_so() -> None:
    _, second = rows(line("hone", 60.0), line("vllm", result={"error": "503 | away"}))
    assert "failed: 503" in " ".join(second)


def test_against_a_peer_without_adapters_its_base_counts_and_is_marked() -> None:
    lines = [line("hone", 80.0), line("hone", 60.0, adapters=4), line("vllm", 20.0), line("vllm", adapters=4)]
    found = {(row[0], row[2]): row[-2] for row in rows(*lines)}
    assert found[("0", "vllm")] == "4.00×"
    assert found[("4", "vllm")] == "3.00× (its base)"


def test_older_code_does_not_count_and_a_later_refusal_hides_no_figure() -> None:
    found = rows(line("hone", 1.0, code="old"), line("hone", 60.0), line("hone"), line("vllm", 30.0))
    assert found[0][3] == "60.0"
    assert len(found) == 2


def test_a_case_measured_again_counts_once() -> None:
    (row,) = rows(line("hone", 10.0), line("hone", 30.0))
    assert (row[3], row[-1]) == ("30.0", "1")


def test_groups_are_told_apart() -> None:
    lines = table.newest([line("hone", 1.0), line("hone", 2.0, prompt=256), line("hone", 3.0, model="M")])
    assert [(one.model, one.prompt) for one in table.groups(lines)] == [("M", 64), ("S", 64), ("S", 256)]
