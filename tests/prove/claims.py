"""What must be shown, claim by claim, and what the lines say of it. Pure: lines in, verdicts out.

A claim holds when every case that it names has a line on the code in question and nothing in them contradicts it;
a line of an older shape, without the figures that the claim asks for, shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from tests.prove import bars, refuses, together
from tests.prove.bars import percent
from tests.prove.learns import NEVER_SEEN, SEEDS, TASTES, case_of, later_case_of
from tests.prove.lines import Line

Found = dict[str, Any]
Results = Mapping[str, Found]
"""What came out, by case."""
Golds = Mapping[str, float]
"""Wins of PPO on the taste itself, by taste."""

MOST_REFUSED = 1
"""Of five seeds."""
LEAST_FAST_REFUSED = 19


@dataclass(frozen=True)
class Claim:
    """`faults` names what contradicts it among the results there are; `seen` is the figures in a few words."""

    name: str
    says: str
    proof: str
    cases: tuple[str, ...]
    faults: Callable[[Results, Golds], list[str]]
    seen: Callable[[Results, Golds], str]
    shows: Callable[[Found], bool] = lambda _: True


@dataclass(frozen=True)
class Verdict:
    """`word` is one of holds, does not hold, not run."""

    word: str
    faults: tuple[str, ...]
    run: int
    seen: str


def judge(claim: Claim, lines: Mapping[str, Line], golds: Golds) -> Verdict:
    """`lines` are the newest of each case of the claim's proof."""
    results = {
        case: lines[case]["result"]
        for case in claim.cases
        if case in lines and ("error" in lines[case]["result"] or claim.shows(lines[case]["result"]))
    }
    broken = [f"`{case}` broke off: {found['error']}" for case, found in results.items() if "error" in found]
    whole = {case: found for case, found in results.items() if "error" not in found}
    faults = [*broken, *(claim.faults(whole, golds) if whole else [])]
    word = "does not hold" if faults else "holds" if len(whole) == len(claim.cases) else "not run"
    return Verdict(word, tuple(faults), len(results), claim.seen(whole, golds) if whole else "")


# --- claims that are no more than their cases --------------------------------------------------------------


def plain(name: str, says: str, proof: str, cases: tuple[str, ...]) -> Claim:
    def faults(results: Results, _: Golds) -> list[str]:
        return [f"`{case}` does not hold" for case, found in results.items() if not found["holds"]]

    def seen(results: Results, _: Golds) -> str:
        return f"{sum(found['holds'] for found in results.values())} of {len(claim.cases)} cases hold"

    claim = Claim(name, says, proof, cases, faults, seen)
    return claim


# --- it learns ---------------------------------------------------------------------------------------------


def has_figures(found: Found) -> bool:
    """Whether a promoted version was compared where the taste separates, and its losses were measured."""
    return found["state"] != "promoted" or {"separated", "losses", "prompts"} <= set(found)


def learns(taste: str) -> Claim:
    def faults(results: Results, golds: Golds) -> list[str]:
        return promoted_often_and_far(results, {case: golds.get(taste) for case in results})

    return Claim(
        f"It learns: {taste}",
        "one cycle of at most 10 minutes on 300 picks and 300 thumbs of 24 users: promoted in at least 4 of 5 seeds, "
        "then wins at least 85 % over version 0 where the taste separates (or 90 % of the way that PPO on the taste "
        "goes), and loses at most 3 points of replies on topic and of well-formed ones",
        "learns",
        tuple(case_of(taste, seed) for seed in SEEDS),
        faults,
        lambda results, _: how_far(results),
        has_figures,
    )


def never_seen() -> Claim:
    def faults(results: Results, golds: Golds) -> list[str]:
        fair = {case: found for case, found in results.items() if is_fair(found)}
        return promoted_often_and_far(fair, {case: golds.get(case) for case in fair})

    def seen(results: Results, _: Golds) -> str:
        unfair = [case for case, found in results.items() if not is_fair(found)]
        left_out = f"; not fair, left out: {', '.join(unfair)}" if unfair else ""
        return how_far({case: found for case, found in results.items() if case not in unfair}) + left_out

    return Claim(
        "It learns: tastes never seen",
        "the same for ten tastes that were never used while anything was chosen (`random:100` to `random:109`), as "
        "far as they are fair: the base's replies tie in at most 15 %, the taste's own best of 16 wins at least 85 %",
        "learns",
        NEVER_SEEN,
        faults,
        seen,
        lambda found: has_figures(found) and "fairness" in found,
    )


def is_fair(found: Found) -> bool:
    return bool(found["fairness"]["fair"])


def promoted_often_and_far(results: Results, golds: Mapping[str, float | None]) -> list[str]:
    """One in five may be refused; what is promoted must reach the bar."""
    lacking = {
        case: lacks for case, found in results.items() if (lacks := bars.lacks_to_learn(found, golds[case]))
    }
    left = [case for case in lacking if results[case]["state"] != "promoted"]
    faults = [f"`{case}`: {'; '.join(lacks)}" for case, lacks in lacking.items() if case not in left]
    if len(left) > max(MOST_REFUSED, len(results) // 5):
        faults.append(f"not promoted: {', '.join(f'`{case}`' for case in left)}")
    return faults


def how_far(results: Results) -> str:
    promoted = {case: found for case, found in results.items() if "separated" in found}
    said = f"{len(promoted)} of {len(results)} promoted"
    if rates := {case: found["separated"].get("rate", 0.0) for case, found in promoted.items()}:
        worst = min(rates, key=rates.__getitem__)
        said += f"; wins: median {percent(median(rates.values()))}, worst {percent(rates[worst])} (`{worst}`)"
        most = [lost["upper95"] for found in promoted.values() for lost in found["losses"].values() if lost]
        said += f"; at most {100 * max(most):.1f} points lost" if most else ""
    return said


def goes_on(taste: str) -> Claim:
    case = later_case_of(taste)

    def faults(results: Results, golds: Golds) -> list[str]:
        return [f"`{case}`: {lack}" for lack in bars.lacks_to_go_on(results[case], golds.get(taste))]

    def seen(results: Results, _: Golds) -> str:
        found = results[case]
        last = found.get("separated", {}).get("rate")
        after = "–" if last is None else percent(last)
        return f"wins {percent(found['after_one'])} after one cycle, {after} after three"

    return Claim(
        f"It goes on learning: {taste}",
        "three cycles, each on 300 picks and 300 thumbs over the champion's replies: not lower than after one, and at "
        "least 92 % (or 95 % of the way)",
        "learns",
        (case,),
        faults,
        seen,
        lambda found: "after_one" in found,
    )


# --- it refuses --------------------------------------------------------------------------------------------


def unmoved(results: Results) -> list[str]:
    """Cases in which nothing was promoted, and the verdict says why."""
    return [case for case, found in results.items() if found["state"] == "refused" and found["reasons"]]


def coins() -> Claim:
    cases = tuple(f"coin-{seed}" for seed in refuses.SEEDS)

    def faults(results: Results, _: Golds) -> list[str]:
        refused = unmoved(results)
        return [f"`{case}` was {found['state']}" for case, found in results.items() if case not in refused]

    return Claim(
        "It refuses coins",
        "picks and thumbs by coin, with the settings that pass *it learns*: nothing promoted in 5 of 5 seeds, and the "
        "verdict says why",
        "refuses",
        cases,
        faults,
        lambda results, _: f"{len(unmoved(results))} of {len(results)} refused",
    )


def fast_coins() -> Claim:
    tossed = tuple(f"fast-coin-{seed}" for seed in refuses.FAST_SEEDS)
    people = "fast-people-0"

    def of_coins(results: Results) -> Results:
        return {case: found for case, found in results.items() if case != people}

    def faults(results: Results, _: Golds) -> list[str]:
        moved = set(of_coins(results)) - set(unmoved(results))
        faults = []
        if len(moved) > len(tossed) - LEAST_FAST_REFUSED:
            faults.append(f"promoted: {', '.join(f'`{case}`' for case in tossed if case in moved)}")
        if people in results and results[people]["state"] != "promoted":
            faults.append(f"people are refused as well: {results[people]['reason']}")
        return faults

    def seen(results: Results, _: Golds) -> str:
        said = f"{len(unmoved(of_coins(results)))} of {len(of_coins(results))} refused"
        return f"{said}; people: {results[people]['state']}" if people in results else said

    return Claim(
        "It refuses coins, in many short cycles",
        "the same before the same gate, trained for less (`HONE_PROFILE=fast`): nothing promoted in at least 19 of 20, "
        "while people with a taste are promoted",
        "refuses",
        (*tossed, people),
        faults,
        seen,
    )


def adversaries() -> Claim:
    def wins(results: Results) -> list[float]:
        return [found["wins"]["rate"] for found in results.values() if found["state"] == "promoted"]

    def faults(results: Results, _: Golds) -> list[str]:
        lacking = {case: bars.lacks_to_withstand(found) for case, found in results.items()}
        faults = [f"`{case}`: {'; '.join(lacks)}" for case, lacks in lacking.items() if lacks]
        if (rates := wins(results)) and fmean(rates) < bars.MEAN_WITH_ADVERSARIES:
            needed = f"{100 * bars.MEAN_WITH_ADVERSARIES:.0f} % are needed"
            faults.append(f"those promoted win {percent(fmean(rates))} on average, {needed}")
        return faults

    def seen(results: Results, _: Golds) -> str:
        rates = wins(results)
        won = f", winning {percent(fmean(rates))} on average, {percent(min(rates))} at least" if rates else ""
        without = sum(found["without"]["state"] == "promoted" for found in results.values())
        return f"{len(rates)} of {len(results)} promoted{won}; without the adversaries {without}"

    return Claim(
        "It withstands adversaries",
        "20 % of the users against the taste: refused, or wins at least 60 % over version 0, at least 75 % on average "
        "over those promoted; and the same record without those users is promoted",
        "refuses",
        tuple(f"adversaries-{seed}" for seed in refuses.SEEDS),
        faults,
        seen,
        lambda found: "without" in found,
    )


# --- living together ---------------------------------------------------------------------------------------


def lives_together() -> Claim:
    def faults(results: Results, _: Golds) -> list[str]:
        return [f"`{case}`: {lack}" for case, found in results.items() for lack in together.lacks(found)]

    def seen(results: Results, _: Golds) -> str:
        (found,) = results.values()
        idle, busy = found["idle"], found["busy"]
        return (
            f"inter-token p50 {idle['inter_token_p50_ms']} → {busy['inter_token_p50_ms']} ms "
            f"({found['inter_token_p50_ratio']}×), first token p95 {idle['first_token_p95_ms']} → "
            f"{busy['first_token_p95_ms']} ms ({found['first_token_p95_ratio']}×), {found['timeouts']} time-outs; "
            f"server {found['server_peak_mib']} MiB, learner {found['learner_peak_mib']} MiB at most"
        )

    return Claim(
        "Living together",
        "while a cycle runs on the same two cores: inter-token p50 at most twice that of an idle server, first token "
        "p95 at most three times, no time-out",
        "together",
        ("one-cycle",),
        faults,
        seen,
    )


def all_claims() -> list[Claim]:
    """In the order of the page."""
    return [
        *(learns(taste) for taste in TASTES),
        never_seen(),
        *(goes_on(taste) for taste in TASTES),
        coins(),
        fast_coins(),
        adversaries(),
        lives_together(),
        plain(
            "The demo model",
            "its card's command makes the same bytes again in at most 90 minutes, and its card's figures hold when "
            "measured again",
            "demo_model",
            ("made-again", "measured-again"),
        ),
        plain(
            "A fresh clone",
            "one command to a page that answers, one to green tests",
            "fresh",
            ("serve", "test"),
        ),
        plain(
            "The swap is unseen",
            "sixteen streams go on while versions are promoted and rolled back, and every reply is true to the "
            "version it names",
            "swap",
            ("sixteen-streams",),
        ),
        plain(
            "No vote is lost",
            "through twenty SIGKILLs, every 2xx after a sync, at least 1 000 votes a second also on a slow disk",
            "votes",
            (
                *(f"sigkill-{seed}" for seed in range(20)),
                "sync-before-2xx",
                "throughput",
                "throughput-slow-disk",
            ),
        ),
        plain(
            "No cycle is lost",
            "a learner killed in every step ends with the same bytes; one that slept past its lease publishes nothing",
            "kills",
            ("killed-in-every-step", "slept-past-its-lease"),
        ),
        plain(
            "A stranger's checkpoint",
            "real prompts and a full cycle on each of two tastes, ending with reasons",
            "real_input",
            ("tinytalk-brief", "tinytalk-lively"),
        ),
    ]
