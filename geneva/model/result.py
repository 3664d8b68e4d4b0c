"""The result of a backfill, as a value that people can read."""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import pyarrow as pa

from geneva.model.types import Failure, JobState

_FAILURE_SCHEMA = pa.schema(
    [
        pa.field("column", pa.string()),
        pa.field("fragment", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("row_id", pa.uint64()),
        pa.field("input", pa.string()),
        pa.field("error", pa.string()),
        pa.field("message", pa.string()),
        pa.field("traceback", pa.string()),
        pa.field("attempts", pa.int32()),
    ]
)


class WindowState(StrEnum):
    """Where a window of a backfill stands."""

    PLANNED = "PLANNED"
    RUNNING = "RUNNING"
    COMPUTED = "COMPUTED"  # checkpointed, and not visible yet
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


_SKIPPED = WindowState.SKIPPED


@dataclass(frozen=True, slots=True)
class WindowResult:
    """The result of one window.

    Attributes
    ----------
    key
        Its first value, or the value, as plans and pages name it.
    reason
        Why it was skipped, if it was.
    rows_planned, rows_computed, rows_failed
        Rows to compute; those with a new value (null for failed ones); those of them that failed.
    seconds
        From its first task to its last.
    windows
        How many it stands for: neighbours that were skipped for one reason are one result, with
        the key of the first.
    """

    key: str
    state: WindowState
    reason: str = ""
    rows_planned: int = 0
    rows_computed: int = 0
    rows_failed: int = 0
    seconds: float = 0.0
    windows: int = 1


def joined_windows(windows: Sequence[WindowResult]) -> Iterator[tuple[int, WindowResult]]:
    """Yield windows with their numbers; neighbours that were skipped for one reason are one."""
    number = 0
    for reason, group in itertools.groupby(windows, lambda w: w.state is _SKIPPED and w.reason):
        run = list(group)
        if reason is False:
            yield from enumerate(run, number)
        else:
            yield number, replace(run[0], windows=sum(w.windows for w in run))
        number += sum(w.windows for w in run)


@dataclass(frozen=True)
class BackfillResult:
    """The result of a backfill.

    Attributes
    ----------
    state
        SUCCEEDED, or PARTIAL if the UDF failed on rows: they are null, all others are there.
    rows_computed
        Rows that have a new value (null for failed ones), replayed checkpoints included.
    rows_replayed
        Those of them that an earlier, interrupted run had computed.
    rows_failed
        Those of them on which the UDF failed, under ``on_error="null"``.
    rows_overwritten
        Those of them that held a value before.
    rows_waiting
        Rows that were not computed because a computed input is missing or stale.
    rows_foreign, rows_unverified
        Rows whose value somebody else wrote, or whose history is gone; kept.
    rows_failed_before
        Rows on which an earlier run failed; left as they are without ``retry_failed=True``.
    fragments_committed, fragments_skipped, fragments_left
        Fragments made visible, found up to date, and left for the next call by ``num_frags``.
    versions
        Table versions that the backfill made.
    seconds
        Wall time.
    peak_applier_bytes, peak_driver_bytes
        The most resident memory that the largest applier's process, and this process, took since
        it started, in bytes: an applier that was warm may have taken it for an earlier backfill.
        0 for appliers that computed nothing. Appliers of the local executor are this process.
    stage_seconds
        Seconds by stage, summed over the appliers: read, udf, checkpoint, write, commit.
    windows
        What became of each window, in the order in which they open, of a call with windows.
    rows_outside, rows_null
        Rows that are in no window, as their value is beyond the range, or missing.
    """

    columns: tuple[str, ...]
    job_id: str = ""
    state: JobState = JobState.SUCCEEDED
    rows_computed: int = 0
    rows_replayed: int = 0
    rows_failed: int = 0
    rows_overwritten: int = 0
    rows_waiting: int = 0
    rows_foreign: int = 0
    rows_unverified: int = 0
    rows_failed_before: int = 0
    fragments_committed: int = 0
    fragments_skipped: int = 0
    fragments_left: int = 0
    versions: tuple[int, ...] = ()
    seconds: float = 0.0
    peak_applier_bytes: int = 0
    peak_driver_bytes: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    recorded_failures: tuple[tuple[str, Failure], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    windows: tuple[WindowResult, ...] = ()
    rows_outside: int = 0
    rows_null: int = 0

    @property
    def failures(self) -> pa.Table:
        """The rows that failed: column, fragment, row, row_id, input, error and traceback."""
        rows = [
            {
                "column": column,
                "fragment": f.fragment_id,
                "row": f.row,
                "row_id": f.row_id,
                "input": f.input,
                "error": f.error,
                "message": f.message,
                "traceback": f.traceback,
                "attempts": f.attempts,
            }
            for column, f in self.recorded_failures
        ]
        return pa.Table.from_pylist(rows, _FAILURE_SCHEMA)

    def _facts(self) -> list[tuple[str, str]]:
        rate = self.rows_computed / self.seconds if self.seconds else 0.0
        facts = [
            ("rows computed", f"{self.rows_computed:,} in {self.seconds:,.1f} s ({rate:,.0f}/s)"),
            ("fragments committed", f"{self.fragments_committed:,}"),
            ("fragments up to date", f"{self.fragments_skipped:,}"),
        ]
        optional = [
            ("of them replayed from checkpoints", self.rows_replayed),
            ("of them overwrote a value", self.rows_overwritten),
            ("of them failed", self.rows_failed),
            ("rows waiting for a computed input", self.rows_waiting),
            ("rows kept that somebody else wrote", self.rows_foreign),
            ("rows trusted without history", self.rows_unverified),
            (
                "rows that failed earlier (retry_failed=True tries them again)",
                self.rows_failed_before,
            ),
            ("fragments left for the next call", self.fragments_left),
            ("rows outside the windows", self.rows_outside),
            ("rows without a value to cut windows by", self.rows_null),
        ]
        facts[1:1] = [(name, f"{n:,}") for name, n in optional[:3] if n]
        facts += [(name, f"{n:,}") for name, n in optional[3:] if n]
        if self.windows:
            states: Counter[str] = Counter()
            for w in self.windows:
                states[w.state.value] += w.windows
            facts.append(("windows", ", ".join(f"{n:,} {s}" for s, n in states.items())))
        if self.versions:
            ends = sorted({self.versions[0], self.versions[-1]})
            facts.append(("table versions", " to ".join(str(v) for v in ends)))
        peaks = [("an applier", self.peak_applier_bytes), ("the driver", self.peak_driver_bytes)]
        if shown := [f"{who} {n / 1e6:,.0f} MB" for who, n in peaks if n]:
            facts.append(("peak memory", ", ".join(shown)))
        return facts

    def __str__(self) -> str:
        head = f"backfill of {', '.join(self.columns)}: {self.state.value}"
        facts = self._facts()
        width = max(len(name) for name, _ in facts)
        lines = [f"  {name:{width}}  {value}" for name, value in facts]
        return "\n".join([head, *lines, *(f"  note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(n)}</td><td>{html.escape(v)}</td></tr>" for n, v in self._facts()
        )
        name = html.escape(", ".join(self.columns))
        return f"<p><b>backfill of {name}: {self.state.value}</b></p><table>{rows}</table>"


def combined(results: Sequence[BackfillResult]) -> BackfillResult:
    """Return the result of several columns that were computed one after the other."""
    if len(results) == 1:
        return results[0]
    first = results[0]
    stages = {s: sum(r.stage_seconds.get(s, 0.0) for r in results) for s in first.stage_seconds}
    counted = {
        name: sum(getattr(r, name) for r in results)
        for name in BackfillResult.__dataclass_fields__
        if name.startswith(("rows_", "fragments_")) or name == "seconds"
    }
    peaks = {
        name: max(getattr(r, name) for r in results)
        for name in ("peak_applier_bytes", "peak_driver_bytes")
    }
    partial = any(r.state is JobState.PARTIAL for r in results)
    return BackfillResult(
        state=JobState.PARTIAL if partial else JobState.SUCCEEDED,
        columns=tuple(c for r in results for c in r.columns),
        job_id=first.job_id,
        versions=tuple(v for r in results for v in r.versions),
        stage_seconds=stages,
        recorded_failures=tuple(f for r in results for f in r.recorded_failures),
        notes=tuple(n for r in results for n in r.notes),
        windows=tuple(w for r in results for w in r.windows),
        **counted,
        **peaks,
    )
