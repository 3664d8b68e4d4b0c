"""The runs of flows: begun, taken up again by another process, given up, ended.

A run of a flow is not sealed while operations are still to come, so its state stays live between
two of them. One process carries it out, under a lease of the run; each job has its own besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from geneva.engine.control import Wanted
from geneva.engine.process import ProcessId
from geneva.errors import JobStateError, LeaseLostError
from geneva.jobs.records import JobRecord, Membership, Mode, Submission
from geneva.jobs.states import ACTIVE
from geneva.jobs.store.change import jobs_of, locked_job, locked_run, move, note, settle
from geneva.jobs.store.mapping import job_record
from geneva.jobs.store.models import JobRow, Run
from geneva.jobs.store.new_rows import new_job, new_run
from geneva.jobs.store.store import Store
from geneva.model.types import JobState

FLOW = "flow"
_KEPT = (JobState.SUCCEEDED, JobState.PARTIAL)


@dataclass(frozen=True, slots=True)
class Begun:
    """A run of a flow that this process has.

    Attributes
    ----------
    kept
        Jobs that an earlier process finished, by operation: they are not run again.
    continued
        True if an earlier process began it.
    """

    run_id: str
    kept: Mapping[str, JobRecord]
    continued: bool


class FlowRuns:
    """The runs of flows in a database of jobs."""

    def __init__(self, store: Store, owner: ProcessId, lease_s: float) -> None:
        self._store, self._owner, self._lease_s = store, asdict(owner), lease_s

    def begin(self, asked: Submission, spec: object, digest: str, *, new: bool = False) -> Begun:
        """Begin a run, or take up one of the same flow that did not end.

        Parameters
        ----------
        new
            Begin one in any case.

        Raises
        ------
        JobStateError
            Another process carries the same flow out at this moment.
        """
        with self._store.database.write(alone=True) as session:
            now = self._store.database.now_s(session)
            run = None if new else self._unfinished(session, digest)
            if run is not None:
                return self._taken_up(session, run, now)
            run = new_run(asked, now, None, digest)
            run.kind, run.sealed, run.state = FLOW, False, JobState.RUNNING.value
            run.document = {"spec": spec}
            session.add(run)
            session.flush()
            note(session, run, None, now, "submitted", asked.cause)
            self._have(run, now)
            return Begun(run.id, {}, continued=False)

    def _unfinished(self, session: Session, digest: str) -> Run | None:
        wanted = select(Run.id).where(
            Run.kind == FLOW, Run.fingerprint == digest, Run.sealed.is_(False)
        )
        run_id = session.scalar(wanted.order_by(Run.created_s.desc()).limit(1))
        return None if run_id is None else locked_run(session, run_id)

    def _taken_up(self, session: Session, run: Run, now_s: float) -> Begun:
        document = run.document or {}
        owner = document.get("owner")
        if owner is not None and document.get("lease_until_s", 0.0) > now_s:
            process = ProcessId(**owner)
            if not process.gone:
                raise JobStateError(f"run {run.id} of this flow is carried out by {process}")
        kept: dict[str, JobRecord] = {}
        for job in jobs_of(session, run):
            state = JobState(job.state)
            if state in _KEPT:
                kept[job.operation] = job_record(job)
                continue
            if state in ACTIVE:
                move(session, run, job, JobState.FAILED, "its process died", now_s)
            job.superseded = True
        self._have(run, now_s)
        note(session, run, None, now_s, "continued", f"{len(kept):,} jobs were finished")
        return Begun(run.id, kept, continued=True)

    def _have(self, run: Run, now_s: float) -> None:
        lease = {"owner": self._owner, "lease_until_s": now_s + self._lease_s}
        run.document = {**(run.document or {}), **lease, "wanted": Wanted.RUN.value}

    def renew(self, run_id: str) -> Wanted:
        """Renew the lease of a run; return what is wanted of it.

        Raises
        ------
        LeaseLostError
            Another process has it.
        """
        with self._store.database.write() as session:
            run = locked_run(session, run_id)
            document = run.document or {}
            if document.get("owner") != self._owner:
                raise LeaseLostError(f"run {run_id} is another process's by now")
            now = self._store.database.now_s(session)
            run.document = {**document, "lease_until_s": now + self._lease_s}
            return Wanted(document.get("wanted", Wanted.RUN.value))

    def add(self, asked: Submission, member: Membership, state: JobState, reason: str) -> None:
        """Record an operation that ended without having run."""
        with self._store.database.write() as session:
            now = self._store.database.now_s(session)
            run = locked_run(session, member.run_id)
            job = new_job(run, asked, "", (), now)
            job.mode, job.operation, job.params = (
                Mode.DIRECT.value,
                member.operation,
                dict(member.inputs),
            )
            session.add(job)
            session.flush()
            if state is JobState.FAILED:
                move(session, run, job, JobState.STARTING, "", now)
                job.error = reason
            move(session, run, job, state, reason, now)

    def measured(self, job_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to those of a job that has ended."""
        with self._store.database.write() as session:
            _, job = locked_job(session, job_id)
            job.metrics = {**job.metrics, **metrics}

    def finish(self, run_id: str, state: JobState, reason: str) -> None:
        """Note that no operation of a run is to come, and how it ended."""
        with self._store.database.write() as session:
            run = locked_run(session, run_id)
            now = self._store.database.now_s(session)
            run.sealed = True
            settle(session, run, now)
            run.state, run.reason, run.ended_s = state.value, reason, now
            run.document = {**(run.document or {}), "owner": None}
            note(session, run, None, now, "ended", reason, {"state": state.value})

    def past(self) -> list[Mapping[str, Any]]:
        """Return all jobs as searches and joins read them."""
        wanted = select(JobRow, Run.name).join(Run, Run.id == JobRow.run_id)
        wanted = wanted.where(JobRow.superseded.is_(False))
        with self._store.database.read() as session:
            return [searched(job_record(job), name) for job, name in session.execute(wanted)]


def searched(job: JobRecord, run_name: str) -> dict[str, Any]:
    """Return a job as searches and joins read it."""
    ended, started = job.ended_at, job.started_at
    inputs = {**job.arguments, **job.params} if job.table else dict(job.params)
    return {
        "id": job.id,
        "run_id": job.run_id,
        "name": job.operation or run_name,
        "kind": "backfill" if job.table else "job",
        "state": job.state.value,
        "table": job.table,
        "column": ", ".join(job.columns),
        "pool": job.pool,
        "project.name": job.db,
        "created_at": job.created_at,
        "updated_at": ended or started or job.created_at,
        "started_at": started,
        "finished_at": ended,
        "duration": (ended - started).total_seconds() if ended and started else None,
        "wait": (started - job.created_at).total_seconds() if started else None,
        "inputs": inputs,
        "outputs": job.outputs,
        "metrics": job.metrics,
        "artifacts": {a["name"]: a["path"] for a in job.artifacts},
    }
