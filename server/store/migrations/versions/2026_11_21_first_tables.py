"""The first tables, the counters at zero, and the segment that always exists."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_first_tables"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
    )
    op.create_index(op.f("ix_audit_entry_at"), "audit_entry", ["at"], unique=False)

    op.create_table(
        "client",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_client")),
        sa.UniqueConstraint("name", name=op.f("uq_client_name")),
    )
    op.create_table(
        "counter",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counter")),
    )
    op.create_table(
        "learner_state",
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("watermark", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("last_run_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("backoff_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.Column("why_not", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("segment", name=op.f("pk_learner_state")),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "segment",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("pairing", sa.JSON(), nullable=False),
        sa.Column("length", sa.String(), nullable=False),
        sa.Column("objectives", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_segment")),
    )
    op.create_table(
        "session_secret",
        sa.Column("kid", sa.String(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_session_secret")),
    )
    op.create_table(
        "adapter",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=False),
        sa.Column("cycle_id", sa.String(), nullable=True),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("manifest_sha256", sa.String(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("trained_through", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["segment"], ["segment.name"], name=op.f("fk_adapter_segment_segment")),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_adapter")),
    )
    op.create_index(op.f("ix_adapter_segment"), "adapter", ["segment"], unique=False)

    op.create_table(
        "api_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["client.id"], name=op.f("fk_api_key_client_id_client")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    op.create_index(op.f("ix_api_key_client_id"), "api_key", ["client_id"], unique=False)

    op.create_table(
        "cycle",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("cancel", sa.Boolean(), nullable=False),
        sa.Column("champion", sa.Integer(), nullable=False),
        sa.Column("since", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("through", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("steps", sa.JSON(), nullable=False),
        sa.Column("verdict", sa.JSON(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("reward_version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["segment"], ["segment.name"], name=op.f("fk_cycle_segment_segment")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cycle")),
    )
    op.create_index(op.f("ix_cycle_segment"), "cycle", ["segment"], unique=False)

    op.create_table(
        "end_user",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("anonymous", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["client.id"], name=op.f("fk_end_user_client_id_client")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_end_user")),
        sa.UniqueConstraint("client_id", "name", name=op.f("uq_end_user_client_id_name")),
    )
    op.create_table(
        "idempotent_answer",
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("body_hash", sa.String(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.id"], name=op.f("fk_idempotent_answer_client_id_client")
        ),
        sa.PrimaryKeyConstraint("client_id", "key", name=op.f("pk_idempotent_answer")),
    )
    op.create_index(
        op.f("ix_idempotent_answer_created_at"), "idempotent_answer", ["created_at"], unique=False
    )

    op.create_table(
        "promotion",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("newest_feedback", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["segment"], ["segment.name"], name=op.f("fk_promotion_segment_segment")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotion")),
        sa.UniqueConstraint("segment", "seq", name=op.f("uq_promotion_segment_seq")),
    )
    op.create_table(
        "adapter_check",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version"], ["adapter.version"], name=op.f("fk_adapter_check_version_adapter")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_check")),
    )
    op.create_index(op.f("ix_adapter_check_version"), "adapter_check", ["version"], unique=False)

    op.create_table(
        "conversation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["client.id"], name=op.f("fk_conversation_client_id_client")),
        sa.ForeignKeyConstraint(["user_id"], ["end_user.id"], name=op.f("fk_conversation_user_id_end_user")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversation")),
    )
    op.create_index(op.f("ix_conversation_user_id"), "conversation", ["user_id"], unique=False)

    op.create_table(
        "feedback_event",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("target_kind", sa.String(), nullable=False),
        sa.Column("target_id", sa.String(), nullable=False),
        sa.Column("turn_id", sa.String(), nullable=True),
        sa.Column("criterion", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("text", sa.String(), nullable=True),
        sa.Column("comment", sa.String(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["client.id"], name=op.f("fk_feedback_event_client_id_client")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["end_user.id"], name=op.f("fk_feedback_event_user_id_end_user")
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_feedback_event")),
        sa.UniqueConstraint("id", name=op.f("uq_feedback_event_id")),
    )
    op.create_index(op.f("ix_feedback_event_segment_seq"), "feedback_event", ["segment", "seq"], unique=False)
    op.create_index(
        op.f("ix_feedback_event_target_id_user_id_kind_criterion_seq"),
        "feedback_event",
        ["target_id", "user_id", "kind", "criterion", "seq"],
        unique=False,
    )
    op.create_index(op.f("ix_feedback_event_turn_id"), "feedback_event", ["turn_id"], unique=False)
    op.create_index(op.f("ix_feedback_event_user_id_seq"), "feedback_event", ["user_id", "seq"], unique=False)

    op.create_table(
        "turn",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("conversation_id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("prompt_token_ids", sa.JSON(), nullable=False),
        sa.Column("template_hash", sa.String(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("train", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["client.id"], name=op.f("fk_turn_client_id_client")),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversation.id"], name=op.f("fk_turn_conversation_id_conversation")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["end_user.id"], name=op.f("fk_turn_user_id_end_user")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turn")),
    )
    op.create_index(op.f("ix_turn_conversation_id"), "turn", ["conversation_id"], unique=False)
    op.create_index(op.f("ix_turn_created_at"), "turn", ["created_at"], unique=False)
    op.create_index(op.f("ix_turn_user_id"), "turn", ["user_id"], unique=False)

    op.create_table(
        "reply",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("turn_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("token_ids", sa.JSON(), nullable=False),
        sa.Column("logprobs", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["turn_id"], ["turn.id"], name=op.f("fk_reply_turn_id_turn")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reply")),
        sa.UniqueConstraint("turn_id", "position", name=op.f("uq_reply_turn_id_position")),
    )
    op.create_index(op.f("ix_reply_state"), "reply", ["state"], unique=False)
    op.create_index(op.f("ix_reply_turn_id"), "reply", ["turn_id"], unique=False)
    op.create_index(op.f("ix_reply_version"), "reply", ["version"], unique=False)

    op.create_table(
        "comparison",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("turn_id", sa.String(), nullable=False),
        sa.Column("first_reply_id", sa.String(), nullable=False),
        sa.Column("second_reply_id", sa.String(), nullable=False),
        sa.Column("pairing", sa.String(), nullable=False),
        sa.Column("propensity", sa.Float(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["first_reply_id"], ["reply.id"], name=op.f("fk_comparison_first_reply_id_reply")
        ),
        sa.ForeignKeyConstraint(
            ["second_reply_id"], ["reply.id"], name=op.f("fk_comparison_second_reply_id_reply")
        ),
        sa.ForeignKeyConstraint(["turn_id"], ["turn.id"], name=op.f("fk_comparison_turn_id_turn")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        sa.UniqueConstraint("turn_id", name=op.f("uq_comparison_turn_id")),
    )
    _fill()


def _fill() -> None:
    counter = sa.table("counter", sa.column("name", sa.String), sa.column("value", sa.BigInteger))
    names = ("feedback_seq", "adapter_version", "reward_version")
    op.bulk_insert(counter, [{"name": name, "value": 0} for name in names])
    segment = sa.table(
        "segment",
        sa.column("name", sa.String),
        sa.column("rollout", sa.String),
        sa.column("pairing", sa.JSON),
        sa.column("length", sa.String),
        sa.column("objectives", sa.JSON),
        sa.column("created_at", sa.DateTime(timezone=True)),
    )
    default = {
        "name": "default",
        "rollout": "gate",
        "pairing": {"share": 0.2, "min_temperature": 0.7},
        "length": "taste",
        "objectives": {"votes": 1.0},
        "created_at": datetime.now(UTC),
    }
    op.bulk_insert(segment, [default])


def downgrade() -> None:
    op.drop_table("comparison")
    op.drop_index(op.f("ix_reply_version"), table_name="reply")
    op.drop_index(op.f("ix_reply_turn_id"), table_name="reply")
    op.drop_index(op.f("ix_reply_state"), table_name="reply")

    op.drop_table("reply")
    op.drop_index(op.f("ix_turn_user_id"), table_name="turn")
    op.drop_index(op.f("ix_turn_created_at"), table_name="turn")
    op.drop_index(op.f("ix_turn_conversation_id"), table_name="turn")

    op.drop_table("turn")
    op.drop_index(op.f("ix_feedback_event_user_id_seq"), table_name="feedback_event")
    op.drop_index(op.f("ix_feedback_event_turn_id"), table_name="feedback_event")
    op.drop_index(op.f("ix_feedback_event_target_id_user_id_kind_criterion_seq"), table_name="feedback_event")
    op.drop_index(op.f("ix_feedback_event_segment_seq"), table_name="feedback_event")

    op.drop_table("feedback_event")
    op.drop_index(op.f("ix_conversation_user_id"), table_name="conversation")

    op.drop_table("conversation")
    op.drop_index(op.f("ix_adapter_check_version"), table_name="adapter_check")

    op.drop_table("adapter_check")
    op.drop_table("promotion")
    op.drop_index(op.f("ix_idempotent_answer_created_at"), table_name="idempotent_answer")

    op.drop_table("idempotent_answer")
    op.drop_table("end_user")
    op.drop_index(op.f("ix_cycle_segment"), table_name="cycle")

    op.drop_table("cycle")
    op.drop_index(op.f("ix_api_key_client_id"), table_name="api_key")

    op.drop_table("api_key")
    op.drop_index(op.f("ix_adapter_segment"), table_name="adapter")

    op.drop_table("adapter")
    op.drop_table("session_secret")
    op.drop_table("segment")
    op.drop_table("lease")
    op.drop_table("learner_state")
    op.drop_table("counter")
    op.drop_table("client")
    op.drop_index(op.f("ix_audit_entry_at"), table_name="audit_entry")

    op.drop_table("audit_entry")
