"""Columns that a service keeps filled, and the fragments that a job is limited to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Create the table and the column."""
    op.create_table(
        "watches",
        sa.Column("table_uri", sa.Text(), nullable=False),
        sa.Column("incarnation", sa.Text(), nullable=False),
        sa.Column("db", sa.Text(), nullable=False),
        sa.Column("table", sa.Text(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("idle_version", sa.BigInteger(), nullable=True),
        sa.Column("planned_version", sa.BigInteger(), nullable=True),
        sa.Column("fired_s", sa.Double(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("judged", sa.Boolean(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before_s", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("table_uri", "incarnation"),
    )
    op.add_column("jobs", sa.Column("fragments", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("jobs", "fragments")
    op.drop_table("watches")
