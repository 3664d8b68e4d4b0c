"""The tables of the database of jobs, as the first release has them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "r0001"  # those of development versions were "0001" to "0006"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Create them."""
    _runs()
    _jobs()
    _parts_of_jobs()
    _service()


def downgrade() -> None:
    """Remove them."""
    parts = ("windows", "tasks", "failures", "jobs", "events", "runs")
    for name in (*parts, "pools", "watches", "schedulers", "ended_sessions"):
        op.drop_table(name)


def _columns(kind: Any, names: str, *, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names.split()]


def _runs() -> None:
    op.create_table(
        "runs",
        *_columns(sa.Text(), "id name kind cause state reason db table fingerprint"),
        *_columns(sa.Text(), "idempotency_key", nullable=True),
        *_columns(sa.JSON(), "columns"),
        *_columns(sa.JSON(), "document", nullable=True),
        *_columns(sa.Integer(), "priority event_seq"),
        *_columns(sa.Integer(), "max_active", nullable=True),
        *_columns(sa.Boolean(), "sealed"),
        *_columns(sa.Double(), "created_s"),
        *_columns(sa.Double(), "ended_s", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("idempotency_key"),
    )
    op.create_index("runs_created", "runs", ["created_s", "id"])
    op.create_index("runs_state", "runs", ["state", "created_s"])
    op.create_table(
        "events",
        *_columns(sa.Text(), "run_id kind message"),
        *_columns(sa.Text(), "job_id", nullable=True),
        *_columns(sa.Integer(), "seq"),
        *_columns(sa.Double(), "at_s"),
        *_columns(sa.JSON(), "data"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seq"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        *_columns(
            sa.Text(), "id run_id mode db table table_uri pool cause operation state reason wanted"
        ),
        *_columns(sa.Text(), "error error_type"),
        *_columns(sa.Text(), "parent_id", nullable=True),
        *_columns(sa.JSON(), "columns fills arguments ray params outputs metrics artifacts"),
        *_columns(sa.JSON(none_as_null=True), "fragments owner", nullable=True),
        *_columns(sa.Integer(), "priority epoch crashes fragments_before fragments_total"),
        *_columns(sa.Integer(), "fragments_done fragments_committed"),
        *_columns(sa.Integer(), "appliers_ready appliers_wanted"),
        *_columns(sa.BigInteger(), "rows_before rows_computed rows_replayed rows_failed"),
        *_columns(sa.BigInteger(), "rows_total", nullable=True),
        *_columns(sa.Boolean(), "superseded advanced stopped total_estimated"),
        *_columns(sa.Double(), "created_s queued_s not_before_s seconds"),
        *_columns(sa.Double(), "lease_until_s stop_asked_s started_s ended_s rate", nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("jobs_created", "jobs", ["created_s", "id"])
    op.create_index("jobs_pool", "jobs", ["state", "pool"])
    op.create_index("jobs_run", "jobs", ["run_id"])
    op.create_index("jobs_state", "jobs", ["state", "queued_s"])
    op.create_index("jobs_state_created", "jobs", ["state", "created_s", "id"])


def _parts_of_jobs() -> None:
    op.create_table(
        "failures",
        *_columns(sa.Text(), "job_id column row_id error message traceback input"),
        *_columns(sa.Integer(), "fragment_id attempts"),
        *_columns(sa.BigInteger(), "row"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "column", "fragment_id", "row"),
    )
    op.create_table(
        "tasks",
        *_columns(sa.Text(), "job_id column state reason"),
        *_columns(sa.Integer(), "fragment_id attempts"),
        *_columns(sa.Integer(), "applier", nullable=True),
        *_columns(sa.BigInteger(), "rows rows_planned rows_computed rows_failed"),
        *_columns(sa.BigInteger(), "version", nullable=True),
        *_columns(sa.Double(), "seconds_read seconds_udf seconds_checkpoint seconds_write"),
        *_columns(sa.Double(), "seconds_commit"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "column", "fragment_id"),
    )
    op.create_table(
        "windows",
        *_columns(sa.Text(), "job_id column key state reason"),
        *_columns(sa.Integer(), "number windows"),
        *_columns(sa.BigInteger(), "rows_planned rows_before rows_computed rows_failed"),
        *_columns(sa.Double(), "seconds"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "column", "number"),
    )


def _service() -> None:
    op.create_table(
        "pools",
        *_columns(sa.Text(), "name"),
        *_columns(sa.Integer(), "slots", nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "watches",
        *_columns(sa.Text(), "table_uri incarnation db table schedule digest reason"),
        *_columns(sa.Text(), "run_id", nullable=True),
        *_columns(sa.JSON(), "columns"),
        *_columns(sa.Boolean(), "judged"),
        *_columns(sa.Integer(), "failures changes"),
        *_columns(sa.BigInteger(), "version idle_version planned_version", nullable=True),
        *_columns(sa.Double(), "not_before_s"),
        *_columns(sa.Double(), "fired_s", nullable=True),
        sa.PrimaryKeyConstraint("table_uri", "incarnation"),
    )
    op.create_table(
        "schedulers",
        *_columns(sa.Text(), "name"),
        *_columns(sa.Double(), "ticked_s"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "ended_sessions",
        *_columns(sa.Text(), "id"),
        *_columns(sa.Double(), "until_s"),
        sa.PrimaryKeyConstraint("id"),
    )
