"""Who has voted in a segment, numbered in the order of their first votes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_voters"
down_revision = "2026_11_21_first_tables"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "voter",
        sa.Column("segment", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["end_user.id"], name=op.f("fk_voter_user_id_end_user")),
        sa.PrimaryKeyConstraint("segment", "user_id", name=op.f("pk_voter")),
    )
    op.execute(
        """
        INSERT INTO voter (segment, user_id, number)
        SELECT segment, user_id, row_number() OVER (PARTITION BY segment ORDER BY first_vote) - 1
        FROM (
            SELECT feedback_event.segment, feedback_event.user_id, min(feedback_event.seq) AS first_vote
            FROM feedback_event JOIN end_user ON end_user.id = feedback_event.user_id
            WHERE feedback_event.kind IN ('pick', 'thumb') AND NOT end_user.anonymous
            GROUP BY feedback_event.segment, feedback_event.user_id
        ) AS voters
        """
    )


def downgrade() -> None:
    op.drop_table("voter")
