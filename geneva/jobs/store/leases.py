"""The owner of a job: claims of schedulers, leases of drivers, and the end of dead ones.

A lease has an epoch that counts the drivers of a job. Every write of a driver names its epoch, so
one that was given up for dead can neither report nor publish, whenever it wakes up. Failures:

1. the scheduler dies after a claim, before the driver is started: the claim's owner is gone,
   the job is queued again;
2. it dies after the start, before it said so: the same, and the driver finds no claim to attach to;
3. the driver dies: its process is gone, or its lease runs out where nobody can look;
4. the driver hangs and wakes up after the job was given to another one: its epoch is stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.orm import Session

from geneva.engine.control import Wanted
from geneva.engine.process import ProcessId
from geneva.errors import LeaseLostError
from geneva.jobs.records import Mode
from geneva.jobs.states import after_exit, may_follow, observed
from geneva.jobs.store.change import locked_job, move, note
from geneva.jobs.store.database import Database
from geneva.jobs.store.models import JobRow, Run
from geneva.jobs.store.queue import QueueClaim
from geneva.model.types import JobState, Progress

CRASHES = 5
"""So many deaths in a row without progress, and the job has failed."""
_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """A job that a process has.

    Attributes
    ----------
    expired
        Its lease has run out.
    asked_s
        Seconds since it was asked to stop, or ``None``.
    """

    job_id: str
    epoch: int
    owner: ProcessId
    mode: Mode
    expired: bool
    stopped: bool
    asked_s: float | None


class Leases:
    """The side of the database that schedulers and drivers use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- schedulers --------------------------------------------------------------------

    def started(self, claim: QueueClaim, driver: ProcessId) -> None:
        """Say which process was started for a claim; it may have attached already."""
        with self._database.write() as session:
            session.execute(
                update(JobRow)
                .where(*_of(claim), JobRow.state == JobState.STARTING)
                .values(owner=asdict(driver))
            )

    def held(self) -> list[Held]:
        """Return all jobs that a process has."""
        with self._database.read() as session:
            now = self._database.now_s(session)
            rows = session.scalars(select(JobRow).where(JobRow.owner.is_not(None)))
            return [
                Held(
                    job.id,
                    job.epoch,
                    ProcessId(**(job.owner or {})),
                    Mode(job.mode),
                    expired=job.lease_until_s is not None and job.lease_until_s < now,
                    stopped=job.stopped,
                    asked_s=None if job.stop_asked_s is None else now - job.stop_asked_s,
                )
                for job in rows
            ]

    def bury(self, held: Held, how: str) -> JobState | None:
        """Take a job from a process that is gone, or given up; return its new state.

        ``None`` if the process has ended the job itself, or was heard of again, in the meantime.
        """
        with self._database.write() as session:
            run, job = locked_job(session, held.job_id)
            now = self._database.now_s(session)
            if job.epoch != held.epoch or job.owner != asdict(held.owner):
                return None
            if held.expired and (job.lease_until_s or 0.0) >= now:
                return None
            direct = job.mode == Mode.DIRECT
            wanted = Wanted(job.wanted)
            after = after_exit(JobState(job.state), wanted, direct=direct, stopped=job.stopped)
            job.owner, job.lease_until_s, job.stop_asked_s = None, None, None
            if after is JobState.RECOVERING:
                note(session, run, job, now, "driver_died", how)
                _recover(session, run, job, how, now)
            elif after is JobState.FAILED:
                job.error, job.error_type = f"its process ended: {how}", "ProcessEnded"
                move(session, run, job, after, f"{how}; the same call continues there", now)
            else:
                move(session, run, job, after, _WHY.get(after, how), now)
            return JobState(job.state)

    # --- drivers -----------------------------------------------------------------------

    def attach(self, claim: QueueClaim, driver: ProcessId, lease_s: float) -> JobRow:
        """Take over a claim as its driver.

        Raises
        ------
        LeaseLostError
            The claim is no longer valid; leave at once.
        """
        with self._database.write() as session:
            _, job = _locked(session, claim)
            if job.state != JobState.STARTING:
                raise _lost(claim)
            now = self._database.now_s(session)
            job.owner, job.lease_until_s = asdict(driver), now + lease_s
            return job

    def beat(self, claim: QueueClaim, progress: Progress, lease_s: float) -> Wanted:
        """Renew a lease, report progress, and return the present wish.

        Raises
        ------
        LeaseLostError
            The job was given to another driver.
        """
        with self._database.write() as session:
            now = self._database.now_s(session)
            row = session.execute(
                update(JobRow)
                .where(*_of(claim))
                .values(lease_until_s=now + lease_s, **_progress(progress))
                .returning(JobRow.wanted, JobRow.state, JobRow.reason, JobRow.mode)
            ).first()
            if row is None:
                raise _lost(claim)
            wanted, state = Wanted(row[0]), JobState(row[1])
        reported = observed(state, progress.state, wanted, direct=row[3] == Mode.DIRECT)
        if reported is not state or row[2] != progress.reason:
            self._report(claim, reported, progress.reason)
        return wanted

    def _report(self, claim: QueueClaim, state: JobState, reason: str) -> None:
        with self._database.write() as session:
            run, job = _locked(session, claim)
            now = self._database.now_s(session)
            if may_follow(JobState(job.state), state):
                move(session, run, job, state, reason, now)
            else:
                job.reason = reason

    def check(self, claim: QueueClaim) -> Wanted:
        """Return the present wish; nothing is written.

        Raises
        ------
        LeaseLostError
            The job was given to another driver.
        """
        with self._database.read() as session:
            wanted = session.scalar(select(JobRow.wanted).where(*_of(claim)))
        if wanted is None:
            raise _lost(claim)
        return Wanted(wanted)

    def wanted(self, job_id: str) -> Wanted | None:
        """Return the last wish for a job, whoever has it; None if there is no such job."""
        with self._database.read() as session:
            wanted = session.scalar(select(JobRow.wanted).where(JobRow.id == job_id))
        return None if wanted is None else Wanted(wanted)

    def stop(self, claim: QueueClaim, progress: Progress) -> None:
        """Say that the driver stopped as was wanted and is about to exit."""
        with self._database.write() as session:
            session.execute(
                update(JobRow)
                .where(*_of(claim))
                .values(stopped=True, crashes=0, **_progress(progress))
            )

    def finish(
        self,
        claim: QueueClaim,
        progress: Progress,
        state: JobState,
        reason: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how a job ended; ``facts`` are columns of it.

        Raises
        ------
        LeaseLostError
            The job was given to another driver.
        """
        with self._database.write() as session:
            run, job = _locked(session, claim)
            counts = _progress(progress, exact=state in (JobState.SUCCEEDED, JobState.PARTIAL))
            for name, value in {**counts, **(facts or {})}.items():
                setattr(job, name, value)
            move(session, run, job, state, reason, self._database.now_s(session))

    def give_back(self, claim: QueueClaim, progress: Progress, error: str) -> None:
        """Queue a job again whose driver met a passing fault."""
        with self._database.write() as session:
            run, job = _locked(session, claim)
            if job.wanted != Wanted.RUN:
                job.stopped = True
                return
            for name, value in _progress(progress).items():
                setattr(job, name, value)
            job.owner, job.lease_until_s = None, None
            _recover(session, run, job, error, self._database.now_s(session))


_WHY = {
    JobState.PAUSED: "paused; finished batches are checkpointed, the appliers are free",
    JobState.CANCELLED: "cancelled; finished fragments are committed, checkpoints are kept",
    JobState.QUEUED: "resumed",
}


def _recover(session: Session, run: Run, job: JobRow, how: str, now_s: float) -> None:
    """Queue a job again after a death, unless it dies again and again without progress."""
    job.crashes = 1 if job.advanced else job.crashes + 1
    move(session, run, job, JobState.RECOVERING, how, now_s)
    if job.crashes >= CRASHES:
        job.error, job.error_type = how, "DriverDied"
        why = f"{job.crashes} drivers ended one after the other without computing a row: {how}"
        move(session, run, job, JobState.FAILED, why, now_s)
        return
    wait_s = min(_BACKOFF_S * 2 ** (job.crashes - 1), _MAX_BACKOFF_S)
    job.not_before_s = now_s + wait_s
    why = f"to be continued from its checkpoints ({how})"
    move(session, run, job, JobState.QUEUED, why, now_s)


def _of(claim: QueueClaim) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions under which a job is still that of a claim's driver."""
    owned = JobRow.owner.is_not(None)
    return JobRow.id == claim.job_id, JobRow.epoch == claim.epoch, owned


def _locked(session: Session, claim: QueueClaim) -> tuple[Run, JobRow]:
    """Return the job of a claim and its run, locked; raise if it is another driver's."""
    run, job = locked_job(session, claim.job_id)
    if job.epoch != claim.epoch or job.owner is None:
        raise _lost(claim)
    return run, job


def _lost(claim: QueueClaim) -> LeaseLostError:
    return LeaseLostError(
        f"job {claim.job_id} is no longer this driver's (epoch {claim.epoch}); nothing more is "
        "written, and its checkpoints are kept"
    )


def _progress(progress: Progress, *, exact: bool = False) -> dict[str, Any]:
    """Return the changes of a report; commits of earlier drivers count too.

    What was shown stays until a driver that takes a job over is as far as the one before, whose
    checkpoints it finds again; at the end, that it came to is ``exact``.
    """
    names: tuple[str, ...] = ("appliers_ready", "appliers_wanted", "seconds", "rate")
    facts: dict[str, Any] = {n: getattr(progress, n) for n in names}
    total = progress.rows_total
    if total is None and not (progress.fragments_total or progress.rows_computed):
        return facts  # nothing was planned yet
    facts |= {
        "rows_total": None if total is None else JobRow.rows_before + total,
        "total_estimated": progress.total_estimated,
        "fragments_total": JobRow.fragments_before + progress.fragments_total,
        "advanced": progress.rows_computed > progress.rows_replayed,
        "rows_replayed": progress.rows_replayed,
        "rows_failed": progress.rows_failed,
    }
    for name in ("rows_computed", "fragments_done", "fragments_committed"):
        shown = getattr(JobRow, name)
        before = JobRow.rows_before if name == "rows_computed" else JobRow.fragments_before
        now = before + getattr(progress, name)
        facts[name] = now if exact else case((shown > now, shown), else_=now)
    return facts
