"""Lines as rows of tables, proof by proof. Copes with lines of every age: a figure that a line lacks is a dash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.prove import bars
from tests.prove.bars import percent
from tests.prove.lines import Line

Found = dict[str, Any]
LONGEST = 160
"""Characters of one cell; what is longer stands in the line itself."""


class Standing(NamedTuple):
    """A line as the page sees it today: what PPO on its taste reached on its code may have been run later."""

    line: Line
    gold: float | None
    lacks: list[str]

    @property
    def found(self) -> Found:
        found: Found = self.line["result"]
        return found


def standing(line: Line, gold: float | None) -> Standing:
    return Standing(line, gold, lacking(line["proof"], line["result"], gold))


def lacking(proof: str, found: Found, gold: float | None) -> list[str]:
    """Why a case does not hold; nothing for one that does."""
    if "error" in found:
        return [f"broke off: {found['error']}"]
    if proof == "learns" and "after_one" in found:
        return bars.lacks_to_go_on(found, gold)
    if proof == "learns" and ("separated" in found or found["state"] != "promoted"):
        return bars.lacks_to_learn(found, gold)
    if "without" in found:
        return bars.lacks_to_withstand(found)
    if found["holds"]:
        return []
    if "wins" in found:
        return [f"wins {percent(found['wins']['rate'])} of all prompts, too few by the bar of its day"]
    return [str(found.get("reason") or figures(found))]


def table(cases: Mapping[str, Standing], *, code: str) -> list[str]:
    """The newest line of every case of a proof, in Markdown; `code` is what counts as this code."""
    proof = next(iter(cases.values())).line["proof"]
    columns = COLUMNS.get(proof, PLAIN)
    head = ["case", "holds", *columns, "minutes", "code"]
    rows = [_row(head), _row(["---"] * len(head))]
    for case, one in cases.items():
        broke = "error" in one.found
        cells = ["–"] * len(columns) if broke else [write(one) for write in columns.values()]
        age = "this" if one.line["code"] == code else f"`{one.line['code']}`"
        minutes = f"{one.line['seconds'] / 60:.1f}"
        rows.append(_row([f"`{case}`", "**no**" if one.lacks else "yes", *cells, minutes, age]))
    return rows


Write = Callable[[Standing], str]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: object, *, longest: int = LONGEST) -> str:
    """Any text as the content of one cell."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def won(name: str) -> Write:
    """`86.4 % (84.8–87.9)`, over however many prompts."""
    return lambda one: _won(one.found.get(name) or {})


def _won(wins: Found) -> str:
    if "rate" not in wins:
        return "–"
    low, high = wins["ci95"]
    prompts = f", {wins['prompts']} prompts" if "prompts" in wins else ""
    return f"{percent(wins['rate'])} ({100 * low:.1f}–{100 * high:.1f}{prompts})"


def lost(one: Standing) -> str:
    """Upper bounds of what was lost, on topic and well formed, in points."""
    losses = one.found.get("losses") or {}
    most = [losses.get(name) for name in ("on_topic", "well_formed")]
    return " / ".join("–" if its is None else f"{100 * its['upper95']:.1f}" for its in most)


def tokens(one: Standing) -> str:
    means = [row["tokens_mean"] for row in (one.found.get("versions") or {}).values()]
    return f"{means[0]:.0f} → {means[-1]:.0f}" if means else "–"


def ended(one: Standing) -> str:
    """How the cycle or the cycles ended; of a refusal the first words of why."""
    ends = one.found.get("cycles") or [one.found]
    return cell(
        ", ".join(
            end["state"] if end["state"] == "promoted" else f"{end['state']}: {end['reason']}" for end in ends
        )
    )


def cycle_minutes(one: Standing) -> str:
    ends = one.found.get("cycles") or [one.found]
    return ", ".join(f"{end['cycle_seconds'] / 60:.1f}" for end in ends)


def without(one: Standing) -> str:
    other = one.found.get("without")
    return "" if other is None else f"{other['state']} ({other['retracted']} votes taken back)"


def fair(one: Standing) -> str:
    its = one.found.get("fairness")
    if its is None:
        return "–"
    return (
        f"{'yes' if its['fair'] else 'no'} ({its['ties']:.1%} tie, best of 16 wins {its['best_of_16']:.1%})"
    )


def share_of_way(one: Standing) -> str:
    rate = (one.found.get("separated") or {}).get("rate")
    gone = None if rate is None else bars.way(rate, one.gold)
    return "–" if gone is None else percent(gone)


def figure(*names: str) -> Write:
    """One figure by its place in the result."""

    def write(one: Standing) -> str:
        found: Any = one.found
        for name in names:
            found = found[name]
        return str(found)

    return write


def figures(found: Found) -> str:
    """Everything short, as it stands in the line."""
    said = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in found.items()
        if name != "holds" and not isinstance(value, dict) and len(str(value)) <= LONGEST // 2
    ]
    return "; ".join(said).replace("|", "\\|")


PLAIN: dict[str, Write] = {"figures": lambda one: figures(one.found)}

COLUMNS: dict[str, dict[str, Write]] = {
    "learns": {
        "cycle": ended,
        "wins where separated": won("separated"),
        "wins on all": won("wins"),
        "of the way": share_of_way,
        "points lost at most (on topic / well formed)": lost,
        "tokens": tokens,
        "fair taste": fair,
        "minutes of cycle": cycle_minutes,
    },
    "gold": {
        "wins where separated": won("separated"),
        "wins on all": won("wins"),
        "step": figure("step"),
        "nats": figure("nats"),
        "points lost at most (on topic / well formed)": lost,
        "tokens": tokens,
    },
    "refuses": {"cycle": ended, "wins on all": won("wins"), "without the adversaries": without},
    "together": {
        "inter-token p50, idle": figure("idle", "inter_token_p50_ms"),
        "beside a cycle": figure("busy", "inter_token_p50_ms"),
        "first token p95, idle": figure("idle", "first_token_p95_ms"),
        "beside a cycle, too": figure("busy", "first_token_p95_ms"),
        "time-outs": figure("timeouts"),
        "MiB, server": figure("server_peak_mib"),
        "MiB, learner": figure("learner_peak_mib"),
    },
}
"""What to write of each proof's results; all others show `PLAIN`."""
