"""A record filled by hand: turns, replies and votes of a made-up crowd, without a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlmodel import Session

from server.store import conversations, feedback, keys
from server.store.conversations import OpenedTurn, PlannedReply
from server.store.feedback import NewFeedback
from server.store.migrate import upgrade
from server.store.session import Store, open_store

TEMPLATE = "template"


@cache
def blank() -> bytes:
    """A migrated database without rows: migrating once is enough for many tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "hone.db"
        upgrade(f"sqlite:///{path}")
        return path.read_bytes()


def fresh_store(folder: Path) -> Store:
    """A new record in `folder`, where the learner's settings will look for it."""
    (folder / "hone.db").write_bytes(blank())
    return open_store(f"sqlite:///{folder / 'hone.db'}")


@dataclass(frozen=True, slots=True)
class Record:
    """Writes what a server would have written for one client."""

    store: Store
    client: str = "local"
    segment: str = "default"
    template_hash: str = TEMPLATE

    def turn(
        self,
        user: str | None,
        prompt: Sequence[int],
        *responses: Sequence[int],
        train: bool = True,
        purpose: str | None = None,
        state: str = "done",
        template_hash: str | None = None,
    ) -> OpenedTurn:
        """A turn with one reply, or a pair when two responses are given."""
        pair = len(responses) == 2
        planned = PlannedReply(0, 1, {}, purpose or ("pair" if pair else "single"))

        def work(session: Session) -> OpenedTurn:
            client = keys.ensure_client(session, self.client)
            opened = conversations.open_turn(
                session,
                client_id=client.id,
                user=user,
                segment=self.segment,
                conversation_id=None,
                messages=[{"role": "user", "content": "?"}],
                prompt_token_ids=list(prompt),
                template_hash=template_hash or self.template_hash,
                truncated=False,
                train=train,
                replies=[planned] * len(responses),
                pairing="uniform" if pair else None,
            )
            for reply_id, response in zip(opened.reply_ids, responses, strict=True):
                conversations.finish_reply(
                    session,
                    reply_id=reply_id,
                    text="text",
                    token_ids=response,
                    logprobs=[-1.0] * len(response),
                    state=state,
                    finish_reason="stop",
                )
            return opened

        return self.store.write(work)

    def pick(self, turn: OpenedTurn, value: str) -> str:
        assert turn.comparison_id
        return self._append(NewFeedback("pick", "comparison", turn.comparison_id, value))

    def thumb(self, turn: OpenedTurn, value: str, *, reply: int = 0) -> str:
        return self._append(NewFeedback("thumb", "reply", turn.reply_ids[reply], value))

    def retract(self, feedback_id: str) -> None:
        self.store.write(
            lambda s: feedback.retract(
                s,
                client_id=keys.ensure_client(s, self.client).id,
                user_id=None,
                feedback_id=feedback_id,
            )
        )

    def _append(self, body: NewFeedback) -> str:
        return self.store.write(
            lambda s: (
                feedback.append(
                    s, client_id=keys.ensure_client(s, self.client).id, user_id=None, body=body
                ).id
            )
        )
