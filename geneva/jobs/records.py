"""The records of runs, jobs, tasks, events and failures, wherever they are kept.

The REST schema is made from these values, and the client makes these values from its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any

from geneva.engine.control import Wanted
from geneva.model.result import WindowState
from geneva.model.types import JobState

DEFAULT_POOL = "default"
STAGES = ("read", "udf", "checkpoint", "write", "commit")
"""Of one fragment, in order; the commit is the driver's, the others are an applier's."""


class Keep(Enum):
    """Stands for a value to leave as it is, where ``None`` means something."""

    KEEP = "keep"


class Mode(StrEnum):
    """Where a job's driver runs."""

    SERVICE = "service"  # a process that the scheduler starts, again and again if need be
    DIRECT = "direct"  # the process that called backfill()


class TaskState(StrEnum):
    """State of one fragment of a job."""

    PLANNED = "PLANNED"
    SKIPPED = "SKIPPED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    COMMITTED = "COMMITTED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for a backfill.

    Attributes
    ----------
    db, table, columns
        What is filled.
    arguments
        Of `geneva.Table.backfill`, by name, without ``progress``.
    ray
        Of `geneva.connect`.
    max_active
        At most so many jobs of the run at once.
    """

    db: str
    table: str
    columns: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ray: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    pool: str = DEFAULT_POOL
    priority: int = 0
    max_active: int | None = None
    cause: str = "submitted"


@dataclass(frozen=True, slots=True)
class Membership:
    """The place of a job in the run of a flow.

    Attributes
    ----------
    operation
        Its path in the flow.
    inputs
        Its inputs, as values of JSON.
    """

    run_id: str
    operation: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One table x columns x filter, with its state and its progress.

    Attributes
    ----------
    parent_id
        The job of which this one is the retry.
    epoch
        How many times a driver was started for it.
    rows_per_s, eta_s
        Rows computed lately per second of work, and the seconds that the rest takes so.
    total_estimated
        Whether ``rows_total`` is by what a filter selected of the rows that were looked at so far.
    params, outputs, metrics, artifacts
        What went in and what came out, for queries over past jobs.
    operation
        Its path in a flow.
    """

    id: str
    run_id: str
    parent_id: str | None
    mode: Mode
    db: str
    table: str
    columns: tuple[str, ...]
    arguments: Mapping[str, Any]
    pool: str
    priority: int
    cause: str
    state: JobState
    reason: str
    wanted: Wanted
    epoch: int
    process: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    rows_total: int | None
    rows_computed: int
    rows_replayed: int
    rows_failed: int
    fragments_total: int
    fragments_done: int
    fragments_committed: int
    appliers_ready: int
    appliers_wanted: int
    seconds: float
    rows_per_s: float
    eta_s: float | None
    params: Mapping[str, Any]
    outputs: Mapping[str, Any]
    metrics: Mapping[str, float]
    artifacts: Sequence[Any]
    error: str
    error_type: str
    total_estimated: bool = False
    operation: str = ""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A submission and the jobs that it became."""

    id: str
    name: str
    kind: str
    cause: str
    state: JobState
    reason: str
    db: str
    table: str
    columns: tuple[str, ...]
    priority: int
    max_active: int | None
    created_at: datetime
    ended_at: datetime | None
    jobs: tuple[JobRecord, ...]


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One fragment of a job.

    Attributes
    ----------
    applier
        Number of the applier that had it last; its log is ``applier-N``.
    seconds_read, seconds_udf, seconds_checkpoint, seconds_write, seconds_commit
        Spent on it by the driver that had it last, summed over threads: 8 threads that call a UDF
        for 2 seconds are 16. A commit's time is shared equally by its fragments.
    """

    column: str
    fragment_id: int
    state: TaskState
    reason: str
    rows: int
    rows_planned: int
    rows_computed: int
    rows_failed: int
    attempts: int
    version: int | None
    seconds_read: float
    seconds_udf: float
    seconds_checkpoint: float
    seconds_write: float
    seconds_commit: float
    applier: int | None


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One window of one column of a job, or neighbours that were skipped for one reason.

    Attributes
    ----------
    number
        Its place in the order in which windows open, from 0.
    key
        Its first value, or the value; with several windows that of the first.
    windows
        How many it stands for.
    rows_planned, rows_computed, rows_failed
        Rows to compute; those with a new value (null for failed ones); those of them that failed.
    seconds
        From its first task to its last, of the driver that had it last.
    """

    column: str
    number: int
    key: str
    state: WindowState
    reason: str
    windows: int
    rows_planned: int
    rows_computed: int
    rows_failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a run; ``seq`` counts from 1 without gaps within it."""

    run_id: str
    seq: int
    job_id: str | None
    at: datetime
    kind: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """One row that the UDF failed on."""

    column: str
    fragment_id: int
    row: int
    row_id: int
    error: str
    message: str
    traceback: str
    input: str
    attempts: int


@dataclass(frozen=True, slots=True)
class FailureWish:
    """Which failures are wanted; an empty filter matches all."""

    run_id: str | None = None
    db: str | None = None
    table: str | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class FailureSample:
    """One row of a group, with the job that failed on it."""

    run_id: str
    job_id: str
    failure: FailureRecord


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Rows of one column on which a UDF failed in the same way.

    Attributes
    ----------
    key
        Names the group in a request to retry it.
    shape
        The message, with numbers, paths and what is quoted left out.
    rows, retrying
        Rows that failed and were not computed since, and those of them in a retry that is queued
        or runs.
    runs
        Those that failed on them, the latest first; at most 20.
    first_at, last_at
        When the first and the last of these jobs was submitted.
    """

    key: str
    db: str
    table: str
    column: str
    error: str
    shape: str
    rows: int
    retrying: int
    fragments: int
    runs: tuple[str, ...]
    first_at: datetime
    last_at: datetime
    samples: tuple[FailureSample, ...]


@dataclass(frozen=True, slots=True)
class FailureGroups:
    """Groups, the largest first; not ``complete`` if there are more rows than one look takes."""

    items: tuple[FailureGroup, ...]
    rows: int
    complete: bool


@dataclass(frozen=True, slots=True)
class StageRecord:
    """The sums over the fragments of one column of a job.

    Attributes
    ----------
    fragments
        Their number by state.
    seconds
        By stage (read, udf, checkpoint, write, commit), summed over threads and appliers.
    rows_failed, fragments_with_failures
        Rows that the UDF failed on, and the fragments that hold them, whatever their state.
    """

    column: str
    fragments: Mapping[TaskState, int]
    seconds: Mapping[str, float]
    rows_failed: int = 0
    fragments_with_failures: int = 0


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One log of a job: ``driver``, or ``applier-N`` with the prints of UDFs.

    Attributes
    ----------
    start, end
        Offsets in bytes of what is kept; what came before ``start`` was removed.
    """

    name: str
    start: int
    end: int
    written_at: datetime


@dataclass(frozen=True, slots=True)
class LogPart:
    """A piece of a log; the next one begins at ``end``.

    Attributes
    ----------
    start, end
        Offsets in bytes. ``start`` is later than what was asked for when that was removed.
    """

    name: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """Slots that jobs share; ``slots`` is ``None`` where there is no cap."""

    name: str
    slots: int | None
    active: int
    queued: int


@dataclass(frozen=True, slots=True)
class WatchRecord:
    """A column group that a service keeps filled, as it was declared with ``auto_backfill``.

    Attributes
    ----------
    schedule
        When; empty for soon after the table has changed.
    version
        Table version at which there was nothing to do, or a run was made.
    run_id
        The latest run.
    failures
        Runs in a row that failed.
    reason
        Why no run is made, or was made.
    """

    db: str
    table: str
    columns: tuple[str, ...]
    schedule: str
    version: int | None
    fired_at: datetime | None
    run_id: str | None
    failures: int
    not_before: datetime | None
    reason: str
