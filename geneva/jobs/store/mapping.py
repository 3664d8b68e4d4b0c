"""Rows of the database as records.

A row is an object of the ORM, or one of what `RUNS`, `JOBS` and so on select: to read a page so
takes 60% of the time, as nobody will change what is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import Row, Select, select

from geneva.engine.control import Wanted
from geneva.engine.process import ProcessId
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
from geneva.jobs.store.models import Base, Event, FailureRow, JobRow, Run, TaskRow, WatchRow
from geneva.model.types import JobState

_Row = Any
_OF_JOB = (
    *("id", "run_id", "parent_id", "db", "table", "arguments", "pool", "priority", "cause"),
    *("reason", "epoch", "rows_total", "rows_computed", "rows_replayed", "rows_failed"),
    *("fragments_total", "fragments_done", "fragments_committed", "appliers_ready"),
    *("appliers_wanted", "seconds", "params", "outputs", "metrics", "artifacts", "error"),
    *("error_type", "total_estimated"),
)  # as they are in a record
_JOB = (
    *_OF_JOB,
    *("rows_before", "advanced", "rate", "mode", "columns", "state", "wanted", "owner"),
    *("created_s", "started_s", "ended_s"),
)
_OF_RUN = ("id", "name", "kind", "cause", "db", "table", "priority", "max_active")
_RUN = (*_OF_RUN, "state", "reason", "columns", "created_s", "ended_s")
_OF_TASK = tuple(n for n in TaskRecord.__dataclass_fields__ if n != "state")
_TASK = (*_OF_TASK, "state")
_EVENT = ("run_id", "seq", "job_id", "at_s", "kind", "message", "data")
_OF_FAILURE = tuple(n for n in FailureRecord.__dataclass_fields__ if n != "row_id")
_FAILURE = (*_OF_FAILURE, "row_id")


def _only(model: type[Base], *names: str) -> Select[Any]:
    return select(*(model.__table__.c[n] for n in names))


RUNS = _only(Run, *_RUN)
JOBS = _only(JobRow, *_JOB, "superseded")
TASKS = _only(TaskRow, *_TASK)
EVENTS = _only(Event, *_EVENT)
FAILURES = _only(FailureRow, *_FAILURE)
_run, _job, _task = attrgetter(*_RUN), attrgetter(*_JOB), attrgetter(*_TASK)
_event, _failure = attrgetter(*_EVENT), attrgetter(*_FAILURE)


def _values(row: _Row, of_entity: Callable[[Any], Sequence[Any]]) -> Sequence[Any]:
    # By name, the values of a row take longer than their way from the database.
    return row if isinstance(row, Row) else of_entity(row)


def moment(seconds: float) -> datetime:
    """Return a moment of the database in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def job_record(job: _Row) -> JobRecord:
    """Return a job."""
    found = _values(job, _job)
    facts = dict(zip(_OF_JOB, found, strict=False))
    rows_before, advanced, rate, mode, columns, *found = found[len(_OF_JOB) :]
    told, wanted, owner, created_s, started_s, ended_s = found[:6]
    computed, total, seconds = facts["rows_computed"], facts["rows_total"], facts["seconds"]
    if rate is None:  # nobody measured it
        here = computed - rows_before if advanced else 0  # by the present driver
        rate = here / seconds if seconds > 0 else 0.0
    state = JobState(told)
    known = not state.ended and total is not None and rate > 0
    return JobRecord(
        **facts,
        mode=Mode(mode),
        columns=tuple(columns),
        state=state,
        wanted=Wanted(wanted),
        process="" if owner is None else str(ProcessId(**owner)),
        created_at=moment(created_s),
        started_at=_moment(started_s),
        ended_at=_moment(ended_s),
        rows_per_s=rate,
        eta_s=max(total - computed, 0) / rate if known else None,
    )


def run_record(run: _Row, jobs: Sequence[_Row]) -> RunRecord:
    """Return a run with its jobs; its reason to wait is that of the latest job that waits.

    A scheduler tells why a job waits without taking the lock of its run.
    """
    found = _values(run, _run)
    facts = dict(zip(_OF_RUN, found, strict=False))
    state, reason, columns, created_s, ended_s = found[len(_OF_RUN) :]
    said = [j.reason for j in jobs if j.state == state and j.reason and not j.superseded]
    return RunRecord(
        **facts,
        state=JobState(state),
        reason=said[-1] if said else reason,
        columns=tuple(columns),
        created_at=moment(created_s),
        ended_at=_moment(ended_s),
        jobs=tuple(map(job_record, jobs)),
    )


def task_record(task: _Row) -> TaskRecord:
    """Return a task."""
    *facts, state = _values(task, _task)
    return TaskRecord(**dict(zip(_OF_TASK, facts, strict=True)), state=TaskState(state))


def event_record(event: _Row) -> EventRecord:
    """Return an event."""
    run_id, seq, job_id, at_s, kind, message, data = _values(event, _event)
    return EventRecord(run_id, seq, job_id, moment(at_s), kind, message, data)


def failure_record(failure: _Row) -> FailureRecord:
    """Return a failure."""
    *facts, row_id = _values(failure, _failure)
    return FailureRecord(**dict(zip(_OF_FAILURE, facts, strict=True)), row_id=int(row_id))


def watch_record(watch: WatchRow) -> WatchRecord:
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
