"""Time of commits, and who carried out a task."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the columns; of tasks that are there already neither is known."""
    zero = sa.text("0")
    op.add_column(
        "tasks", sa.Column("seconds_commit", sa.Double(), nullable=False, server_default=zero)
    )
    op.add_column("tasks", sa.Column("applier", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Remove them."""
    for name in ("seconds_commit", "applier"):
        op.drop_column("tasks", name)
