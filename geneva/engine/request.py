"""A backfill of one column group, checked against the table."""

from __future__ import annotations

from dataclasses import dataclass

from geneva.column.binding import Binding
from geneva.model.types import JobSettings, Options, Target
from geneva.udf import UDF
from geneva.where.parse import Where


@dataclass(frozen=True, slots=True)
class Request:
    """One column group to fill."""

    target: Target
    binding: Binding
    udf: UDF
    where: Where | None
    options: Options

    def settings(self, job_id: str, read_rows: int, readahead: int | None) -> JobSettings:
        """Return what the appliers of a job must know of it."""
        options = self.options
        return JobSettings(
            job_id=job_id,
            target=self.target,
            where=self.where.sql if self.where else None,
            on_error=options.on_error,
            batch_size=options.batch_size or self.udf.batch_size,
            checkpoint_size=options.checkpoint_size,
            threads=options.intra_applier_concurrency,
            read_rows=read_rows,
            readahead=readahead,
            retry_failed=options.retry_failed,
        )
