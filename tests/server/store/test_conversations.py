"""Turns and replies are there before their first token, belong to one user, and end once."""

from __future__ import annotations

import pytest
from sqlmodel import Session

from server.errors import NotFound
from server.store import conversations, keys
from server.store.session import Store
from server.store.tables import Comparison, EndUser, Turn
from tests.server.store.conftest import Talk


def test_a_conversation_belongs_to_its_client_and_user(talk: Talk, store: Store) -> None:
    mine = talk.turn("ada").conversation_id
    other = store.write(lambda s: keys.ensure_client(s, "other").id)

    assert who(store, talk.turn(None, conversation_id=mine)) == who(store, talk.turn("ada")) == ("ada", False)
    for client, name, conversation in (
        (talk.client_id, "bob", mine),
        (other, "ada", mine),
        (talk.client_id, "ada", "conv_none"),
    ):
        with pytest.raises(NotFound) as refused:
            talk.turn(name, conversation_id=conversation, client_id=client)
        assert refused.value.code == "unknown_conversation"


def test_the_nameless_are_somebody_new_each_time_and_the_named_are_not(talk: Talk, store: Store) -> None:
    nameless = [who(store, talk.turn(None)) for _ in range(2)]
    assert [anonymous for _, anonymous in nameless] == [True, True]
    assert nameless[0] != nameless[1]
    assert who(store, talk.turn("Zoë 🙂")) == who(store, talk.turn("Zoë 🙂")) == ("Zoë 🙂", False)


def who(store: Store, turn: conversations.OpenedTurn) -> tuple[str, bool]:
    """Name, and whether it was made up, of the one who asked."""

    def read(session: Session) -> tuple[str, bool]:
        user = session.get_one(EndUser, session.get_one(Turn, turn.turn_id).user_id)
        return user.name, user.anonymous

    return store.read(read)


def test_a_reply_ends_once(talk: Talk, store: Store) -> None:
    turn = talk.turn(state="streaming")

    def finish(text: str) -> None:
        store.write(
            lambda s: conversations.finish_reply(
                s, reply_id=turn.reply_ids[0], text=text, token_ids=[5], logprobs=[-0.5], state="done",
                finish_reason="stop", seed=99,
            )
        )  # fmt: skip

    finish("first 🙂")
    finish("second")
    detail = store.read(lambda s: conversations.turn_detail(s, turn_id=turn.turn_id))
    reply = detail["replies"][0]
    assert (reply["text"], reply["state"], reply["seed"], reply["side"]) == ("first 🙂", "done", 99, "first")
    assert reply["logprobs"] == [-0.5]


def test_a_crash_leaves_interrupted_replies_and_pairs_that_take_no_pick(talk: Talk, store: Store) -> None:
    turn = talk.turn(state="streaming")
    assert store.write(conversations.mark_interrupted) == 2
    assert store.write(conversations.mark_interrupted) == 0
    pair = store.read(lambda s: s.get_one(Comparison, turn.comparison_id))
    assert pair.state == "void"


def test_a_turn_shows_its_live_votes_where_they_belong(talk: Talk, store: Store) -> None:
    turn = talk.turn()
    talk.vote(turn.comparison_id, "second")
    talk.vote(turn.reply_ids[1], "up")
    detail = store.read(lambda s: conversations.turn_detail(s, turn_id=turn.turn_id))
    assert [vote["value"] for vote in detail["comparison"]["votes"]] == ["second"]
    assert [[vote["value"] for vote in reply["votes"]] for reply in detail["replies"]] == [[], ["up"]]
    assert (detail["user"], detail["prompt_token_ids"]) == ("ada", [1, 2])
