"""The page says what the lines say: no more, no less, and always in the same bytes."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.prove import chart, page
from tests.prove.claims import Claim, Verdict, all_claims, judge
from tests.prove.learns import NEVER_SEEN, TASTES, case_of
from tests.prove.test_bars import promoted

CYCLE: dict[str, Any] = {"reasons": ["People agree."], "step_seconds": {"ppo": 300.0}, "cycle_seconds": 500.0}
REFUSED: dict[str, Any] = {**CYCLE, "holds": True, "state": "refused", "reason": "coins"}


def learned(rate: float = 0.9, **more: Any) -> dict[str, Any]:
    wins = {"rate": rate, "ci95": [rate - 0.02, rate + 0.02], "ties": 3}
    found = promoted(rate, holds=True, wins=wins, separated={"prompts": 1500, **wins})
    return {**CYCLE, **found, "fairness": {"ties": 0.01, "best_of_16": 0.93, "fair": True}, **more}


def line(proof: str, case: str, result: dict[str, Any], *, code: str = "new", at: int = 1) -> dict[str, Any]:
    return {
        "proof": proof, "case": case, "seed": 0, "commit": f"commit-{code}", "code": code, "seconds": 90.0,
        "at": f"2026-01-01T00:00:{at:02d}+00:00", "result": result,
    }  # fmt: skip


def written(docs: Path, *lines: dict[str, Any]) -> Path:
    (docs / "proof").mkdir(parents=True, exist_ok=True)
    for one in lines:
        with (docs / "proof" / f"{one['proof']}.jsonl").open("a") as out:
            out.write(json.dumps(one) + "\n")
    return docs


def claim(name: str) -> Claim:
    return next(one for one in all_claims() if one.name == name)


def verdict(name: str, results: dict[str, dict[str, Any]], golds: dict[str, float] | None = None) -> Verdict:
    one = claim(name)
    return judge(one, {case: line(one.proof, case, found) for case, found in results.items()}, golds or {})


def five(taste: str, **odd: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {case_of(taste, seed): odd.get(f"seed{seed}", learned()) for seed in range(5)}


def test_it_learns_with_one_refusal_in_five() -> None:
    taste = TASTES[0]
    name = f"It learns: {taste}"
    assert verdict(name, five(taste)).word == "holds"
    one = verdict(name, five(taste, seed3=REFUSED))
    assert one.word == "holds"
    assert "4 of 5 promoted" in one.seen
    two = verdict(name, five(taste, seed3=REFUSED, seed1=REFUSED))
    assert two.word == "does not hold"
    assert f"`{taste}-1`, `{taste}-3`" in two.faults[0]


def test_it_does_not_learn_when_one_promoted_seed_is_too_low() -> None:
    taste = TASTES[0]
    low = five(taste, seed2=learned(0.78))
    assert verdict(f"It learns: {taste}", low).word == "does not hold"
    assert verdict(f"It learns: {taste}", low, {taste: 0.8}).word == "holds"


def test_a_claim_whose_cases_are_not_all_there_was_not_run_but_a_fault_shows_at_once() -> None:
    taste = TASTES[0]
    some = {case: found for case, found in five(taste).items() if not case.endswith("4")}
    assert verdict(f"It learns: {taste}", some).word == "not run"
    some[f"{taste}-0"] = learned(0.7)
    assert verdict(f"It learns: {taste}", some).word == "does not hold"


def test_a_line_of_an_older_shape_shows_nothing() -> None:
    old = {**CYCLE, "holds": True, "state": "promoted", "reason": "v1", "wins": {"rate": 0.9}}
    found = verdict(f"It learns: {TASTES[0]}", five(TASTES[0], seed0=old))
    assert (found.word, found.run) == ("not run", 4)


def test_unfair_tastes_are_named_and_left_out() -> None:
    results = {taste: learned() for taste in NEVER_SEEN}
    results["random:103"] = learned(0.55, fairness={"ties": 0.4, "best_of_16": 0.9, "fair": False})
    found = verdict("It learns: tastes never seen", results)
    assert found.word == "holds"
    assert "not fair, left out: random:103" in found.seen
    results["random:104"] = learned(0.61)
    found = verdict("It learns: tastes never seen", results)
    assert found.word == "does not hold"
    assert "worst 61.0 % (`random:104`)" in found.seen


def test_nineteen_of_twenty_coins_are_enough_but_only_where_people_get_through() -> None:
    name = "It refuses coins, in many short cycles"
    people = {"fast-people-0": {**CYCLE, "holds": True, "state": "promoted", "reason": "v1"}}
    coins = {f"fast-coin-{seed}": REFUSED for seed in range(20)}
    assert verdict(name, coins | people).word == "holds"
    slipped = {**CYCLE, "holds": False, "state": "promoted", "reason": "v1"}
    assert verdict(name, coins | people | {"fast-coin-7": slipped}).word == "holds"
    two = {"fast-coin-7": slipped, "fast-coin-8": slipped}
    assert verdict(name, coins | people | two).word == "does not hold"
    assert verdict(name, coins | {"fast-people-0": REFUSED}).word == "does not hold"


def test_adversaries_must_leave_a_good_mean() -> None:
    without = {"state": "promoted", "reason": "v1", "retracted": 120}

    def all_at(rate: float) -> dict[str, dict[str, Any]]:
        return {f"adversaries-{seed}": learned(rate, without=without) for seed in range(5)}

    assert verdict("It withstands adversaries", all_at(0.75)).word == "holds"
    low = verdict("It withstands adversaries", all_at(0.7))
    assert low.word == "does not hold"
    assert low.faults == ("those promoted win 70.0 % on average, 75 % are needed",)


def test_a_case_that_broke_off_is_a_fault_with_its_error() -> None:
    found = verdict("No cycle is lost", {"slept-past-its-lease": {"holds": False, "error": "OSError: full"}})
    assert found.word == "does not hold"
    assert found.faults == ("`slept-past-its-lease` broke off: OSError: full",)


def test_the_newest_line_of_a_case_counts_and_this_code_is_the_newest_lines(tmp_path: Path) -> None:
    serve, test = {"holds": True, "pages": 1}, {"holds": True, "said": "12 | passed"}
    docs = written(
        tmp_path,
        line("fresh", "serve", {"holds": False, "reason": "slow"}, code="old", at=1),
        line("fresh", "serve", serve, code="new", at=2),
        line("fresh", "test", test, code="old", at=1),
    )
    text = page.files(docs)[Path("proof.md")]
    assert "that anything was run on is `new` (commit `commit-new`)" in text
    assert "not run on this code (1 of 2 cases are); older lines included, it holds" in text
    assert "| `serve` | yes | pages 1 | 1.5 | this |" in text
    assert "| `test` | yes | said 12 \\| passed | 1.5 | `old` |" in text
    assert "What did not hold" not in text


def test_what_ppo_on_the_taste_reached_later_counts_for_lines_of_its_own_code(tmp_path: Path) -> None:
    taste = TASTES[0]
    low = learned(0.78, holds=False)
    docs = written(tmp_path, *(line("learns", case_of(taste, seed), low) for seed in range(5)))
    assert "What did not hold" in page.files(docs)[Path("proof.md")]
    gold = learned(0.8, step=30, nats=1.8)
    written(docs, line("gold", taste, gold, code="old"))
    assert "What did not hold" in page.files(docs)[Path("proof.md")]
    written(docs, line("gold", taste, gold, code="new", at=2))
    text = page.files(docs)[Path("proof.md")]
    assert "What did not hold" not in text
    assert "| 93.3 % |" in text


def test_same_lines_same_bytes_and_a_chart_that_is_no_more_goes(tmp_path: Path) -> None:
    taste = TASTES[0]
    docs = written(tmp_path, line("learns", case_of(taste, 0), learned()), line("learns", "x<y", REFUSED))
    (docs / "proof" / "gold.svg").write_text("from another time")
    page.write(docs)
    first = {path.name: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    page.write(docs)
    assert {path.name: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == first
    assert set(first) == {"learns.jsonl", "learns.svg", "proof.md"}
    ElementTree.fromstring(first["learns.svg"])


def test_without_any_line_the_page_says_so(tmp_path: Path) -> None:
    assert page.files(tmp_path)[Path("proof.md")].endswith("Nothing was run yet.\n")


@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
def test_every_dot_lies_inside_its_chart(rate: float) -> None:
    row = chart.Row("a & b", rate, (max(0.0, rate - 0.1), min(1.0, rate + 0.1)), gold=rate)
    drawing = ElementTree.fromstring(chart.win_rates("t", [row], bar=0.85))
    (dot,) = [part for part in drawing.iter() if part.tag.endswith("circle")]
    assert chart.LEFT <= float(dot.attrib["cx"]) <= chart.WIDTH - chart.RIGHT
