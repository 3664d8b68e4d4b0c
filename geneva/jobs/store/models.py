"""The tables of the database of jobs.

Moments are seconds since 1970, by the database's own clock.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Dialect, ForeignKey, Index, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from geneva.jobs.page import UNFIT


class _Fit(TypeDecorator[str]):
    """Text of any origin, as of a UDF's exception; characters that cannot be kept are marked."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else UNFIT.sub("\ufffd", value)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        list[str]: JSON,
        str: _Fit,
    }


class Run(Base):
    """A submission.

    Attributes
    ----------
    sealed
        Everything that it planned exists; until then it is not complete.
    idempotency_key, fingerprint
        Of the request; the same key with another request is refused.
    event_seq
        Number of its latest event.
    document
        Of a flow: its description, the process that carries it out, and what is wanted of it.
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    kind: Mapped[str] = mapped_column(default="backfill")
    cause: Mapped[str] = mapped_column(default="")
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    db: Mapped[str]
    table: Mapped[str]
    columns: Mapped[list[str]]
    priority: Mapped[int] = mapped_column(default=0)
    max_active: Mapped[int | None]
    sealed: Mapped[bool] = mapped_column(default=True)
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    fingerprint: Mapped[str] = mapped_column(default="")
    event_seq: Mapped[int] = mapped_column(default=0)
    document: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_s: Mapped[float]
    ended_s: Mapped[float | None]

    __table_args__ = (
        Index("runs_created", "created_s", "id"),
        Index("runs_state", "state", "created_s"),
    )


class JobRow(Base):
    """One table x columns x filter.

    Attributes
    ----------
    fills
        All columns that it writes: those that share a UDF's struct with ``columns`` too.
    fragments
        Ids of those that it is limited to; null for all.
    operation
        Its path in a flow.
    owner
        The process that has it, as JSON; null when none has. Only the owner of the latest
        ``epoch`` may write progress or publish.
    lease_until_s
        Until when the owner is taken to be alive.
    crashes
        Deaths in a row without progress.
    advanced
        The present driver has computed something.
    rows_before, fragments_before
        Committed by earlier drivers, and of earlier columns; part of ``rows_computed`` and so on.
    not_before_s
        It is not started again before.
    rate
        Rows per second of work, as the present driver measured it; null if none did.
    stopped
        The owner stopped because that was wanted, and is about to exit.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    parent_id: Mapped[str | None]
    superseded: Mapped[bool] = mapped_column(default=False)
    mode: Mapped[str]
    db: Mapped[str]
    table: Mapped[str]
    table_uri: Mapped[str]
    columns: Mapped[list[str]]
    fills: Mapped[list[str]]
    fragments: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    arguments: Mapped[dict[str, Any]]
    ray: Mapped[dict[str, Any]]
    pool: Mapped[str]
    priority: Mapped[int] = mapped_column(default=0)
    cause: Mapped[str] = mapped_column(default="")
    operation: Mapped[str] = mapped_column(default="")
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    wanted: Mapped[str] = mapped_column(default="run")
    epoch: Mapped[int] = mapped_column(default=0)
    owner: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    lease_until_s: Mapped[float | None]
    not_before_s: Mapped[float] = mapped_column(default=0.0)
    crashes: Mapped[int] = mapped_column(default=0)
    advanced: Mapped[bool] = mapped_column(default=False)
    stopped: Mapped[bool] = mapped_column(default=False)
    stop_asked_s: Mapped[float | None]
    created_s: Mapped[float]
    queued_s: Mapped[float]
    started_s: Mapped[float | None]
    ended_s: Mapped[float | None]
    rows_before: Mapped[int] = mapped_column(BigInteger, default=0)
    fragments_before: Mapped[int] = mapped_column(default=0)
    rows_total: Mapped[int | None] = mapped_column(BigInteger)
    total_estimated: Mapped[bool] = mapped_column(default=False)
    rows_computed: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_replayed: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_failed: Mapped[int] = mapped_column(BigInteger, default=0)
    fragments_total: Mapped[int] = mapped_column(default=0)
    fragments_done: Mapped[int] = mapped_column(default=0)
    fragments_committed: Mapped[int] = mapped_column(default=0)
    appliers_ready: Mapped[int] = mapped_column(default=0)
    appliers_wanted: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    rate: Mapped[float | None]
    params: Mapped[dict[str, Any]] = mapped_column(default=dict)
    outputs: Mapped[dict[str, Any]] = mapped_column(default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    artifacts: Mapped[list[Any]] = mapped_column(default=list)
    error: Mapped[str] = mapped_column(default="")
    error_type: Mapped[str] = mapped_column(default="")

    __table_args__ = (
        Index("jobs_run", "run_id"),
        Index("jobs_state", "state", "queued_s"),
        Index("jobs_state_created", "state", "created_s", "id"),
        Index("jobs_pool", "state", "pool"),
        Index("jobs_created", "created_s", "id"),
    )


class TaskRow(Base):
    """One fragment of one column of a job."""

    __tablename__ = "tasks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    column: Mapped[str] = mapped_column(primary_key=True)
    fragment_id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    rows: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_planned: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_computed: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_failed: Mapped[int] = mapped_column(BigInteger, default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    version: Mapped[int | None] = mapped_column(BigInteger)
    seconds_read: Mapped[float] = mapped_column(default=0.0)
    seconds_udf: Mapped[float] = mapped_column(default=0.0)
    seconds_checkpoint: Mapped[float] = mapped_column(default=0.0)
    seconds_write: Mapped[float] = mapped_column(default=0.0)
    seconds_commit: Mapped[float] = mapped_column(default=0.0)
    applier: Mapped[int | None]


class WindowRow(Base):
    """One window of one column of a job, or neighbours that were skipped for one reason.

    Attributes
    ----------
    number
        Its place in the order in which windows open.
    windows
        How many it stands for.
    rows_before
        Computed by earlier drivers; part of ``rows_computed``.
    """

    __tablename__ = "windows"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    column: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    windows: Mapped[int] = mapped_column(default=1)
    rows_planned: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_before: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_computed: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_failed: Mapped[int] = mapped_column(BigInteger, default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)


class Event(Base):
    """Something that happened; numbered without gaps within its run."""

    __tablename__ = "events"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str | None]
    at_s: Mapped[float]
    kind: Mapped[str]
    message: Mapped[str] = mapped_column(default="")
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class FailureRow(Base):
    """One row that the UDF failed on."""

    __tablename__ = "failures"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    column: Mapped[str] = mapped_column(primary_key=True)
    fragment_id: Mapped[int] = mapped_column(primary_key=True)
    row: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    row_id: Mapped[str]  # as text: unsigned 64 bits fit no column
    error: Mapped[str]
    message: Mapped[str] = mapped_column(default="")
    traceback: Mapped[str] = mapped_column(default="")
    input: Mapped[str] = mapped_column(default="")
    attempts: Mapped[int] = mapped_column(default=1)


class Pool(Base):
    """Slots that jobs share; the pool with the empty name is the cap over all."""

    __tablename__ = "pools"

    name: Mapped[str] = mapped_column(primary_key=True)
    slots: Mapped[int | None]


class WatchRow(Base):
    """A column group that a service keeps filled, with the schedulers' notes about it.

    Attributes
    ----------
    digest
        Of the UDF, at the last decision.
    version
        Table version at which there was nothing to do, or a job was made.
    idle_version
        While the table has this version and the UDF is the same, no job is made.
    planned_version
        From which the latest run was planned.
    fired_s
        When its schedule was last acted upon.
    run_id, judged
        The latest run, and whether its end was taken note of.
    failures, not_before_s
        Runs in a row that failed; no run is made before that moment, unless the UDF changes.
    reason
        Why no run is made, or was made.
    changes
        Counts the changes of this row: a decision made on an older one is void.
    """

    __tablename__ = "watches"

    table_uri: Mapped[str] = mapped_column(primary_key=True)
    incarnation: Mapped[str] = mapped_column(primary_key=True)
    db: Mapped[str]
    table: Mapped[str]
    columns: Mapped[list[str]]
    schedule: Mapped[str] = mapped_column(default="")
    digest: Mapped[str] = mapped_column(default="")
    version: Mapped[int | None] = mapped_column(BigInteger)
    idle_version: Mapped[int | None] = mapped_column(BigInteger)
    planned_version: Mapped[int | None] = mapped_column(BigInteger)
    fired_s: Mapped[float | None]
    run_id: Mapped[str | None]
    judged: Mapped[bool] = mapped_column(default=True)
    failures: Mapped[int] = mapped_column(default=0)
    not_before_s: Mapped[float] = mapped_column(default=0.0)
    reason: Mapped[str] = mapped_column(default="")
    changes: Mapped[int] = mapped_column(default=0)


class SchedulerBeat(Base):
    """When a scheduler last looked at the queue; ``name`` says which process it is."""

    __tablename__ = "schedulers"

    name: Mapped[str] = mapped_column(primary_key=True)
    ticked_s: Mapped[float]


class EndedSession(Base):
    """A session of a browser that was ended before its time; kept until that is over."""

    __tablename__ = "ended_sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    until_s: Mapped[float]
