"""Rows of the database as records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from geneva.jobs.control import Wanted
from geneva.jobs.process import ProcessId
from geneva.jobs.records import (
    EventRecord,
    FailureRecord,
    JobRecord,
    Mode,
    RunRecord,
    TaskRecord,
    TaskState,
    WatchRecord,
)
from geneva.store.models import Event, Failure, Job, Run, Task, Watch
from geneva.types import JobState


def moment(seconds: float) -> datetime:
    """Return a moment of the database in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def job_record(job: Job) -> JobRecord:
    """Return a job."""
    here = job.rows_computed - job.rows_before if job.advanced else 0  # by the present driver
    rate = here / job.seconds if job.seconds > 0 else 0.0
    live = not JobState(job.state).ended
    known = live and job.rows_total is not None and rate > 0
    left = max((job.rows_total or 0) - job.rows_computed, 0)
    names: tuple[str, ...] = (
        "id",
        "run_id",
        "parent_id",
        "db",
        "table",
        "arguments",
        "pool",
        "priority",
    )
    names += ("cause", "reason", "epoch", "rows_total", "rows_computed", "rows_replayed")
    names += ("rows_failed", "fragments_total", "fragments_done", "fragments_committed")
    names += ("appliers_ready", "appliers_wanted", "seconds", "params", "outputs", "metrics")
    names += ("artifacts", "error", "error_type")
    return JobRecord(
        **{n: getattr(job, n) for n in names},
        mode=Mode(job.mode),
        columns=tuple(job.columns),
        state=JobState(job.state),
        wanted=Wanted(job.wanted),
        process="" if job.owner is None else str(ProcessId(**job.owner)),
        created_at=moment(job.created_s),
        started_at=_moment(job.started_s),
        ended_at=_moment(job.ended_s),
        rows_per_s=rate,
        eta_s=left / rate if known else None,
    )


def run_record(run: Run, jobs: Sequence[Job]) -> RunRecord:
    """Return a run with its jobs; it waits for what the latest of those that wait says.

    A scheduler tells why a job waits without taking the lock of its run.
    """
    said = [j.reason for j in jobs if j.state == run.state and j.reason and not j.superseded]
    return RunRecord(
        id=run.id,
        name=run.name,
        kind=run.kind,
        cause=run.cause,
        state=JobState(run.state),
        reason=said[-1] if said else run.reason,
        db=run.db,
        table=run.table,
        columns=tuple(run.columns),
        priority=run.priority,
        max_active=run.max_active,
        created_at=moment(run.created_s),
        ended_at=_moment(run.ended_s),
        jobs=tuple(job_record(j) for j in jobs),
    )


def task_record(task: Task) -> TaskRecord:
    """Return a task."""
    names = [n for n in TaskRecord.__dataclass_fields__ if n != "state"]
    return TaskRecord(**{n: getattr(task, n) for n in names}, state=TaskState(task.state))


def event_record(event: Event) -> EventRecord:
    """Return an event."""
    return EventRecord(
        event.run_id,
        event.seq,
        event.job_id,
        moment(event.at_s),
        event.kind,
        event.message,
        event.data,
    )


def failure_record(failure: Failure) -> FailureRecord:
    """Return a failure."""
    names = [n for n in FailureRecord.__dataclass_fields__ if n != "row_id"]
    facts = {n: getattr(failure, n) for n in names}
    return FailureRecord(**facts, row_id=int(failure.row_id))


def watch_record(watch: Watch) -> WatchRecord:
    """Return a column group that is kept filled."""
    return WatchRecord(
        db=watch.db,
        table=watch.table,
        columns=tuple(watch.columns),
        schedule=watch.schedule,
        version=watch.version,
        fired_at=_moment(watch.fired_s),
        run_id=watch.run_id,
        failures=watch.failures,
        not_before=_moment(watch.not_before_s or None),
        reason=watch.reason,
    )
