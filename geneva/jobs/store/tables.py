"""Records as Arrow tables, and SQL over them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from types import UnionType
from typing import Any, Protocol, get_args, get_type_hints

import pyarrow as pa

from geneva.engine.control import Wanted
from geneva.jobs.page import MAX_LIMIT, Page, Wish
from geneva.jobs.records import (
    EventRecord,
    FailureGroups,
    FailureRecord,
    FailureWish,
    JobRecord,
    RunRecord,
    TaskRecord,
    TaskState,
    WindowRecord,
)
from geneva.model.result import WindowState


class Source(Protocol):
    """Where records come from: a `Store`, or a `Client` of a service."""

    def run(self, run_id: str) -> RunRecord:
        """Return a run."""

    def job(self, job_id: str) -> JobRecord:
        """Return a job."""

    def want(self, run_id: str, wanted: Wanted) -> RunRecord:
        """Pass a wish on to a run."""

    def retry(self, run_id: str) -> RunRecord:
        """Queue the jobs again that did not succeed."""

    def runs(self, wish: Wish) -> Page[RunRecord]:
        """Return a page of runs."""

    def jobs(self, wish: Wish) -> Page[JobRecord]:
        """Return a page of jobs."""

    def tasks(
        self,
        job_id: str,
        state: TaskState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[TaskRecord]:
        """Return a page of the fragments of a job."""

    def windows(
        self,
        job_id: str,
        state: WindowState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[WindowRecord]:
        """Return a page of the windows of a job."""

    def failures(
        self, job_id: str, limit: int = 100, cursor: str | None = None
    ) -> Page[FailureRecord]:
        """Return a page of the rows on which a UDF failed."""

    def failure_groups(self, wish: FailureWish) -> FailureGroups:
        """Return groups of rows on which a UDF failed and that nobody computed since."""

    def retry_failures(self, wish: FailureWish, key: str) -> RunRecord:
        """Queue a run limited to the rows of a group."""

    def retry_windows(self, job_id: str, keys: Sequence[str] = ()) -> RunRecord:
        """Queue a run of windows of a job, by default of those that failed."""

    def events(self, run_id: str, after: int = 0, limit: int = MAX_LIMIT) -> Page[EventRecord]:
        """Return events of a run."""


_TYPES: dict[Any, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    tuple[str, ...]: pa.list_(pa.string()),
}


def all_runs(source: Source, wish: Wish = Wish()) -> Iterator[RunRecord]:  # noqa: B008 - frozen
    """Yield runs of all pages."""
    return _all(lambda cursor: source.runs(replace(wish, limit=MAX_LIMIT, cursor=cursor)))


def all_jobs(source: Source, wish: Wish = Wish()) -> Iterator[JobRecord]:  # noqa: B008 - frozen
    """Yield jobs of all pages."""
    return _all(lambda cursor: source.jobs(replace(wish, limit=MAX_LIMIT, cursor=cursor)))


def _all(page_at: Callable[[str | None], Page[Any]]) -> Iterator[Any]:
    page = page_at(None)
    yield from page.items
    while page.next is not None:
        page = page_at(page.next)
        yield from page.items


def as_table(kind: type, records: Iterable[Any], **extra: pa.DataType) -> pa.Table:
    """Return records as a table; nested values are JSON text, moments are in UTC.

    Parameters
    ----------
    extra
        Further columns; ``records`` are then pairs of a record and their values.
    """
    hints = get_type_hints(kind)
    schema = pa.schema(extra | {n: _type(h) for n, h in hints.items() if n != "jobs"})
    rows = []
    for item in records:
        record, more = item if extra else (item, {})
        facts = {k: v for k, v in asdict(record).items() if k != "jobs"}
        rows.append({k: _value(v) for k, v in (more | facts).items()})
    return pa.Table.from_pylist(rows, schema)


def _type(hint: Any) -> pa.DataType:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((_TYPES[k] for k in kinds if k in _TYPES), pa.string())


def _value(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return [*value] if isinstance(value, tuple) else value


def query(source: Source, sql: str) -> pa.Table:
    """Run SQL over ``runs``, ``jobs``, ``tasks``, ``windows``, ``failures`` and ``events``."""
    from datafusion import SessionContext

    context = SessionContext()
    words = set(re.findall(r"\w+", sql.lower()))
    runs, jobs = [*all_runs(source)], [*all_jobs(source)]
    tables = {"runs": as_table(RunRecord, runs), "jobs": as_table(JobRecord, jobs)}
    text = pa.string()
    if "tasks" in words:
        tables["tasks"] = as_table(
            TaskRecord,
            ((t, {"job_id": j.id}) for j in jobs for t in _tasks(source, j)),
            job_id=text,
        )
    if "windows" in words:
        held = ((w, {"job_id": j.id}) for j in jobs for w in windows_of(source, j.id))
        tables["windows"] = as_table(WindowRecord, held, job_id=text)
    if "failures" in words:
        rows = ((f, {"job_id": j.id}) for j in jobs for f in _failures(source, j))
        tables["failures"] = as_table(FailureRecord, rows, job_id=text)
    if "events" in words:
        tables["events"] = as_table(EventRecord, (e for r in runs for e in _events(source, r)))
    for name, table in tables.items():
        context.register_record_batches(name, [table.to_batches() or _no_rows(table)])
    return context.sql(sql).to_arrow_table()


def _no_rows(table: pa.Table) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist([], schema=table.schema)]


def _tasks(source: Source, job: JobRecord) -> Iterator[TaskRecord]:
    return _all(lambda cursor: source.tasks(job.id, cursor=cursor))


def windows_of(
    source: Source, job_id: str, state: WindowState | None = None
) -> Iterator[WindowRecord]:
    """Yield the windows of a job, in the order in which they open."""
    return _all(lambda cursor: source.windows(job_id, state, cursor=cursor))


def _failures(source: Source, job: JobRecord) -> Iterator[FailureRecord]:
    return _all(lambda cursor: source.failures(job.id, limit=MAX_LIMIT, cursor=cursor))


def _events(source: Source, run: RunRecord) -> Iterator[EventRecord]:
    after = 0
    while (page := source.events(run.id, after)).items:
        yield from page.items
        after = page.items[-1].seq
