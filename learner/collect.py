"""From the record to what one cycle learns from: which votes count, whose they are, and how much they weigh.

Reads the live votes up to a `seq` and the prompts asked until then; writes nothing, and knows no tensors. The
same range, salt and settings give the same dataset, however often and whenever it is read.

votes ≤ through → drop what may not train → look up their replies → weigh → Dataset, with prompts beside them.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, exists
from sqlalchemy.orm import Mapped
from sqlmodel import Session, col, select

from learner.config import CollectConfig
from learner.dataset import Comparison, Dataset, Example, Outcome, PromptRow, Role, Thumb
from learner.weights import decay, fair_weights, inverse_frequency, scaled_to
from server.store import feedback
from server.store import tables as t

Row = TypeVar("Row", bound=t.Table)
Item = TypeVar("Item")

BATCH = 400
"""Rows looked up at a time: below every database's limit on bound values."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What one cycle may read; stored with the cycle, so that membership can be computed again."""

    segment: str
    since: int
    """Newest `seq` that the segment's previous cycle read: turns older than that vote are replay."""
    through: int
    """Newest `seq` that is read, retractions included."""
    until: datetime
    """When the cycle was asked for: turns begun later give no prompts, and no vote is newer than this."""
    salt: str
    """Draws the older prompts that are replayed."""
    template_hash: str
    """Turns rendered by another template or tokenizer mean something else as ids: left out."""


class Vote(NamedTuple):
    """A live vote, before its replies are looked up."""

    seq: int
    kind: str
    target_id: str
    value: str
    user_id: str
    at: datetime


class Voter(NamedTuple):
    """Whose a vote is: to every weight, role and fold, a voice is one person."""

    voice: str
    role: Role


def collect(session: Session, *, scope: Scope, config: CollectConfig) -> Dataset:
    """Everything that one cycle learns from, votes in the order of `seq`. Raises nothing of its own."""
    counts: Counter[str] = Counter()
    votes = deque(_eligible(session, scope, counts), maxlen=config.max_votes)
    voters = _Voters(session, segment=scope.segment, judge_share=config.judge_share)
    found: list[tuple[Vote, Comparison | Thumb]] = []
    for batch in _batches(votes, BATCH):
        voters.meet(vote.user_id for vote in batch)
        found += _look_up(session, batch, scope=scope, voters=voters, counts=counts)
    weights = fair_weights(
        [label.user for _, label in found],
        decay([vote.at for vote, _ in found], until=scope.until, half_life_days=config.half_life_days),
        least_cap=config.user_cap_votes,
        cap_of_median=config.user_cap_median,
        max_share=config.user_cap_share,
    )
    labels = [replace(label, weight=weight) for (_, label), weight in zip(found, weights, strict=True)]
    comparisons = tuple(label for label in labels if isinstance(label, Comparison))
    thumbs = tuple(label for label in labels if isinstance(label, Thumb))
    prompts = _prompts(session, scope=scope, config=config, voters=voters)
    counts.update(picks=len(comparisons), thumbs=len(thumbs), prompts=len(prompts))
    dataset = Dataset(comparisons, thumbs, prompts, counts)
    counts["users"] = len(dataset.users)
    return dataset


# --- votes -------------------------------------------------------------------------------------------------


def _eligible(session: Session, scope: Scope, counts: Counter[str]) -> Iterator[Vote]:
    """Live picks and thumbs that say something, straight from the stream; the rest is only counted."""
    for row in feedback.live_votes(session, segment=scope.segment, through_seq=scope.through):
        if row.kind not in ("pick", "thumb"):
            continue
        if row.status == "quarantined":
            counts["quarantined"] += 1
        elif row.value == "skip" or row.value is None:
            counts["skipped"] += 1
        else:
            yield Vote(row.seq, row.kind, row.target_id, row.value, row.user_id, row.created_at)


def _look_up(
    session: Session, votes: Sequence[Vote], *, scope: Scope, voters: _Voters, counts: Counter[str]
) -> list[tuple[Vote, Comparison | Thumb]]:
    """The batch's votes with the ids they were about, in three queries; what may not train is only counted."""
    picked = {vote.target_id for vote in votes if vote.kind == "pick"}
    pairs = {row.id: row for row in _rows(session, t.Comparison, col(t.Comparison.id), picked)}
    wanted = {vote.target_id for vote in votes if vote.kind == "thumb"}
    for pair in pairs.values():
        wanted |= {pair.first_reply_id, pair.second_reply_id}
    replies = {row.id: row for row in _rows(session, t.Reply, col(t.Reply.id), wanted)}
    asked = {reply.turn_id for reply in replies.values()}
    turns = {row.id: row for row in _rows(session, t.Turn, col(t.Turn.id), asked)}
    prompts = {turn_id: tuple(turn.prompt_token_ids) for turn_id, turn in turns.items()}

    found: list[tuple[Vote, Comparison | Thumb]] = []
    for vote in votes:
        pair_row = pairs.get(vote.target_id)
        ids = (pair_row.first_reply_id, pair_row.second_reply_id) if pair_row else (vote.target_id,)
        about = [replies[reply_id] for reply_id in ids if reply_id in replies]
        if len(about) != len(ids):
            counts["erased"] += 1
            continue
        if why := _unfit(turns[about[0].turn_id], about, pair_row, scope.template_hash):
            counts[why] += 1
            continue
        examples = [Example(prompts[reply.turn_id], tuple(reply.token_ids)) for reply in about]
        found.append((vote, _label(vote, examples, voters[vote.user_id])))
    session.expunge_all()  # a million votes must not leave a million rows in the session
    return found


def _unfit(turn: t.Turn, replies: list[t.Reply], pair: t.Comparison | None, template_hash: str) -> str | None:
    """Why a vote on these replies may not train, as the name it is counted under; None when it may."""
    if not turn.train:
        return "kept_out"
    if turn.template_hash != template_hash:
        return "other_template"
    if pair is not None and pair.state == "void":
        return "void"
    if any(reply.purpose == "pinned" for reply in replies):
        return "pinned"
    if any(reply.state != "done" or not reply.token_ids for reply in replies):
        return "unfinished"
    return None


def _label(vote: Vote, examples: list[Example], voter: Voter) -> Comparison | Thumb:
    if vote.kind == "thumb":
        return Thumb(examples[0], vote.value == "up", voter.voice, voter.role, seq=vote.seq)
    first, second = examples
    return Comparison(first, second, Outcome(vote.value), voter.voice, voter.role, seq=vote.seq)


class _Voters(dict[str, Voter]):
    """Voters met so far, looked up a batch at a time."""

    def __init__(self, session: Session, *, segment: str, judge_share: float) -> None:
        super().__init__()
        self._session = session
        self._segment = segment
        self._judge_share = judge_share

    def meet(self, user_ids: Iterable[str]) -> None:
        strangers = set(user_ids) - self.keys()
        numbers = feedback.numbers_of(self._session, segment=self._segment, user_ids=strangers)
        for row in _rows(self._session, t.EndUser, col(t.EndUser.id), strangers):
            role = feedback.role_of(numbers.get(row.id), judge_share=self._judge_share)
            self[row.id] = Voter(row.voice, Role(role))


# --- prompts -----------------------------------------------------------------------------------------------


def _prompts(
    session: Session, *, scope: Scope, config: CollectConfig, voters: _Voters
) -> tuple[PromptRow, ...]:
    """Prompts to roll out on: the newest ones, and a fixed share of older ones drawn by hash.

    Each prompt once. Within both groups a user's prompts together weigh the same as any other user's.
    """
    edge = session.get(t.FeedbackEvent, scope.since) if scope.since else None
    replayed = round(config.max_prompts * config.replay_share) if edge else 0
    seen: set[bytes] = set()
    fresh = [col(t.Turn.created_at) > edge.created_at] if edge else []
    ids = _turn_ids(session, scope, *fresh)
    recent = list(_rendered(session, ids, config.max_prompts - replayed, seen=seen, voters=voters))
    older: list[PromptRow] = []
    if edge:
        # Drawn by hash from all that came before: the same turns for the same salt, in bounded memory.
        ids = _turn_ids(session, scope, col(t.Turn.created_at) <= edge.created_at)
        drawn = heapq.nsmallest(replayed, ids, key=lambda turn_id: _digest(scope.salt + turn_id))
        older = list(_rendered(session, drawn, replayed, seen=seen, voters=voters))
    shares = (1 - config.replay_share, config.replay_share) if recent and older else (1.0, 1.0)
    return tuple(
        row
        for group, share in zip((recent, older), shares, strict=True)
        for row in _weighed(group, share=share)
    )


def _turn_ids(session: Session, scope: Scope, *among: ColumnElement[bool]) -> Iterator[str]:
    """Turns that may give prompts, newest first. What an operator asked of a pinned version is not one."""
    pinned = exists().where(col(t.Reply.turn_id) == col(t.Turn.id), col(t.Reply.purpose) == "pinned")
    query = (
        select(t.Turn.id)
        .where(
            t.Turn.segment == scope.segment,
            col(t.Turn.train).is_(True),
            t.Turn.template_hash == scope.template_hash,
            t.Turn.created_at <= scope.until,
            ~pinned,
            *among,
        )
        .order_by(col(t.Turn.created_at).desc(), col(t.Turn.id).desc())
        .execution_options(yield_per=1000)
    )
    return iter(session.exec(query))


def _rendered(
    session: Session, turn_ids: Iterable[str], most: int, *, seen: set[bytes], voters: _Voters
) -> Iterator[PromptRow]:
    """At most `most` prompts of these turns in their order, none that was `seen` already."""
    for batch in _batches(turn_ids, BATCH):
        turns = {turn.id: turn for turn in _rows(session, t.Turn, col(t.Turn.id), set(batch))}
        voters.meet(turn.user_id for turn in turns.values())
        for turn in (turns[turn_id] for turn_id in batch if turn_id in turns):
            ids = tuple(turn.prompt_token_ids)
            mark = _digest(repr(ids))
            if most <= 0:
                return
            if ids and mark not in seen:
                seen.add(mark)
                most -= 1
                voter = voters[turn.user_id]
                yield PromptRow(ids, turn.id, voter.voice, voter.role)
        session.expunge_all()


def _weighed(rows: list[PromptRow], *, share: float) -> list[PromptRow]:
    weights = scaled_to(inverse_frequency([row.user for row in rows]), total=share)
    return [replace(row, weight=weight) for row, weight in zip(rows, weights, strict=True)]


# --- reading -----------------------------------------------------------------------------------------------


def _rows(session: Session, table: type[Row], key: Mapped[str], wanted: set[str]) -> Iterator[Row]:
    for ids in _batches(sorted(wanted), BATCH):
        yield from session.exec(select(table).where(key.in_(ids)))


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
