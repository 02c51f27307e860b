"""Plays a crowd of users against a deployed Hone, over REST alone: they ask, look, and vote by a hidden taste.

    plan -> (chat -> judge -> vote, perhaps once more) for each visit, several at a time -> tally

What a visit asks and how its user errs is drawn from the seed and the visit's number, so neither the order in
which answers arrive nor a retry changes them. A crowd that comes again has numbers of its own: the same people begin
other conversations. Knows nothing of how replies are made or what becomes of votes.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from learner.simulation.raters import Rater, Scale, make_raters, standardise
from learner.simulation.rest import Answered, Hone, OnProgress, ask_unless_too_long, in_parallel
from learner.simulation.scripts import Message, Source
from learner.simulation.seeds import stable_seed
from learner.simulation.tastes import Taste, load_taste
from server.errors import Conflict, Forbidden, HoneError

SCALE_PAIRS = 64
"""Pairs of the served policy on which the taste is brought to deviation 1."""
SECOND_TURNS = 0.15
"""Share of visits whose user asks once more after voting."""
NUMBERS = 1_000_000
"""Of visits, that one run may use up."""
ATTEMPTS = 6
"""Other prompts tried when one is too long, or its two replies came out equal."""


@dataclass(frozen=True)
class Crowd:
    """Who votes, how often in total, and by what taste."""

    taste: str
    users: int = 24
    picks: int = 300
    thumbs: int = 300
    noise: float = 1.0
    adversaries: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Visit:
    """One user's one or two questions, each answered by a vote of the same kind."""

    number: int
    rater: Rater
    kind: str
    votes: int


@dataclass
class Tally:
    """What the crowd did."""

    picks: Counter[str] = field(default_factory=Counter)
    thumbs: Counter[str] = field(default_factory=Counter)
    with_taste: int = 0
    """Decided picks that chose the reply which the taste prefers …"""
    against_taste: int = 0
    """… and those that chose the other. Replies of equal taste are in neither."""
    too_long: int = 0
    equal: int = 0
    missed: int = 0
    """Votes that could not be cast after several prompts."""

    @property
    def agreement(self) -> float | None:
        decided = self.with_taste + self.against_taste
        return self.with_taste / decided if decided else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "picks": dict(self.picks),
            "thumbs": dict(self.thumbs),
            "agreement": self.agreement,
            "too_long": self.too_long,
            "equal": self.equal,
            "missed": self.missed,
        }


def plan(crowd: Crowd) -> list[Visit]:
    """Visits in a mixed order whose votes add up to the crowd's totals, spread evenly over its users."""
    raters = make_raters(crowd.users, noise=crowd.noise, adversaries=crowd.adversaries, seed=crowd.seed)
    rng = random.Random(f"plan:{crowd.seed}")
    kinds: list[tuple[str, int]] = []
    for kind, total in (("pick", crowd.picks), ("thumb", crowd.thumbs)):
        while total > 0:
            votes = 2 if total > 1 and rng.random() < SECOND_TURNS else 1
            kinds.append((kind, votes))
            total -= votes
    # Each kind goes round the users on its own, so that everybody gives both.
    turn: Counter[str] = Counter()
    visits = []
    for number, (kind, votes) in enumerate(kinds):
        visits.append(Visit(number, raters[turn[kind] % len(raters)], kind, votes))
        turn[kind] += 1
    rng.shuffle(visits)
    return visits


async def simulate(
    hone: Hone,
    crowd: Crowd,
    *,
    source: Source,
    segment: str = "default",
    on_progress: OnProgress | None = None,
) -> Tally:
    """Let the crowd ask and vote. Raises HoneError when the server refuses or stays away."""
    taste = load_taste(crowd.taste)
    # Coins need no scale, and may be tossed over a taste that cannot be told apart.
    scale = (
        Scale(0.0, 1.0)
        if math.isinf(crowd.noise)
        else await measure_scale(hone, taste, source=source, segment=segment, seed=crowd.seed)
    )
    visits = plan(crowd)
    users = sorted({f"{one.rater.user}-{crowd.seed}" for one in visits})
    begun = await newest_vote(hone, users, segment)
    play = _Play(hone, taste, scale, source=source, segment=segment, seed=crowd.seed)

    async def visit(one: Visit) -> None:
        await play.visit(replace(one, number=one.number + NUMBERS * begun))
        if on_progress:
            on_progress(one.votes)

    await in_parallel(visit, visits, width=hone.connections)
    return play.tally


async def measure_scale(hone: Hone, taste: Taste, *, source: Source, segment: str, seed: int) -> Scale:
    """The taste's scale over replies that serve now; these turns are kept out of training."""

    async def scores(number: int) -> tuple[float, float] | None:
        for attempt in range(ATTEMPTS):
            messages = list(source.script(-1 - number, attempt).messages)
            answered = await ask_unless_too_long(
                hone,
                messages,
                model=segment,
                candidates=2,
                seed=stable_seed("scale", seed, number),
                user="scale",
                metadata={"hone_train": "false"},
            )
            if answered:
                liked = [taste(messages, reply.text) for reply in answered.replies]
                return liked[0], liked[-1]  # one and the same where both came out equal
        return None

    found = await in_parallel(scores, range(SCALE_PAIRS), width=hone.connections)
    pairs = [pair for pair in found if pair]
    if not pairs:
        raise HoneError("none of the prompts fits the context of the policy")
    return standardise(pairs)


async def newest_vote(hone: Hone, users: Sequence[str], segment: str) -> int:
    """Place in the record of the last vote of these people; 0 for none, and for a key that may not read the record."""

    async def newest(user: str) -> int:
        return await hone.newest_vote(user, segment)

    try:
        return max(await in_parallel(newest, users, width=hone.connections), default=0)
    except Forbidden:
        return 0


class _Play:
    """One run of a crowd: what every visit shares, and the tally."""

    def __init__(
        self, hone: Hone, taste: Taste, scale: Scale, *, source: Source, segment: str, seed: int
    ) -> None:
        self.tally = Tally()
        self._hone, self._taste, self._scale = hone, taste, scale
        self._source, self._segment, self._seed = source, segment, seed

    async def visit(self, visit: Visit) -> None:
        left = visit.votes
        for attempt in range(ATTEMPTS):
            left -= await self._converse(visit, attempt, left)
            if left == 0:
                return
        self.tally.missed += left

    async def _converse(self, visit: Visit, attempt: int, votes: int) -> int:
        """How many votes the conversation brought: it ends early when nothing can be voted on."""
        script = self._source.script(visit.number, attempt)
        messages, follow_ups = list(script.messages), iter(script.follow_ups)
        conversation: str | None = None
        for cast in range(votes):
            place = (self._seed, visit.number, attempt, cast)
            user = f"{visit.rater.user}-{self._seed}"
            answered = await ask_unless_too_long(
                self._hone,
                messages,
                model=self._segment,
                user=user,
                candidates=2 if visit.kind == "pick" else 1,
                seed=stable_seed("visit", *place),
                conversation_id=conversation,
            )
            if answered is None:
                self.tally.too_long += 1
                return cast
            rater = replace(visit.rater, rng=random.Random(f"vote:{place}"))
            liked = await self._vote(rater, visit.kind, messages, answered, user=user)
            if liked is None:
                return cast
            follow_up = next(follow_ups, None)
            if follow_up is None:
                return cast + 1
            conversation = answered.conversation_id
            messages += [{"role": "assistant", "content": liked}, {"role": "user", "content": follow_up}]
        return votes

    async def _vote(
        self, rater: Rater, kind: str, messages: list[Message], answered: Answered, *, user: str
    ) -> str | None:
        """The text with which the conversation goes on; None when there was nothing to vote on."""
        scores = [self._scale(self._taste(messages, reply.text)) for reply in answered.replies]
        if kind == "thumb":
            thumb = rater.thumb(scores[0])
            await self._hone.thumb(answered.replies[0].reply_id, thumb, user=user)
            self.tally.thumbs[thumb] += 1
            return answered.replies[0].text
        if answered.comparison_id is None or len(scores) < 2:
            self.tally.equal += 1
            return None
        pick = rater.pick(scores[0], scores[1])
        try:
            await self._hone.pick(answered.comparison_id, pick, user=user)
        except Conflict:
            self.tally.equal += 1
            return None
        self._count(pick, scores[0] - scores[1])
        return answered.replies[1 if pick == "second" else 0].text

    def _count(self, pick: str, lead: float) -> None:
        self.tally.picks[pick] += 1
        if pick in {"first", "second"} and lead != 0:
            if (pick == "first") is (lead > 0):
                self.tally.with_taste += 1
            else:
                self.tally.against_taste += 1
