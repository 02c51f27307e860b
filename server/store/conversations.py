"""Conversations, their turns and replies: what was asked, what was answered, and by which weights.

Reply rows exist before their first token, so an early vote finds them. Votes live in `feedback`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import CursorResult, bindparam, insert, update
from sqlalchemy import select as sa_select
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from server.errors import NotFound
from server.store.ids import new_id, now
from server.store.paging import page
from server.store.tables import Comparison, Conversation, EndUser, FeedbackEvent, Reply, Turn

Run = Callable[..., CursorResult[Any]]
"""A connection's `execute`."""
NOBODY = "user_nobody"
"""An id that owns nothing: what a name that was never seen stands for."""
ENDED = frozenset({"done", "cancelled", "interrupted"})

# Made once: at hundreds of turns a second, building statements or rows' objects would cost more than running them.
_NEW_USER, _NEW_CONVERSATION, _NEW_TURN, _NEW_REPLY, _NEW_COMPARISON = map(
    insert, (EndUser, Conversation, Turn, Reply, Comparison)
)
_USER = sa_select(col(EndUser.id)).where(
    col(EndUser.client_id) == bindparam("client"), col(EndUser.name) == bindparam("user")
)
_OWNER = (
    sa_select(col(Conversation.client_id), col(EndUser.id), col(EndUser.name))
    .join(EndUser, col(EndUser.id) == Conversation.user_id)
    .where(col(Conversation.id) == bindparam("conversation"))
)
_END = update(Reply).where(col(Reply.id) == bindparam("reply"), col(Reply.state) == "streaming")


@dataclass(frozen=True, slots=True)
class PlannedReply:
    """A reply that is about to be written."""

    version: int
    seed: int
    sampling: dict[str, Any]
    purpose: str


@dataclass(frozen=True, slots=True)
class OpenedTurn:
    """The ids of a turn that was just opened; replies in their planned order."""

    turn_id: str
    conversation_id: str
    reply_ids: tuple[str, ...]
    comparison_id: str | None


def find_user(session: Session, *, client_id: str, name: str) -> str:
    """The id of a client's end user; of `NOBODY`, who owns nothing, when the name was never seen."""
    found = session.exec(
        select(EndUser.id).where(EndUser.client_id == client_id, EndUser.name == name)
    ).first()
    return found or NOBODY


def open_turn(
    session: Session,
    *,
    client_id: str,
    user: str | None,
    segment: str,
    conversation_id: str | None,
    messages: list[dict[str, Any]],
    prompt_token_ids: list[int],
    template_hash: str,
    truncated: bool,
    train: bool,
    replies: Sequence[PlannedReply],
    pairing: str | None = None,
    propensity: float = 1.0,
) -> OpenedTurn:
    """All that must be on disk before the first token: turn, `streaming` replies and, for a pair, its comparison.

    `user` is a name of the client's own; None speaks for the conversation's owner, or without one for somebody new.
    Raises NotFound (`unknown_conversation`) for a conversation that is unknown, another client's or another user's.
    """
    moment = now()
    run = session.connection().execute
    if conversation_id is None:
        user_id, conversation_id = _user(run, client_id, user, moment), new_id("conv")
        run(
            _NEW_CONVERSATION,
            {
                "id": conversation_id,
                "client_id": client_id,
                "user_id": user_id,
                "segment": segment,
                "created_at": moment,
            },
        )
    else:
        user_id = _owner(run, conversation_id, client_id, user)
    turn_id = new_id("turn")
    run(
        _NEW_TURN,
        {
            "id": turn_id,
            "conversation_id": conversation_id,
            "client_id": client_id,
            "user_id": user_id,
            "segment": segment,
            "messages": messages,
            "prompt_token_ids": prompt_token_ids,
            "template_hash": template_hash,
            "truncated": truncated,
            "train": train,
            "created_at": moment,
        },
    )
    reply_ids = tuple(new_id("rep") for _ in replies)
    run(
        _NEW_REPLY,
        [
            {
                "id": reply_id,
                "turn_id": turn_id,
                "position": position,
                "version": planned.version,
                "seed": planned.seed,
                "sampling": planned.sampling,
                "purpose": planned.purpose,
                "state": "streaming",
                "text": "",
                "token_ids": [],
                "logprobs": [],
                "created_at": moment,
            }
            for position, (reply_id, planned) in enumerate(zip(reply_ids, replies, strict=True))
        ],
    )
    if pairing is None:
        return OpenedTurn(turn_id, conversation_id, reply_ids, None)
    first, second = reply_ids
    comparison_id = new_id("cmp")
    run(
        _NEW_COMPARISON,
        {
            "id": comparison_id,
            "turn_id": turn_id,
            "first_reply_id": first,
            "second_reply_id": second,
            "pairing": pairing,
            "propensity": propensity,
            "state": "open",
            "created_at": moment,
        },
    )
    return OpenedTurn(turn_id, conversation_id, reply_ids, comparison_id)


def finish_reply(
    session: Session,
    *,
    reply_id: str,
    text: str,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    state: str,
    finish_reason: str | None,
    seed: int | None = None,
) -> None:
    """Keep what was written. `seed` is given when it was drawn again. A reply ends once: later calls change nothing."""
    assert state in ENDED, state
    values: dict[str, Any] = {
        "reply": reply_id,
        "text": text,
        "token_ids": list(token_ids),
        "logprobs": list(logprobs),
        "state": state,
        "finish_reason": finish_reason,
        "finished_at": now(),
    }
    if seed is not None:
        values["seed"] = seed
    session.connection().execute(_END, values)


def void_comparison(session: Session, *, comparison_id: str) -> None:
    """The pair shows nothing to choose between: it takes no pick."""
    session.connection().execute(
        update(Comparison).where(col(Comparison.id) == comparison_id).values(state="void")
    )


def mark_interrupted(session: Session, *, turn_id: str | None = None) -> int:
    """Replies that are still `streaming` and will never end: a turn's, or at the start all that a crash left.

    How many there were. A pair with such a side takes no pick.
    """
    endless = [col(Reply.state) == "streaming", *([col(Reply.turn_id) == turn_id] if turn_id else [])]
    broken = select(Reply.turn_id).where(*endless)
    session.connection().execute(
        update(Comparison).where(col(Comparison.turn_id).in_(broken)).values(state="void")
    )
    ended = session.connection().execute(
        update(Reply).where(*endless).values(state="interrupted", finished_at=now())
    )
    return ended.rowcount


def find_reply(session: Session, *, client_id: str, user_id: str | None, reply_id: str) -> Reply:
    """A reply of this client (and user, if given). Raises NotFound (`unknown_reply`), also for somebody else's."""
    query = select(Reply).join(Turn, col(Turn.id) == Reply.turn_id)
    query = query.where(Reply.id == reply_id, Turn.client_id == client_id)
    if user_id is not None:
        query = query.where(Turn.user_id == user_id)
    reply = session.exec(query).first()
    if reply is None:
        raise NotFound(f"There is no reply {reply_id!r}.", code="unknown_reply", param="reply_id")
    return reply


def turn_detail(session: Session, *, turn_id: str) -> dict[str, Any]:
    """Everything that is kept about a turn, votes included. Raises NotFound (`unknown_turn`)."""
    from server.store.feedback import live_on_turn, shown

    turn = session.get(Turn, turn_id)
    if turn is None:
        raise NotFound(f"There is no turn {turn_id!r}.", code="unknown_turn")
    user = session.get(EndUser, turn.user_id)
    replies = session.exec(select(Reply).where(Reply.turn_id == turn_id).order_by(col(Reply.position)))
    pair = session.exec(select(Comparison).where(Comparison.turn_id == turn_id)).first()
    votes = live_on_turn(session, turn_id=turn_id)
    return {
        "id": turn.id,
        "conversation_id": turn.conversation_id,
        "client_id": turn.client_id,
        "user": user.name if user else None,
        "segment": turn.segment,
        "messages": turn.messages,
        "prompt_token_ids": turn.prompt_token_ids,
        "template_hash": turn.template_hash,
        "truncated": turn.truncated,
        "train": turn.train,
        "created_at": turn.created_at.isoformat(),
        "replies": [_shown(reply, pair, votes) for reply in replies],
        "comparison": None
        if pair is None
        else {
            "id": pair.id,
            "state": pair.state,
            "pairing": pair.pairing,
            "propensity": pair.propensity,
            "votes": [shown(vote) for vote in votes if vote.target_id == pair.id],
        },
    }


def list_turns(
    session: Session,
    *,
    segment: str | None = None,
    train: bool | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> tuple[list[dict[str, Any]], str | None]:
    """What was asked, newest first, and the cursor of the next page; None means any."""
    # The ids of a long prompt are most of its row, and nobody reads them in a list.
    query = select(Turn).options(defer(Turn.prompt_token_ids))  # type: ignore[arg-type]
    if segment is not None:
        query = query.where(Turn.segment == segment)
    if train is not None:
        query = query.where(col(Turn.train).is_(train))
    rows, following = page(session, query, at=Turn.created_at, key=Turn.id, cursor=cursor, limit=limit)
    return [_asked(turn) for turn in rows], following


def _asked(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "conversation_id": turn.conversation_id,
        "client_id": turn.client_id,
        "segment": turn.segment,
        "messages": turn.messages,
        "truncated": turn.truncated,
        "train": turn.train,
        "created_at": turn.created_at.isoformat(),
    }


def _shown(reply: Reply, pair: Comparison | None, votes: Sequence[FeedbackEvent]) -> dict[str, Any]:
    from server.store.feedback import shown

    sides = {} if pair is None else {pair.first_reply_id: "first", pair.second_reply_id: "second"}
    return {
        "id": reply.id,
        "position": reply.position,
        "version": reply.version,
        "seed": reply.seed,
        "sampling": reply.sampling,
        "side": sides.get(reply.id),
        "purpose": reply.purpose,
        "state": reply.state,
        "finish_reason": reply.finish_reason,
        "text": reply.text,
        "token_ids": reply.token_ids,
        "logprobs": reply.logprobs,
        "votes": [shown(vote) for vote in votes if vote.target_id == reply.id],
    }


def _owner(run: Run, conversation_id: str, client_id: str, name: str | None) -> str:
    """Whose conversation it is, if it is the client's and, where one is named, that user's."""
    owner = run(_OWNER, {"conversation": conversation_id}).first()
    if owner is None or owner.client_id != client_id or name not in (None, owner.name):
        raise _unknown_conversation(conversation_id)
    return str(owner.id)


def _user(run: Run, client_id: str, name: str | None, moment: datetime) -> str:
    """The client's end user of this name, or somebody new and nameless."""
    if name is not None and (known := run(_USER, {"client": client_id, "user": name}).scalar()):
        return str(known)
    user_id = new_id("user")
    row = {"id": user_id, "client_id": client_id, "name": name or user_id, "anonymous": name is None}
    run(_NEW_USER, row | {"created_at": moment})
    return user_id


def _unknown_conversation(conversation_id: str) -> NotFound:
    return NotFound(
        f"There is no conversation {conversation_id!r}.", code="unknown_conversation", param="conversation_id"
    )
