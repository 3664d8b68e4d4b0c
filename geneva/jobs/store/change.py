"""The one way in which a job changes its state: with an event, and its run with it.

Locks are taken in one order, run before job, so that no two transactions wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from geneva.errors import JobStateError, NoSuchJobError
from geneva.jobs.records import TaskState
from geneva.jobs.states import ACTIVE, may_follow, run_state
from geneva.jobs.store.models import Event, JobRow, Run, TaskRow, WindowRow
from geneva.model.result import WindowState
from geneva.model.types import JobState


def locked_run(session: Session, run_id: str) -> Run:
    """Return a run that no other transaction changes meanwhile.

    Raises
    ------
    NoSuchJobError
        There is none.
    """
    run = session.get(Run, run_id, with_for_update=True, populate_existing=True)
    if run is None:
        raise NoSuchJobError(f"there is no run {run_id!r}")
    return run


def locked_job(session: Session, job_id: str) -> tuple[Run, JobRow]:
    """Return a job and its run, both locked.

    Raises
    ------
    NoSuchJobError
        There is none.
    """
    run_id = session.scalar(select(JobRow.run_id).where(JobRow.id == job_id))
    if run_id is None:
        raise NoSuchJobError(f"there is no job {job_id!r}")
    run = locked_run(session, run_id)
    job = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise NoSuchJobError(f"job {job_id!r} was deleted")
    return run, job


def jobs_of(session: Session, run: Run) -> list[JobRow]:
    """Return the jobs of a run that no retry has taken the place of."""
    jobs = session.scalars(
        select(JobRow)
        .where(JobRow.run_id == run.id, JobRow.superseded.is_(False))
        .order_by(JobRow.created_s, JobRow.id)
    )
    return list(jobs)


def note(
    session: Session,
    run: Run,
    job: JobRow | None,
    now_s: float,
    kind: str,
    message: str = "",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append an event to a run that is locked."""
    run.event_seq += 1
    session.add(
        Event(
            run_id=run.id,
            seq=run.event_seq,
            job_id=None if job is None else job.id,
            at_s=now_s,
            kind=kind,
            message=message,
            data=dict(data or {}),
        )
    )


def move(
    session: Session, run: Run, job: JobRow, state: JobState, reason: str, now_s: float
) -> None:
    """Give a job that is locked another state.

    Raises
    ------
    JobStateError
        It cannot follow the present one.
    """
    old = JobState(job.state)
    if not may_follow(old, state):
        raise JobStateError(f"job {job.id} is {old.value} and cannot become {state.value}")
    job.state, job.reason = state.value, reason
    if state is JobState.QUEUED and old is not JobState.RECOVERING:  # it keeps its age
        job.queued_s = now_s
    if state is JobState.STARTING and job.started_s is None:
        job.started_s = now_s
    if state.ended:
        job.ended_s, job.owner, job.lease_until_s = now_s, None, None
    if old in ACTIVE and (state not in ACTIVE or state is JobState.RECOVERING):
        _stop_tasks(session, job)
    note(session, run, job, now_s, "state", reason, {"from": old.value, "to": state.value})
    settle(session, run, now_s)


def _stop_tasks(session: Session, job: JobRow) -> None:
    """Note that nobody works any more on the fragments and windows that a driver had begun."""
    session.execute(
        update(WindowRow)
        .where(WindowRow.job_id == job.id, WindowRow.state == WindowState.RUNNING.value)
        .values(state=WindowState.PLANNED.value)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(TaskRow)
        .where(TaskRow.job_id == job.id, TaskRow.state == TaskState.RUNNING.value)
        .values(state=TaskState.STOPPED.value)
        .execution_options(synchronize_session=False)
    )


def settle(session: Session, run: Run, now_s: float) -> None:
    """Derive the state of a run from its jobs; it is complete when all it planned has ended."""
    session.flush()
    jobs = jobs_of(session, run)
    state = run_state([JobState(j.state) for j in jobs])
    if state.ended and not run.sealed:
        state = JobState.RUNNING
    run.state = state.value
    run.reason = next((j.reason for j in jobs if j.state == run.state and j.reason), "")
    run.ended_s = now_s if state.ended else None
