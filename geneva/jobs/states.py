"""States of a job: which may follow which, after a wish or a death too. No IO.

::

    PENDING -> QUEUED -> STARTING -> RUNNING -> SUCCEEDED | PARTIAL | FAILED
    STARTING | RUNNING -> PAUSING -> PAUSED -> QUEUED
    any live state -> CANCELLING -> CANCELLED
    a state with a process -> RECOVERING -> QUEUED       its process died or was given up
    PENDING -> SKIPPED | UPSTREAM_FAILED
"""

from __future__ import annotations

from collections.abc import Sequence

from geneva.engine.control import Wanted
from geneva.errors import JobStateError
from geneva.model.types import JobState

_S = JobState

ACTIVE = frozenset({_S.STARTING, _S.RUNNING, _S.PAUSING, _S.CANCELLING, _S.RECOVERING})
"""States in which a job takes a slot and its columns."""

RETRIED = frozenset({_S.FAILED, _S.PARTIAL, _S.CANCELLED, _S.UPSTREAM_FAILED})
"""States of a job of which a part can be tried again."""

_ENDS = frozenset({_S.SUCCEEDED, _S.PARTIAL, _S.FAILED, _S.CANCELLED})
_STOPPING = frozenset({_S.PAUSING, _S.PAUSED, _S.CANCELLING, _S.RECOVERING, _S.QUEUED})
_NEXT: dict[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset(
        {_S.QUEUED, _S.STARTING, _S.PAUSED, _S.CANCELLED, _S.SKIPPED, _S.UPSTREAM_FAILED}
    ),
    _S.QUEUED: frozenset({_S.STARTING, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
    _S.STARTING: _ENDS | _STOPPING | {_S.RUNNING},
    _S.RUNNING: _ENDS | _STOPPING | {_S.STARTING},
    _S.PAUSING: _ENDS | _STOPPING | {_S.RUNNING, _S.STARTING},
    _S.PAUSED: _ENDS | {_S.QUEUED, _S.CANCELLING, _S.RUNNING, _S.STARTING, _S.PAUSING},
    _S.CANCELLING: _ENDS | {_S.RECOVERING},
    _S.RECOVERING: frozenset({_S.QUEUED, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
}


def may_follow(old: JobState, new: JobState) -> bool:
    """Whether a job may go from one state to another; a state that ended never changes."""
    return new in _NEXT.get(old, frozenset())


def when_asked(
    state: JobState, asked_before: Wanted, wanted: Wanted, *, has_process: bool
) -> JobState:
    """Return the state that a job has as soon as somebody wants something of it.

    A job with a process keeps its state until the process has done what is wanted.

    Raises
    ------
    JobStateError
        It has ended, or was cancelled and is to run.
    """
    if state.ended:
        if state is JobState.CANCELLED and wanted is Wanted.CANCEL:
            return state
        raise JobStateError(f"the job is {state.value}, which does not change; retry it instead")
    if asked_before is Wanted.CANCEL and wanted is not Wanted.CANCEL:
        raise JobStateError("the job is being cancelled; retry it when it has ended")
    if has_process or state is JobState.RECOVERING:
        return state
    match wanted:
        case Wanted.CANCEL:
            return JobState.CANCELLED
        case Wanted.PAUSE:
            return JobState.PAUSED
        case Wanted.RUN:
            return JobState.QUEUED if state is JobState.PAUSED else state


def observed(state: JobState, engine: JobState, wanted: Wanted, *, direct: bool) -> JobState:
    """Return the state to record for a driver's own report, before its process has ended.

    Parameters
    ----------
    direct
        It runs in the process of its caller, who may have cancelled it there.
    """
    if engine.ended or state.ended:
        return state
    if engine is JobState.CANCELLING and wanted is Wanted.PAUSE:
        return JobState.PAUSING
    if engine is JobState.CANCELLING and wanted is Wanted.RUN and not direct:
        return state  # it winds up for a pause that was taken back, or after a failure
    if engine is JobState.PENDING:
        return state
    return engine


def after_exit(state: JobState, wanted: Wanted, *, direct: bool, stopped: bool) -> JobState:
    """Return the next state of a job whose process is gone and left no result.

    Parameters
    ----------
    direct
        It ran in the process of its caller, whom nobody can start again.
    stopped
        Its driver stopped because that was wanted, and did not die.
    """
    match wanted:
        case Wanted.CANCEL:
            return JobState.CANCELLED
        case Wanted.PAUSE if not direct:
            return JobState.PAUSED
        case _:
            if direct:
                return JobState.FAILED
            return JobState.QUEUED if stopped else JobState.RECOVERING


def run_state(jobs: Sequence[JobState]) -> JobState:
    """Return the state of a run from those of its jobs, the superseded ones left out."""
    if not jobs:
        return JobState.PENDING
    order = _LIVE_FIRST if any(not s.ended for s in jobs) else _WORST_FIRST
    return next(s for s in order if s in jobs)


_LIVE_FIRST = (
    _S.RUNNING,
    _S.CANCELLING,
    _S.PAUSING,
    _S.STARTING,
    _S.RECOVERING,
    _S.QUEUED,
    _S.PAUSED,
    _S.PENDING,
)
_WORST_FIRST = (
    _S.FAILED,
    _S.UPSTREAM_FAILED,
    _S.CANCELLED,
    _S.PARTIAL,
    _S.SUCCEEDED,
    _S.SKIPPED,
)
