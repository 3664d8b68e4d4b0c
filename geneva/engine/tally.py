"""The figures of a job, summed over its rounds."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from geneva.appliers.host import peak_bytes
from geneva.engine.plan.decision import FragmentPlan
from geneva.model.result import BackfillResult
from geneva.model.rows import RowStatus
from geneva.model.types import ColumnFile, Counts, Failure, JobState, Target


@dataclass(slots=True)
class Tally:
    """The sums over the rounds of a job.

    Attributes
    ----------
    done
        Fragments of which every task ended, committed or with nothing to do.
    unfinished
        Fragments that were planned and are not committed.
    """

    counts: Counts = field(default_factory=Counts)
    failures: list[tuple[str, Failure]] = field(default_factory=list)
    committed: list[ColumnFile] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    commit_s: float = 0.0
    peak_applier_bytes: int = 0
    done: int = 0
    unfinished: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def planned(self, fragments: Container[int], plans: Sequence[FragmentPlan]) -> None:
        """Take in the plans of a round on a version that has some fragments."""
        there = {i for i in self.unfinished if i in fragments}  # a compaction's were planned anew
        there -= {p.fragment_id for p in plans}
        self.unfinished = there | {p.fragment_id for p in plans if p.task is not None}

    def saw_peak(self, applier_bytes: int) -> None:
        """Take in how much memory an applier took at most."""
        self.peak_applier_bytes = max(self.peak_applier_bytes, applier_bytes)

    def takes_back(self, file: ColumnFile) -> None:
        """Subtract the rows of a column file that was not committed."""
        row_map = file.row_map
        newest = max(c.generation for c in row_map.classes)
        per_class = zip(row_map.classes, row_map.counts().tolist(), strict=True)
        new = [(c, n) for c, n in per_class if c.generation == newest]
        failed = sum(n for c, n in new if c.status is RowStatus.FAILED)
        self.counts += Counts(computed=-sum(n for _, n in new), failed=-failed)

    def result(
        self, target: Target, job_id: str, first: Sequence[FragmentPlan], seconds: float
    ) -> BackfillResult:
        """Return the job's result; ``first`` is its first plan."""
        counts = self.counts
        return BackfillResult(
            columns=target.columns,
            job_id=job_id,
            state=JobState.PARTIAL if counts.failed else JobState.SUCCEEDED,
            rows_computed=counts.computed,
            rows_replayed=counts.replayed,
            rows_failed=counts.failed,
            rows_overwritten=counts.overwritten,
            rows_waiting=sum(p.rows_waiting for p in first),
            rows_foreign=sum(p.rows_foreign for p in first),
            rows_unverified=sum(p.rows_unverified for p in first),
            rows_failed_before=sum(p.rows_failed for p in first),
            fragments_committed=len({f.fragment_id for f in self.committed}),
            rows_outside=sum(p.rows_outside for p in first),
            rows_null=sum(p.rows_null for p in first),
            fragments_skipped=sum(p.task is None for p in first),
            fragments_left=len(self.unfinished),
            versions=tuple(self.versions),
            seconds=seconds,
            peak_applier_bytes=self.peak_applier_bytes,
            peak_driver_bytes=peak_bytes(),
            stage_seconds={
                "read": counts.seconds_read,
                "udf": counts.seconds_udf,
                "checkpoint": counts.seconds_checkpoint,
                "write": counts.seconds_write,
                "commit": self.commit_s,
            },
            recorded_failures=tuple(self.failures),
            notes=tuple(self.notes),
        )
