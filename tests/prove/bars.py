"""What a version must reach, as the claims put it. Pure: figures in, what they lack in words out; nothing is enough."""

from __future__ import annotations

from typing import Any

MOST_CYCLE_SECONDS = 600
LEAST_SEPARATED, LEAST_REPLIES = 1000, 2000
MOST_LOST = 0.03
"""Upper 95 % bound of what may be lost of the rates of replies on topic and well formed."""
LEAST_WINS, LEAST_WAY = 0.85, 0.90
"""One cycle: wins over version 0 where the taste separates, or this much of the way that PPO on the taste goes."""
LATER_WINS, LATER_WAY = 0.92, 0.95
"""The same after three cycles."""
LEAST_WITH_ADVERSARIES, MEAN_WITH_ADVERSARIES = 0.60, 0.75

Found = dict[str, Any]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def way(rate: float, gold: float | None) -> float | None:
    """How much of the way from a toss-up to what PPO on the taste itself reaches; None where that is nowhere."""
    return None if gold is None or gold <= 0.5 else (rate - 0.5) / (gold - 0.5)


def lacks_to_learn(found: Found, gold: float | None) -> list[str]:
    """It learns: promoted by the gate, in time, and better where it can be told, without losing its manners."""
    if found["state"] != "promoted":
        return [f"{found['state']}: {found['reason']}"]
    slow = found["cycle_seconds"] > MOST_CYCLE_SECONDS
    return [
        *(
            [f"the cycle took {found['cycle_seconds']:.0f} s, {MOST_CYCLE_SECONDS} are allowed"]
            if slow
            else []
        ),
        *_lacks_wins(found, gold, wins=LEAST_WINS, share=LEAST_WAY),
        *_lacks_manners(found),
    ]


def lacks_to_go_on(found: Found, gold: float | None) -> list[str]:
    """Three cycles: not lower than after the first, and higher still."""
    if "separated" not in found:
        return [f"nothing was promoted: {found['reason']}"]
    rate, before = found["separated"].get("rate", 0.0), found["after_one"]
    return [
        *(
            [f"it won {percent(before)} after one cycle and {percent(rate)} after three"]
            if rate < before
            else []
        ),
        *_lacks_wins(found, gold, wins=LATER_WINS, share=LATER_WAY),
        *_lacks_manners(found),
    ]


def lacks_to_withstand(found: Found) -> list[str]:
    """With adversaries: refused, or still better than version 0; and promoted without them."""
    lacks = []
    if found["state"] == "promoted":
        rate = found["wins"]["rate"]
        if rate < LEAST_WITH_ADVERSARIES:
            lacks.append(
                f"promoted with {percent(rate)} wins, {100 * LEAST_WITH_ADVERSARIES:.0f} % are needed"
            )
    elif found["state"] != "refused":
        lacks.append(f"{found['state']}: {found['reason']}")
    if found["without"]["state"] != "promoted":
        lacks.append(
            f"without the adversaries it was {found['without']['state']}: {found['without']['reason']}"
        )
    return lacks


def _lacks_wins(found: Found, gold: float | None, *, wins: float, share: float) -> list[str]:
    parted = found["separated"]
    if parted["prompts"] < LEAST_SEPARATED:
        return [f"only {parted['prompts']} prompts are separated, {LEAST_SEPARATED} are needed"]
    gone = way(parted["rate"], gold)
    if parted["rate"] >= wins or (gone is not None and gone >= share):
        return []
    of_the_way = (
        ""
        if gone is None
        else f", {percent(gone)} of the way that PPO on the taste goes, {100 * share:.0f} % are"
    )
    return [f"wins {percent(parted['rate'])}, {100 * wins:.0f} % are needed{of_the_way}"]


def _lacks_manners(found: Found) -> list[str]:
    if found["prompts"] < LEAST_REPLIES:
        return [f"only {found['prompts']} replies a side, {LEAST_REPLIES} are needed"]
    lacks = []
    for name, lost in found["losses"].items():
        if lost is None or lost["upper95"] > MOST_LOST:
            most = "an unknown share" if lost is None else f"up to {100 * lost['upper95']:.1f} points"
            lacks.append(
                f"{most} lost of replies {name.replace('_', ' ')}, {100 * MOST_LOST:.0f} are allowed"
            )
    return lacks
