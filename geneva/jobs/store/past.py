"""The evidence of earlier jobs of a column: the last one, and the seconds per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, Text, cast, or_, select

from geneva.jobs.records import JobRecord
from geneva.jobs.store.database import Database
from geneva.jobs.store.mapping import job_record
from geneva.jobs.store.models import JobRow
from geneva.model.types import Options

_JOBS = 5  # the latest ones say how quick the present UDF is


@dataclass(frozen=True, slots=True)
class PastPace:
    """How quickly rows were computed by some jobs.

    Attributes
    ----------
    rows
        Without those replayed.
    seconds
        That they took, from their start; as many appliers as are asked for would have.
    scaled
        Whether they had another number of appliers.
    """

    jobs: int
    rows: int
    seconds: float
    scaled: bool

    @property
    def rows_per_s(self) -> float:
        """Rows per second of wall time; large jobs count more."""
        return self.rows / self.seconds


class Past:
    """Looks earlier jobs up by table and column."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def last_job(self, table_uri: str, column: str) -> JobRecord | None:
        """Return the job that was submitted last for a column."""
        with self._database.read() as session:
            job = session.scalar(_of(table_uri, [column]).limit(1))
            return None if job is None else job_record(job)

    def pace(self, table_uri: str, columns: Sequence[str], concurrency: int) -> PastPace | None:
        """Return how quickly the latest jobs of some columns went, ``None`` if there are none.

        Parameters
        ----------
        concurrency
            That is asked for.
        """
        computed = JobRow.rows_computed - JobRow.rows_before - JobRow.rows_replayed
        wanted = _of(table_uri, columns).where(computed > 0, JobRow.seconds > 0, JobRow.advanced)
        with self._database.read() as session:
            jobs = list(session.scalars(wanted.limit(_JOBS)))
        if not jobs:
            return None
        rows = sum(j.rows_computed - j.rows_before - j.rows_replayed for j in jobs)
        factors = [_factor(job, concurrency) for job in jobs]
        seconds = sum(job.seconds * f for job, f in zip(jobs, factors, strict=True))
        return PastPace(len(jobs), rows, seconds, any(f != 1 for f in factors))


def _factor(job: JobRow, concurrency: int) -> float:
    """Return how much longer a job would have taken with another concurrency.

    One that had fewer appliers than it asked for had all that there was place or work for.
    """
    had = job.metrics.get("appliers") or 0
    if not had:
        return 1.0
    limited = had < job.arguments.get("concurrency", Options().concurrency)
    return float(had / (min(concurrency, had) if limited else concurrency))


def _of(table_uri: str, columns: Sequence[str]) -> Select[JobRow]:
    """Return the jobs that fill one of some columns, the newest first."""
    listed = cast(JobRow.fills, Text)  # a list of names as JSON
    fills = or_(*(listed.contains(json.dumps(c), autoescape=True) for c in columns))
    wanted = select(JobRow).where(JobRow.table_uri == table_uri, fills)
    return wanted.order_by(JobRow.created_s.desc(), JobRow.id.desc())
