"""Makes `docs/proof.md` and its charts from the lines in `docs/proof`: the same lines, the same bytes.

    python -m tests.prove.page

What counts as "this code" is the code of the newest line, wherever it stands: so the page says of its own lines what
they show, whatever is checked out beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.prove import bars, chart, lines, tables
from tests.prove.claims import Claim, Golds, Verdict, all_claims, judge
from tests.prove.learns import NEVER_SEEN, TASTES
from tests.prove.lines import Line
from tests.prove.tables import Standing
from tests.running import ROOT

DOCS = ROOT / "docs"
TITLES = {
    "learns": "It learns",
    "gold": "PPO on the taste itself",
    "refuses": "It refuses, it withstands",
    "together": "Living together",
    "demo_model": "The demo model",
    "fresh": "A fresh clone",
    "swap": "The swap",
    "votes": "Votes",
    "kills": "Kills",
    "real_input": "A stranger's checkpoint",
}
"""Every proof, in the order of the page."""
CHARTS = {
    "learns": ("Wins over version 0 by the taste, one row a case", bars.LEAST_WINS, "separated"),
    "gold": ("Wins over version 0 of PPO that is paid by the taste itself", bars.LEAST_WINS, "separated"),
    "refuses": (
        "Wins over version 0 with a fifth of the users against the taste",
        bars.LEAST_WITH_ADVERSARIES,
        "wins",
    ),
}
"""Title, bar, and which figure of a result is drawn; lines without it show their wins on all prompts."""
INTRODUCTION = """# What was proven

Made from the lines in [`proof`](proof/README.md) by `python -m tests.prove.page`; never edited by hand. A line counts
for the code that it was run on: everything under `server/` and `learner/`, the demo model included."""


def files(docs: Path = DOCS) -> dict[Path, str]:
    """Every file of the page with its content, by its place under `docs`."""
    every = {proof: lines.read(proof, docs / "proof") for proof in TITLES}
    ran = [line for found in every.values() for line in found]
    if not ran:
        return {Path("proof.md"): f"{INTRODUCTION}\n\nNothing was run yet.\n"}
    last = max(ran, key=lambda line: line["at"])
    made: dict[Path, str] = {}
    sections = []
    for proof, title in TITLES.items():
        cases = in_order(proof, lines.newest(every[proof]), every["gold"])
        if not cases:
            continue
        drawn = drawing(proof, cases)
        if drawn:
            made[Path("proof") / f"{proof}.svg"] = drawn
        image = [f"![{CHARTS[proof][0]}](proof/{proof}.svg)", ""] if drawn else []
        sections += ["", f"## {title}", "", *image, *tables.table(cases, code=last["code"]), *unmet(cases)]
    head = [
        INTRODUCTION,
        "",
        f'The newest code that anything was run on is `{last["code"]}` (commit `{last["commit"]}`): "this" below.',
        "",
        "| must be shown | verdict | what was seen |",
        "|---|---|---|",
        *(summary(claim, every[claim.proof], every["gold"], code=last["code"]) for claim in all_claims()),
    ]
    made[Path("proof.md")] = "\n".join([*head, *sections, ""])
    return made


def in_order(proof: str, newest: Mapping[str, Line], gold: list[Line]) -> dict[str, Standing]:
    """Cases as the claims name them, then all others."""
    named = [case for claim in all_claims() if claim.proof == proof for case in claim.cases]
    return {
        case: tables.standing(newest[case], gold_for(newest[case], gold))
        for case in (*named, *newest)
        if case in newest
    }


def summary(claim: Claim, found: list[Line], gold: list[Line], *, code: str) -> str:
    """A claim's row: what this code's lines say and, where they are not all there, what older ones say too."""
    verdict = judge(claim, lines.newest(found, code=code), golds(gold, code=code))
    words = f"**{verdict.word}**"
    if verdict.word == "not run":
        words = "not run on this code"
        if verdict.run:
            words += f" ({verdict.run} of {len(claim.cases)} cases are)"
        verdict = judge(claim, lines.newest(found), golds(gold))
        words += f"; {of_older(claim, verdict)}"
    seen = tables.cell("; ".join(part for part in (verdict.seen, *verdict.faults) if part), longest=600)
    return f"| **{claim.name}**: {claim.says} | {words} | {seen or '–'} |"


def of_older(claim: Claim, verdict: Verdict) -> str:
    if verdict.word != "not run":
        return f"older lines included, it {verdict.word}"
    if verdict.run:
        return f"older lines included, {verdict.run} of {len(claim.cases)} are"
    return "no line has these figures yet"


def golds(found: list[Line], *, code: str | None = None) -> Golds:
    """What PPO on each taste itself reached, on this code if one is given."""
    return {
        taste: line["result"]["separated"]["rate"]
        for taste, line in lines.newest(found, code=code).items()
        if "rate" in line["result"].get("separated", {})
    }


def gold_for(line: Line, found: list[Line]) -> float | None:
    """The same of a line's taste, on the line's own code."""
    named = [taste for taste in (*NEVER_SEEN, *TASTES) if line["case"].startswith(taste)]
    return golds(found, code=line["code"]).get(max(named, key=len, default=""))


def drawing(proof: str, cases: Mapping[str, Standing]) -> str:
    """The chart of a proof; empty where it has none, or nothing to draw."""
    if proof not in CHARTS:
        return ""
    title, bar, figure = CHARTS[proof]
    rows = []
    for case, one in cases.items():
        if proof == "refuses" and "without" not in one.found:
            continue
        wins = one.found.get(figure) or one.found.get("wins") or {}
        low, high = wins.get("ci95", (0.0, 0.0))
        said = one.found.get("state", "broke off")
        gold = one.gold if proof == "learns" else None
        dot: chart.Dot = "old" if figure not in one.found else "low" if one.lacks else "dot"
        rows.append(chart.Row(case, wins.get("rate"), (low, high), gold, dot, said))
    return chart.win_rates(title, rows, bar=bar) if rows else ""


def unmet(cases: Mapping[str, Standing]) -> list[str]:
    """Cases that do not hold, each with its reasons."""
    listed = [
        f"- `{case}`: {tables.cell('; '.join(one.lacks), longest=400)}"
        for case, one in cases.items()
        if one.lacks
    ]
    return ["", "What did not hold:", "", *listed] if listed else []


def write(docs: Path = DOCS) -> None:
    made = files(docs)
    for path in (docs / "proof").glob("*.svg"):
        if path.relative_to(docs) not in made:
            path.unlink()
    for place, text in made.items():
        (docs / place).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
