"""Runs as handles that one can look at, wait for and steer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pyarrow as pa

from geneva.engine.control import Wanted
from geneva.jobs.page import Wish
from geneva.jobs.records import FailureGroups, FailureWish, JobRecord, RunRecord, WindowRecord
from geneva.jobs.store.tables import Source, all_jobs, all_runs, as_table, windows_of
from geneva.model.types import JobState

_LOOK_S = 0.2


class RunHandle:
    """A run in the record; it goes on whether anybody holds this or not."""

    def __init__(self, source: Source, run_id: str) -> None:
        self._source = source
        self.id = run_id

    def record(self) -> RunRecord:
        """Return all that is known of it now."""
        return self._source.run(self.id)

    @property
    def state(self) -> JobState:
        """Its state now."""
        return self.record().state

    @property
    def reason(self) -> str:
        """Why it is in this state."""
        return self.record().reason

    def wait(self, timeout: float | None = None) -> RunRecord:
        """Wait until it has ended, whatever its end is.

        Parameters
        ----------
        timeout
            Seconds; it goes on when they run out.

        Raises
        ------
        TimeoutError
            It has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (run := self.record()).state.ended:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"run {self.id} is still {run.state.value} after {timeout} s")
            time.sleep(_LOOK_S)
        return run

    def pause(self) -> None:
        """Stop at the next batch and free the appliers until `resume`."""
        self._source.want(self.id, Wanted.PAUSE)

    def resume(self) -> None:
        """Go on where `pause` stopped."""
        self._source.want(self.id, Wanted.RUN)

    def cancel(self) -> None:
        """Stop for good: finished fragments are committed, checkpoints are kept."""
        self._source.want(self.id, Wanted.CANCEL)

    def failures(self) -> FailureGroups:
        """Return the rows on which a UDF failed and that nobody computed since, by cause."""
        return self._source.failure_groups(FailureWish(run_id=self.id))

    def windows(self) -> pa.Table:
        """Return the windows of its jobs: job_id, key, state, reason, rows and seconds."""
        jobs = self.record().jobs
        records = ((w, {"job_id": j.id}) for j in jobs for w in windows_of(self._source, j.id))
        return as_table(WindowRecord, records, job_id=pa.string())

    def retry_windows(self, keys: Sequence[str] = ()) -> RunHandle:
        """Queue a run of windows of its latest job, which stays as it is; return the new run.

        Parameters
        ----------
        keys
            The windows, as `windows` names them; by default those that failed.
        """
        job = self.record().jobs[-1]
        return RunHandle(self._source, self._source.retry_windows(job.id, keys).id)

    def retry(self, group: str | None = None) -> RunHandle:
        """Queue the failed part of a run again; return the new run.

        Parameters
        ----------
        group
            ``key`` of one of `failures`: a run of its own tries its rows, and this one stays as
            it is.
        """
        if group is None:
            return RunHandle(self._source, self._source.retry(self.id).id)
        run = self._source.retry_failures(FailureWish(run_id=self.id), group)
        return RunHandle(self._source, run.id)

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.state.value}>"


class Runs:
    """The runs in the record, the newest first; iterate, or take them as a table."""

    def __init__(self, source: Source, wish: Wish) -> None:
        self._source, self._wish = source, wish

    def __iter__(self) -> Iterator[RunHandle]:
        return (RunHandle(self._source, r.id) for r in all_runs(self._source, self._wish))

    def __getitem__(self, run_id: str) -> RunHandle:
        return RunHandle(self._source, self._source.run(run_id).id)

    def to_arrow(self) -> pa.Table:
        """Return them as a table."""
        return as_table(RunRecord, all_runs(self._source, self._wish))


class Jobs:
    """The jobs in the record, the newest first; iterate, or take them as a table."""

    def __init__(self, source: Source, wish: Wish) -> None:
        self._source, self._wish = source, wish

    def __iter__(self) -> Iterator[JobRecord]:
        return all_jobs(self._source, self._wish)

    def __getitem__(self, job_id: str) -> JobRecord:
        return self._source.job(job_id)

    def to_arrow(self) -> pa.Table:
        """Return them as a table."""
        return as_table(JobRecord, self)
