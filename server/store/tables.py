"""The tables of the record. Rows only: what may be done with them is in the file named for each noun.

Ids are UUIDv7 with a prefix (`turn_0193…`), so they sort by time, but nothing relies on that order: the
order of feedback is `FeedbackEvent.seq`, gapless and given at commit. Times are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, MetaData, TypeDecorator
from sqlmodel import Field, Index, SQLModel, UniqueConstraint

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite forgets time zones, so they are put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


BIG = BigInteger().with_variant(Integer, "sqlite")
"""64-bit everywhere; SQLite's INTEGER already is, and only that spelling may be a rowid."""


class Table(SQLModel):
    """Parent of all tables: one metadata with fixed constraint names, so that migrations can name them."""

    metadata = MetaData(naming_convention=NAMING)


# --- who ---------------------------------------------------------------------------------------------------


class Client(Table, table=True):
    """A frontend. It owns keys, users, turns and votes."""

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    created_at: datetime = Field(sa_type=UtcDateTime)


class ApiKey(Table, table=True):
    """A client's key. Only the SHA-256 of its secret is kept."""

    __tablename__ = "api_key"
    id: str = Field(primary_key=True)
    client_id: str = Field(foreign_key="client.id", index=True)
    name: str
    secret_hash: str
    scopes: list[str] = Field(sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class SessionSecret(Table, table=True):
    """A secret that signs session tokens; two may live at once while rotating."""

    __tablename__ = "session_secret"
    kid: str = Field(primary_key=True)
    secret: str
    created_at: datetime = Field(sa_type=UtcDateTime)
    retired_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class EndUser(Table, table=True):
    """Somebody who talks and votes, known only within one client."""

    __tablename__ = "end_user"
    __table_args__ = (UniqueConstraint("client_id", "name"),)
    id: str = Field(primary_key=True)
    client_id: str = Field(foreign_key="client.id")
    name: str
    anonymous: bool = False
    """Made up for a conversation without a user."""
    created_at: datetime = Field(sa_type=UtcDateTime)

    @property
    def voice(self) -> str:
        """Whose vote it is, to the learner: all anonymous voters of a client are one, since nobody can tell whether
        they are many."""
        return f"anonymous of {self.client_id}" if self.anonymous else self.id


class AuditEntry(Table, table=True):
    """What an operator did."""

    __tablename__ = "audit_entry"
    id: str = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    actor: str
    action: str
    target: str
    detail: dict[str, Any] = Field(sa_type=JSON)


# --- what was said -----------------------------------------------------------------------------------------


class Conversation(Table, table=True):
    """Turns that belong together."""

    id: str = Field(primary_key=True)
    client_id: str = Field(foreign_key="client.id")
    user_id: str = Field(foreign_key="end_user.id", index=True)
    segment: str
    created_at: datetime = Field(sa_type=UtcDateTime)


class Turn(Table, table=True):
    """One user message, the history it was asked in, and exactly what the policy was given."""

    id: str = Field(primary_key=True)
    conversation_id: str = Field(foreign_key="conversation.id", index=True)
    client_id: str = Field(foreign_key="client.id")
    user_id: str = Field(foreign_key="end_user.id", index=True)
    segment: str
    messages: list[dict[str, Any]] = Field(sa_type=JSON)
    prompt_token_ids: list[int] = Field(sa_type=JSON)
    template_hash: str
    truncated: bool = False
    train: bool = True
    """False keeps the turn out of training, votes on it included."""
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)


class Reply(Table, table=True):
    """One answer, and which weights wrote it."""

    id: str = Field(primary_key=True)
    turn_id: str = Field(foreign_key="turn.id", index=True)
    position: int
    """Index among the turn's choices. In a pair, 0 is shown first."""
    version: int
    seed: int = Field(sa_type=BIG)
    sampling: dict[str, Any] = Field(sa_type=JSON)
    purpose: str
    """`single`, `choice` (n > 1), `pair`, or `pinned` (an operator named the version)."""
    state: str
    """`streaming`, `done`, `cancelled` (the client left, or the server was stopped; the partial is kept) or
    `interrupted` (a crash, the engine failed, or it took too long; what was written is kept)."""
    finish_reason: str | None = None
    text: str = ""
    token_ids: list[int] = Field(default_factory=list, sa_type=JSON)
    logprobs: list[float] = Field(default_factory=list, sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    __table_args__ = (UniqueConstraint("turn_id", "position"), Index(None, "version"), Index(None, "state"))


class Comparison(Table, table=True):
    """The record of a pair: which reply stood first, and how the pair came about."""

    id: str = Field(primary_key=True)
    turn_id: str = Field(foreign_key="turn.id", unique=True)
    first_reply_id: str = Field(foreign_key="reply.id")
    second_reply_id: str = Field(foreign_key="reply.id")
    pairing: str
    """How the two were chosen: `uniform`, so far."""
    propensity: float
    """Probability with which this turn became this kind of pair."""
    state: str
    """`open`, or `void` when both texts came out equal: a void comparison takes no pick."""
    created_at: datetime = Field(sa_type=UtcDateTime)


class FeedbackEvent(Table, table=True):
    """One thing a user said, or took back. Never changed, except that erasure blanks its text."""

    __tablename__ = "feedback_event"
    seq: int = Field(primary_key=True, sa_type=BIG)
    """Gapless, in commit order. Everything that must not miss a vote reads by this."""
    id: str = Field(unique=True)
    kind: str
    """`pick`, `thumb`, `edit`, `rating`, `signal`, or `retraction` (whose `target_id` is a feedback id)."""
    client_id: str = Field(foreign_key="client.id")
    user_id: str = Field(foreign_key="end_user.id")
    segment: str
    target_kind: str
    """`comparison`, `reply`, `conversation` or `feedback`."""
    target_id: str
    turn_id: str | None = Field(default=None)
    criterion: str = ""
    """What a pick or rating was about; for signals, the signal's name."""
    value: str | None = None
    score: float | None = None
    text: str | None = None
    comment: str | None = None
    tags: list[str] = Field(default_factory=list, sa_type=JSON)
    seconds: float | None = None
    status: str = "counted"
    """As received: `counted`, `late` or `quarantined`. Whether it was retracted is told by a later row."""
    reason: str | None = None
    created_at: datetime = Field(sa_type=UtcDateTime)
    __table_args__ = (
        Index(None, "target_id", "user_id", "kind", "criterion", "seq"),
        Index(None, "segment", "seq"),
        Index(None, "user_id", "seq"),
        Index(None, "turn_id"),
    )


class Voter(Table, table=True):
    """Somebody who has voted in a segment, and how many had before. From this follows whether they train or judge."""

    segment: str = Field(primary_key=True)
    user_id: str = Field(primary_key=True, foreign_key="end_user.id")
    number: int


class IdempotentAnswer(Table, table=True):
    """The first answer to an `Idempotency-Key`, kept so that a retry gets it again."""

    __tablename__ = "idempotent_answer"
    client_id: str = Field(primary_key=True, foreign_key="client.id")
    key: str = Field(primary_key=True)
    body_hash: str
    answer: dict[str, Any] = Field(sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcDateTime, index=True)


# --- what serves -------------------------------------------------------------------------------------------


class Segment(Table, table=True):
    """A lane with its own lineage and policies. Who serves in it is in the promotion log, not here."""

    name: str = Field(primary_key=True)
    rollout: str = "gate"
    """What happens to a version that passed the gate: `manual` waits for an operator, `gate` promotes it."""
    pairing: dict[str, Any] = Field(sa_type=JSON)
    """`{"share": 0.2, "min_temperature": 0.7}`."""
    length: str = "taste"
    """Whether length is a `taste` to learn or a `nuisance` to control for."""
    objectives: dict[str, float] = Field(sa_type=JSON)
    """Weight of each reward component; `{"votes": 1.0}` so far."""
    created_at: datetime = Field(sa_type=UtcDateTime)


class Adapter(Table, table=True):
    """A published version. The number is never used twice; the folder is never changed."""

    version: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    segment: str = Field(foreign_key="segment.name", index=True)
    parent: int
    """The version it was trained on from; 0 is the bare base."""
    cycle_id: str | None = None
    path: str
    """Relative to the artifacts' root."""
    manifest: dict[str, Any] = Field(sa_type=JSON)
    manifest_sha256: str
    passed: bool
    """What the gate said. A refused version is kept, for its reasons, and never promoted automatically."""
    trained_through: int = Field(default=0, sa_type=BIG)
    """Newest feedback `seq` that its cycle read."""
    created_at: datetime = Field(sa_type=UtcDateTime)


class AdapterCheck(Table, table=True):
    """What a server found when it loaded a version: `verified`, or `rejected` and why."""

    __tablename__ = "adapter_check"
    id: int | None = Field(default=None, primary_key=True)
    version: int = Field(foreign_key="adapter.version", index=True)
    outcome: str
    detail: str
    at: datetime = Field(sa_type=UtcDateTime)


class Promotion(Table, table=True):
    """One row of a segment's log. The last row is the segment's whole state; rows are never changed."""

    id: str = Field(primary_key=True)
    segment: str = Field(foreign_key="segment.name")
    seq: int
    """1, 2, 3 … within the segment. Two writers that saw the same last row collide here: that is the 409."""
    kind: str
    """`promote`, `rollback`, `rollforward`, `pin`, `unpin`."""
    version: int
    """Champion after this row."""
    previous: int
    """Champion before it."""
    pinned: bool = False
    held: bool = False
    """After a rollback nothing is promoted automatically until `unpin`, or enough newer votes were trained on."""
    newest_feedback: int = Field(default=0, sa_type=BIG)
    """Newest feedback `seq` when this row was written: votes after it are newer than this move."""
    by: str
    reason: str
    created_at: datetime = Field(sa_type=UtcDateTime)
    __table_args__ = (UniqueConstraint("segment", "seq"),)


# --- what was learned --------------------------------------------------------------------------------------


class Cycle(Table, table=True):
    """One learner pass. Its inputs are a range of `seq` and filters; who was in it is computed from those."""

    id: str = Field(primary_key=True)
    segment: str = Field(foreign_key="segment.name", index=True)
    state: str
    """`requested`, `running`, `promoted`, `published`, `refused`, `rehearsed` (a dry run that would have passed),
    `failed` or `cancelled`."""
    step: str = ""
    progress: float = 0.0
    """Share of the current step that is done, 0..1."""
    by: str
    """Who or what asked for it: `schedule`, `votes`, or an operator."""
    dry_run: bool = False
    cancel: bool = False
    """Set by an operator; the learner stops at the next step or checkpoint."""
    champion: int = 0
    """Version that served when it began; the result is judged against it and continues it."""
    since: int = Field(default=0, sa_type=BIG)
    """Watermark before: newest `seq` read by the segment's previous finished cycle."""
    through: int = Field(default=0, sa_type=BIG)
    """Newest `seq` this cycle reads."""
    seed: int = 0
    config: dict[str, Any] = Field(sa_type=JSON)
    """LearnerConfig, filters, caps and split salt: with `through`, all that decides what it reads."""
    steps: list[dict[str, Any]] = Field(sa_type=JSON)
    """One entry per finished step: name, seconds, metrics."""
    verdict: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    version: int | None = None
    reward_version: int | None = None
    reason: str = ""
    """Why it ended as it did, in one sentence."""
    created_at: datetime = Field(sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class LearnerState(Table, table=True):
    """What must survive a restart of the learner, per segment."""

    __tablename__ = "learner_state"
    segment: str = Field(primary_key=True)
    watermark: int = Field(default=0, sa_type=BIG)
    last_run_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    next_due_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    backoff_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    refusals: int = 0
    """Refusals in a row."""
    why_not: str = ""
    """Why it is not training, as the learner said last; `cycles.training` says whether that still holds."""


class Lease(Table, table=True):
    """Who may work. The epoch grows with each holder; whoever carries an old one writes nothing."""

    name: str = Field(primary_key=True)
    holder: str
    epoch: int
    heartbeat_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)


class Counter(Table, table=True):
    """A number that only grows: `feedback_seq`, `adapter_version`, `reward_version`."""

    name: str = Field(primary_key=True)
    value: int = Field(sa_type=BIG)
