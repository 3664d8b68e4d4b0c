"""How a backfill ended, as its job's record says it."""

from __future__ import annotations

from typing import Any

from geneva.errors import JobCancelledError, RetryableError, SupersededError, TableChangedError
from geneva.model.result import BackfillResult
from geneva.model.types import JobState

_COUNTED = ("computed", "replayed", "failed", "overwritten", "waiting", "foreign", "unverified")
_MESSAGE_CHARS = 4000


def result_state(result: BackfillResult) -> tuple[JobState, str]:
    """Return the state of a job that ran to its end, and why it is that one."""
    if result.rows_failed:
        return JobState.PARTIAL, f"the UDF failed on {result.rows_failed:,} rows; retry tries them"
    return JobState.SUCCEEDED, ""


def result_columns(result: BackfillResult, appliers: int) -> dict[str, Any]:
    """Return the record of a result, and of how many appliers worked at once."""
    outputs: dict[str, Any] = {f"rows_{n}": getattr(result, f"rows_{n}") for n in _COUNTED}
    outputs |= {
        "rows_failed_before": result.rows_failed_before,
        "fragments_committed": result.fragments_committed,
        "fragments_skipped": result.fragments_skipped,
        "fragments_left": result.fragments_left,
        "versions": list(result.versions),
        "columns": list(result.columns),
        "notes": list(result.notes),
    }
    if result.windows:
        outputs |= {"rows_outside": result.rows_outside, "rows_null": result.rows_null}
    rate = result.rows_computed / result.seconds if result.seconds else 0.0
    metrics = {f"seconds_{k}": v for k, v in result.stage_seconds.items()}
    metrics |= {
        "seconds": result.seconds,
        "rows_per_s": rate,
        "appliers": appliers,
        "peak_applier_bytes": result.peak_applier_bytes,
        "peak_driver_bytes": result.peak_driver_bytes,
    }
    return {"outputs": outputs, "metrics": metrics}


def error_state(error: BaseException) -> JobState:
    """Return the state of a job that an error ended."""
    cancelled = isinstance(error, JobCancelledError | KeyboardInterrupt)
    return JobState.CANCELLED if cancelled else JobState.FAILED


def error_columns(error: BaseException) -> dict[str, Any]:
    """Return the record of an error."""
    notes = "".join(f"\n{n}" for n in getattr(error, "__notes__", ()))
    text = f"{error}{notes}"[:_MESSAGE_CHARS]
    return {"error": text, "error_type": type(error).__name__}


def passes(error: BaseException) -> bool:
    """Whether the same call may well succeed when it is made again."""
    if isinstance(error, SupersededError):
        return False
    return isinstance(error, RetryableError | TableChangedError)
