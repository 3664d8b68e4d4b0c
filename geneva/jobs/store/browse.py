"""The queries of pages over the database of jobs: lists of runs, one run as a whole."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, func, or_, select

from geneva.errors import NoSuchJobError, SettingError
from geneva.jobs.records import EventRecord, JobRecord, RunRecord, TaskRecord, TaskState
from geneva.jobs.store.database import Database
from geneva.jobs.store.mapping import EVENTS, TASKS, job_record, moment, run_record
from geneva.jobs.store.models import Event, JobRow, Run, TaskRow
from geneva.model.types import JobState

_SORTS = {
    "created": Run.created_s,
    "ended": Run.ended_s,
    "priority": Run.priority,
    "state": Run.state,
    "table": Run.table,
}
MAX_JOBS = 300
"""Jobs of one timeline."""


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs are wanted; an empty filter matches all.

    Attributes
    ----------
    text
        Is found in the id, name, table, columns or reason, whatever its case.
    since, until
        Moments of the submission, half-open.
    sort
        ``created``, ``ended``, ``priority``, ``state`` or ``table``; with ``-`` before it, down.
    page
        From 1.
    """

    states: tuple[JobState, ...] = ()
    table: str = ""
    column: str = ""
    cause: str = ""
    text: str = ""
    since: datetime | None = None
    until: datetime | None = None
    sort: str = "-created"
    page: int = 1
    limit: int = 50


@dataclass(frozen=True, slots=True)
class RunsFound:
    """One page of runs; ``counts`` are of all states, whichever are wanted."""

    runs: Sequence[RunRecord]
    counts: Counter[JobState]
    total: int


@dataclass(frozen=True, slots=True)
class JobSpan:
    """A job on a timeline, and since when it was in which state, in order."""

    job: JobRecord
    changes: Sequence[tuple[datetime, JobState]]


@dataclass(frozen=True, slots=True)
class Fragments:
    """The fragments of one column of a job in order, with their states and their failed rows."""

    ids: Sequence[int]
    states: Sequence[TaskState]
    failed: Sequence[int]


class Browser:
    """Reads an SQL database of jobs for people."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- runs ----------------------------------------------------------------------------

    def runs(self, asked: RunQuery) -> RunsFound:
        """Return a page of runs, each with the jobs that no retry has taken the place of."""
        with self._database.read() as session:
            per_state = _where(select(Run.state, func.count()), replace(asked, states=()))
            counts = Counter[JobState]()
            for state, number in session.execute(per_state.group_by(Run.state)):
                counts[JobState(state)] = number
            wanted = _where(select(Run), asked).order_by(*_order(asked.sort))
            wanted = wanted.offset((asked.page - 1) * asked.limit).limit(asked.limit)
            found = list(session.scalars(wanted))
            jobs: dict[str, list[JobRow]] = {run.id: [] for run in found}
            of_them = select(JobRow).where(JobRow.run_id.in_(jobs), JobRow.superseded.is_(False))
            for job in session.scalars(of_them.order_by(JobRow.created_s, JobRow.id)):
                jobs[job.run_id].append(job)
            records = [run_record(run, jobs[run.id]) for run in found]
        total = sum(n for s, n in counts.items() if not asked.states or s in asked.states)
        return RunsFound(records, counts, total)

    def tables(self) -> list[str]:
        """Return the tables of all runs."""
        return self._distinct(Run.table)

    def causes(self) -> list[str]:
        """Return the causes of all runs."""
        return self._distinct(Run.cause)

    def _distinct(self, column: Any) -> list[str]:
        with self._database.read() as session:
            return list(session.scalars(select(column).distinct().order_by(column)))

    # --- one run -------------------------------------------------------------------------

    def latest_events(self, run_id: str, limit: int) -> list[EventRecord]:
        """Return the latest events of a run, the newest first."""
        wanted = select(Event).where(Event.run_id == run_id).order_by(Event.seq.desc())
        with self._database.read() as session:
            return [EVENTS.record(e) for e in session.scalars(wanted.limit(limit))]

    def fragments(self, job_id: str, column: str) -> Fragments:
        """Return the fragments of one column of a job."""
        wanted = select(TaskRow.fragment_id, TaskRow.state, TaskRow.rows_failed)
        wanted = wanted.where(TaskRow.job_id == job_id, TaskRow.column == column)
        with self._database.read() as session:
            found = session.execute(wanted.order_by(TaskRow.fragment_id)).all()
        names = {s.value: s for s in TaskState}
        ids, states, failed = zip(*found, strict=True) if found else ((), (), ())
        return Fragments(ids, [names[state] for state in states], failed)

    def fragment(self, job_id: str, column: str, fragment_id: int) -> TaskRecord:
        """Return one fragment of a job.

        Raises
        ------
        NoSuchJobError
            The job has none such.
        """
        with self._database.read() as session:
            found = session.get(TaskRow, (job_id, column, fragment_id))
            if found is None:
                raise NoSuchJobError(f"job {job_id!r} has no fragment {fragment_id} of {column!r}")
            return TASKS.record(found)

    # --- time ----------------------------------------------------------------------------

    def spans(self, since: datetime, until: datetime) -> list[JobSpan]:
        """Return the jobs that existed in a stretch of time, the newest `MAX_JOBS`, oldest first.

        Those that ended before it are left out, as are those that were made after it.
        """
        alive = or_(JobRow.ended_s.is_(None), JobRow.ended_s >= since.timestamp())
        wanted = select(JobRow).where(JobRow.created_s <= until.timestamp(), alive)
        wanted = wanted.order_by(JobRow.created_s.desc(), JobRow.id).limit(MAX_JOBS)
        with self._database.read() as session:
            jobs = list(session.scalars(wanted))[::-1]
            moved = select(Event).where(
                Event.run_id.in_({j.run_id for j in jobs}), Event.kind == "state"
            )
            changes: dict[str | None, list[tuple[datetime, JobState]]] = defaultdict(list)
            for event in session.scalars(moved.order_by(Event.run_id, Event.seq)):
                changes[event.job_id].append((moment(event.at_s), JobState(event.data["to"])))
            return [JobSpan(job_record(j), changes[j.id]) for j in jobs]


def _where(wanted: Any, asked: RunQuery) -> Any:
    columns = cast(Run.columns, Text)
    if asked.states:
        wanted = wanted.where(Run.state.in_([s.value for s in asked.states]))
    if asked.table:
        wanted = wanted.where(Run.table == asked.table)
    if asked.cause:
        wanted = wanted.where(Run.cause == asked.cause)
    if asked.column:
        wanted = wanted.where(columns.contains(json.dumps(asked.column), autoescape=True))
    if asked.text:
        places = (Run.id, Run.name, Run.table, columns, Run.reason)
        low = asked.text.lower()
        wanted = wanted.where(or_(*(func.lower(p).contains(low, autoescape=True) for p in places)))
    if asked.since is not None:
        wanted = wanted.where(Run.created_s >= asked.since.timestamp())
    if asked.until is not None:
        wanted = wanted.where(Run.created_s < asked.until.timestamp())
    return wanted


def _order(sort: str) -> tuple[Any, ...]:
    column = _SORTS.get(sort.removeprefix("-"))
    if column is None:
        raise SettingError(f"sort={sort!r} must be one of {', '.join(_SORTS)}, perhaps with a -")
    down = sort.startswith("-")
    first = column.desc() if down else column.asc()
    return first.nulls_last(), Run.created_s.desc(), Run.id
