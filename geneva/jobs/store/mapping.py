"""Records from rows, as the fields of the record declare it.

A field stands in the column of its name, or of its name with the unit of the database (`created_at`
in `created_s`), and its type says what becomes of the value. Fields without a column are derived.

A row is an object of the ORM, or one that `Reading.select` gives: to read a page so takes 60% of
the time, as nobody will change what is on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from enum import EnumType
from operator import attrgetter
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from sqlalchemy import Row, select

from geneva.engine.process import ProcessId
from geneva.jobs.records import (
    EventRecord,
    FailureRecord,
    JobRecord,
    RunRecord,
    TaskRecord,
    WatchRecord,
    WindowRecord,
)
from geneva.jobs.store.models import (
    Base,
    Event,
    FailureRow,
    JobRow,
    Run,
    TaskRow,
    WatchRow,
    WindowRow,
)

R = TypeVar("R")
_Row = Any


def moment(seconds: float) -> datetime:
    """Return a moment of the database in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


class Reading(Generic[R]):
    """The columns of which a record is made, and the way from their values to its fields.

    Parameters
    ----------
    also
        Columns that are read for the derived fields.
    """

    def __init__(self, record: type[R], model: type[Base], *also: str) -> None:
        columns = model.__table__.c
        stands = {f.name: _column_of(f.name, columns.keys()) for f in fields(record)}  # type: ignore[arg-type]
        self.columns = {name: column for name, column in stands.items() if column is not None}
        names = [*self.columns.values(), *also]
        self.select = select(*(columns[n] for n in names))
        self._record, self._values = record, attrgetter(*names)
        self.model = model
        hints = get_type_hints(record)
        conversions = (
            (k, _conversion(hints[name], columns[column].type.python_type))
            for k, (name, column) in enumerate(self.columns.items())
        )
        self._conversions = [(k, convert) for k, convert in conversions if convert is not None]

    def facts(self, row: _Row) -> tuple[dict[str, Any], list[Any]]:
        """Return the fields that have columns, and the values of the columns beside them."""
        # By name, the values of a row take longer than their way from the database.
        values = list(row if isinstance(row, Row) else self._values(row))
        for k, convert in self._conversions:
            values[k] = convert(values[k])
        return dict(zip(self.columns, values, strict=False)), values[len(self.columns) :]

    def record(self, row: _Row) -> R:
        """Return the record of a row that has no derived fields."""
        return self._record(**self.facts(row)[0])


def _column_of(field: str, columns: Sequence[str]) -> str | None:
    return next((n for n in (field, f"{field.removesuffix('_at')}_s") if n in columns), None)


def _conversion(hint: Any, stored: type) -> Callable[[Any], Any] | None:
    """Return the way from a value of a column to one of a field; ``None`` if it is the same."""
    optional = type(None) in get_args(hint)
    kind = next(k for k in get_args(hint) if k is not type(None)) if optional else hint
    if kind is datetime:
        return (lambda seconds: moment(seconds) if seconds else None) if optional else moment
    if get_origin(kind) is tuple:
        return tuple
    if isinstance(kind, EnumType) or (kind is int and stored is not int):
        convert: Callable[[Any], Any] = kind
        return convert
    return None


JOBS = Reading(JobRecord, JobRow, "rows_before", "advanced", "rate", "owner", "superseded")
RUNS = Reading(RunRecord, Run)
TASKS = Reading(TaskRecord, TaskRow)
WINDOWS = Reading(WindowRecord, WindowRow)
EVENTS = Reading(EventRecord, Event)
FAILURES = Reading(FailureRecord, FailureRow)
WATCHES = Reading(WatchRecord, WatchRow)


def job_record(job: _Row) -> JobRecord:
    """Return a job, with its rate, the rest of its time and its process."""
    facts, (rows_before, advanced, rate, owner, _) = JOBS.facts(job)
    computed, total, seconds = facts["rows_computed"], facts["rows_total"], facts["seconds"]
    if rate is None:  # nobody measured it
        here = computed - rows_before if advanced else 0  # by the present driver
        rate = here / seconds if seconds > 0 else 0.0
    known = not facts["state"].ended and total is not None and rate > 0
    return JobRecord(
        **facts,
        process="" if owner is None else str(ProcessId(**owner)),
        rows_per_s=rate,
        eta_s=max(total - computed, 0) / rate if known else None,
    )


def run_record(run: _Row, jobs: Sequence[_Row]) -> RunRecord:
    """Return a run with its jobs; its reason to wait is that of the latest job that waits.

    A scheduler tells why a job waits without taking the lock of its run.
    """
    facts, _ = RUNS.facts(run)
    reasons = [j.reason for j in jobs if j.state == run.state and j.reason and not j.superseded]
    facts["reason"] = reasons[-1] if reasons else facts["reason"]
    return RunRecord(**facts, jobs=tuple(map(job_record, jobs)))
