"""How a backfill ended, as its job's record says it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import geneva.errors
from geneva.errors import (
    GenevaError,
    JobCancelledError,
    JobError,
    RetryableError,
    SupersededError,
    TableChangedError,
)
from geneva.jobs.records import JobRecord
from geneva.model.result import BackfillResult, WindowResult
from geneva.model.types import JobState

_NAMES = tuple(f.name for f in fields(BackfillResult))
_MEASURED = ("seconds", "peak_applier_bytes", "peak_driver_bytes")  # stand among the metrics
_ELSEWHERE = {"job_id", "state", "stage_seconds", "recorded_failures", "windows", *_MEASURED}
_OF_WINDOWS = {"rows_outside", "rows_null"}
_MESSAGE_CHARS = 4000


def result_state(result: BackfillResult) -> tuple[JobState, str]:
    """Return the state of a job that ran to its end, and the reason."""
    if result.rows_failed:
        return JobState.PARTIAL, f"the UDF failed on {result.rows_failed:,} rows; retry tries them"
    return JobState.SUCCEEDED, ""


def result_columns(result: BackfillResult, appliers: int) -> dict[str, Any]:
    """Return the record of a result, and of how many appliers worked at once."""
    left_out = _ELSEWHERE if result.windows else _ELSEWHERE | _OF_WINDOWS
    outputs = {n: getattr(result, n) for n in _NAMES if n not in left_out}
    outputs |= {n: list(v) for n, v in outputs.items() if isinstance(v, tuple)}
    metrics = {f"seconds_{k}": v for k, v in result.stage_seconds.items()}
    metrics |= {n: getattr(result, n) for n in _MEASURED} | {"appliers": appliers}
    metrics["rows_per_s"] = result.rows_computed / result.seconds if result.seconds else 0.0
    return {"outputs": outputs, "metrics": metrics}


def result_of(job: JobRecord, job_id: str, windows: tuple[WindowResult, ...]) -> BackfillResult:
    """Return the result that a job's record keeps, or raise the error that ended it."""
    match job.state:
        case JobState.SUCCEEDED | JobState.PARTIAL:
            facts: dict[str, Any] = {n: job.outputs[n] for n in _NAMES if n in job.outputs}
            facts |= {n: tuple(v) for n, v in facts.items() if isinstance(v, list)}
            facts["windows"] = windows
            facts |= {n: job.metrics[n] for n in _MEASURED if n in job.metrics}
            stages = [k for k in job.metrics if k.startswith("seconds_")]
            facts["stage_seconds"] = {k.removeprefix("seconds_"): job.metrics[k] for k in stages}
            known: dict[str, Any] = {"columns": job.columns, "seconds": job.seconds} | facts
            return BackfillResult(**known, job_id=job_id, state=job.state)
        case JobState.CANCELLED:
            raise JobCancelledError(f"run {job_id} was cancelled: {job.reason}")
        case _:
            raise (error_named(job.error_type) or JobError)(job.error or job.reason)


def error_named(name: str) -> type[GenevaError] | None:
    """Return the exception of that name; ``None`` if there is no such one of ours."""
    kind = getattr(geneva.errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, GenevaError) else None


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
