"""Turns and replies are there before their first token, belong to one user, and end once."""

from __future__ import annotations

import pytest

from server.errors import NotFound
from server.store import conversations, keys
from server.store.session import Store
from server.store.tables import Comparison
from tests.server.store.conftest import Talk


def test_a_conversation_belongs_to_its_client_and_user(talk: Talk, store: Store) -> None:
    mine = talk.turn("ada").conversation_id
    other = store.write(lambda s: keys.ensure_client(s, "other").id)

    def resolve(client: str, name: str | None, conversation: str) -> str:
        return store.write(
            lambda s: (
                conversations.resolve_user(s, client_id=client, name=name, conversation_id=conversation).name
            )
        )

    assert resolve(talk.client_id, None, mine) == "ada"
    for client, name, conversation in (
        (talk.client_id, "bob", mine),
        (other, "ada", mine),
        (talk.client_id, "ada", "conv_none"),
    ):
        with pytest.raises(NotFound) as refused:
            resolve(client, name, conversation)
        assert refused.value.code == "unknown_conversation"


def test_the_nameless_are_somebody_new_each_time_and_the_named_are_not(talk: Talk, store: Store) -> None:
    def user(name: str | None) -> tuple[str, bool]:
        found = store.write(lambda s: conversations.resolve_user(s, client_id=talk.client_id, name=name))
        return found.id, found.anonymous

    assert user(None)[1]
    assert user(None) != user(None)
    assert user("Zoë 🙂") == user("Zoë 🙂")


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
