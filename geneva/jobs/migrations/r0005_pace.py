"""How quick a job is now, and whether its total is an estimate."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Add the columns; of the jobs so far nobody measured the rate."""
    op.add_column(
        "jobs",
        sa.Column("total_estimated", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column("jobs", sa.Column("rate", sa.Double(), nullable=True))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("jobs", "rate")
    op.drop_column("jobs", "total_estimated")
