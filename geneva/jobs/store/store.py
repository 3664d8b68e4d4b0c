"""The store: people submit runs and jobs, look at them, steer, retry and forget them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from geneva.engine.control import Wanted
from geneva.engine.process import ProcessId
from geneva.errors import JobStateError, NoSuchJobError, SettingError
from geneva.jobs.records import (
    FailureGroups,
    FailureWish,
    JobRecord,
    Keep,
    Mode,
    RunRecord,
    Submission,
)
from geneva.jobs.states import when_asked
from geneva.jobs.store.change import jobs_of, locked_job, locked_run, move, note, settle
from geneva.jobs.store.failed_rows import Picked, groups_of, picked_of
from geneva.jobs.store.lists import Lists
from geneva.jobs.store.mapping import JOBS, RUNS, job_record, run_record
from geneva.jobs.store.models import JobRow, Run, WindowRow
from geneva.jobs.store.queue import QueueClaim
from geneva.model.result import WindowState
from geneva.model.types import JobState
from geneva.storage.secrets import HIDDEN, without_secrets

_RUN, _JOB = Run.__table__.c, JobRow.__table__.c


class Store(Lists):
    """Runs and jobs in an SQL database.

    Parameters
    ----------
    database
        One that was brought up to date.
    """

    # --- submit ------------------------------------------------------------------------

    def submit(
        self,
        asked: Submission,
        table_uri: str,
        fills: Sequence[str],
        key: str | None = None,
    ) -> RunRecord:
        """Queue a backfill.

        Parameters
        ----------
        table_uri, fills
            The table as the engine names it, and all columns that are written.
        key
            The same key with the same request gives the run of the first time.

        Raises
        ------
        JobStateError
            The key was used for another request.
        SettingError
            It holds a secret, which everybody who reads the database could read.
        """
        fingerprint = _fingerprint(asked)
        _refuse_secrets(asked)
        with self.database.write(alone=key is not None) as session:
            if key is not None:
                run = session.scalar(select(Run).where(Run.idempotency_key == key))
                if run is not None and run.fingerprint != fingerprint:
                    raise JobStateError(
                        f"idempotency key {key!r} was used for another request (run {run.id})"
                    )
                if run is not None:
                    return run_record(run, jobs_of(session, run))
            run, job = queue_run(
                session, asked, table_uri, fills, self.database.now_s(session), key, fingerprint
            )
            return run_record(run, [job])

    def begin_direct(
        self,
        asked: Submission,
        table_uri: str,
        fills: Sequence[str],
        owner: ProcessId,
        lease_s: float,
        job_id: str,
    ) -> QueueClaim:
        """Record a backfill that the calling process carries out itself."""
        with self.database.write() as session:
            now = self.database.now_s(session)
            run = _new_run(asked, now, None, "")
            job = _new_job(run, asked, table_uri, fills, now)
            job.id, job.mode, job.epoch = job_id, Mode.DIRECT.value, 1
            job.owner, job.lease_until_s = asdict(owner), now + lease_s
            _add(session, run, job)
            move(session, run, job, JobState.STARTING, f"called in {owner}", now)
            return QueueClaim(job.id, job.epoch)

    # --- steer -------------------------------------------------------------------------

    def want(self, run_id: str, wanted: Wanted) -> RunRecord:
        """Pass a wish on to all jobs of a run.

        Raises
        ------
        JobStateError
            None of them can do it.
        """
        with self.database.write() as session:
            run = locked_run(session, run_id)
            now = self.database.now_s(session)
            jobs = jobs_of(session, run)
            live = [j for j in jobs if not JobState(j.state).ended] or jobs
            for job in live:
                self._want(session, run, job, wanted, now)
            return run_record(run, jobs)

    def want_job(self, job_id: str, wanted: Wanted) -> JobRecord:
        """Pass a wish on to one job."""
        with self.database.write() as session:
            run, job = locked_job(session, job_id)
            self._want(session, run, job, wanted, self.database.now_s(session))
            return job_record(job)

    def _want(self, session: Session, run: Run, job: JobRow, wanted: Wanted, now_s: float) -> None:
        state = JobState(job.state)
        before = Wanted(job.wanted)
        after = when_asked(state, before, wanted, has_process=job.owner is not None)
        if wanted is before and after is state:
            return
        job.wanted = wanted.value
        job.stop_asked_s = None if wanted is Wanted.RUN else now_s
        note(session, run, job, now_s, "wanted", "", {"wanted": wanted.value})
        if after is not state:
            job.stop_asked_s = None
            move(session, run, job, after, _WHY[wanted], now_s)

    def change(
        self,
        run_id: str,
        *,
        priority: int | None = None,
        max_active: int | Keep | None = Keep.KEEP,
    ) -> RunRecord:
        """Change the priority or the cap of a run, whatever its state.

        Parameters
        ----------
        max_active
            ``None`` lifts the cap.

        Raises
        ------
        JobStateError
            The run has one job, which no cap could hold back.
        """
        with self.database.write() as session:
            run = locked_run(session, run_id)
            now = self.database.now_s(session)
            jobs = jobs_of(session, run)
            if priority is not None:
                run.priority = priority
                for job in jobs:
                    job.priority = priority
            changed: dict[str, Any] = {} if priority is None else {"priority": priority}
            if max_active is not Keep.KEEP:
                if max_active is not None and sum(not j.superseded for j in jobs) == 1:
                    raise JobStateError(
                        f"run {run_id} has one job, so there is nothing to cap: max_active limits "
                        "how many jobs of a run are active at once"
                    )
                run.max_active = changed["max_active"] = max_active
            note(session, run, None, now, "changed", "", changed)
            return run_record(run, jobs)

    def retry(self, run_id: str) -> RunRecord:
        """Queue a child of each job that did not succeed, limited to its failed part.

        Raises
        ------
        JobStateError
            The run has not ended, or nothing of it failed.
        """
        with self.database.write() as session:
            run = locked_run(session, run_id)
            now = self.database.now_s(session)
            if not JobState(run.state).ended:
                raise JobStateError(f"run {run_id} is {run.state}; only what ended is retried")
            failed = [j for j in jobs_of(session, run) if j.state in _RETRIED]
            if not failed:
                raise JobStateError(f"run {run_id} is {run.state}: there is nothing to retry")
            for parent in failed:
                child = _child(parent, now)
                parent.superseded = True
                session.add(child)
                session.flush()
                note(session, run, child, now, "retry", f"of job {parent.id}")
                move(session, run, child, JobState.QUEUED, "waiting for the scheduler", now)
            settle(session, run, now)
            return run_record(run, jobs_of(session, run))

    def failure_groups(self, wish: FailureWish) -> FailureGroups:
        """Return failed rows that nobody computed since, grouped by column, error and message.

        Raises
        ------
        NoSuchJobError
            There is no such run.
        """
        with self.database.read() as session:
            return groups_of(session, wish)

    def retry_failures(self, wish: FailureWish, key: str) -> RunRecord:
        """Queue a run limited to the rows of a group; jobs that failed on them stay as they are.

        Raises
        ------
        NoSuchJobError
            There is no such group, or the records of one of its jobs were deleted meanwhile.
        JobStateError
            All of its rows are being retried already.
        """
        with self.database.read() as session:
            error, picked = picked_of(session, wish, key)
        return self._retry_rows(picked, f"{error} again")

    def _retry_rows(self, picked: Sequence[Picked], name: str) -> RunRecord:
        """Queue a run of one child for each job, all of one table."""
        with self.database.write() as session:
            now = self.database.now_s(session)
            parents = [_present(session.get(JobRow, p.job_id), p.job_id) for p in picked]
            children = [_limited(j, p, now) for j, p in zip(parents, picked, strict=True)]
            return _queue_apart(session, children, name, "rows", now)

    def retry_windows(self, job_id: str, keys: Sequence[str] = ()) -> RunRecord:
        """Queue a run of some windows of a job that has ended, which stays as it is.

        Parameters
        ----------
        keys
            The windows; by default those that failed.

        Raises
        ------
        NoSuchJobError
            There is no such job, or it has no window of such a key.
        JobStateError
            It has not ended, or no window of it failed.
        """
        with self.database.write() as session:
            _, parent = locked_job(session, job_id)
            if not JobState(parent.state).ended:
                raise JobStateError(f"job {job_id} is {parent.state}; only what ended is retried")
            states = self._window_states(session, job_id)
            if unknown := [k for k in keys if k not in states]:
                raise NoSuchJobError(f"job {job_id} has no window {unknown[0]!r}")
            failed = [k for k, s in states.items() if s == WindowState.FAILED]
            chosen = list(dict.fromkeys(keys)) or failed
            if not chosen:
                raise JobStateError(f"job {job_id} is {parent.state}: no window of it failed")
            now = self.database.now_s(session)
            child = _child(parent, now)
            windows = {**parent.arguments["windows"], "keys": chosen}
            child.arguments = {**child.arguments, "windows": windows, "retry_failed": True}
            name = chosen[0] if len(chosen) == 1 else f"{len(chosen):,} windows"
            return _queue_apart(session, [child], f"{name} again", "windows", now)

    @staticmethod
    def _window_states(session: Session, job_id: str) -> dict[str, str]:
        """Return the states of a job's windows by key; of several columns, a failed one counts."""
        wanted = select(WindowRow.key, WindowRow.state).where(WindowRow.job_id == job_id)
        wanted = wanted.order_by(WindowRow.column, WindowRow.number)
        states: dict[str, str] = {}
        for key, state in session.execute(wanted):
            if states.get(key) != WindowState.FAILED:
                states[key] = state
        return states

    # --- forget ------------------------------------------------------------------------

    def delete(self, run_id: str) -> None:
        """Remove the records of a run that has ended; values stay with the table.

        Raises
        ------
        JobStateError
            It has not ended.
        """
        with self.database.write() as session:
            run = locked_run(session, run_id)
            if not JobState(run.state).ended:
                raise JobStateError(f"run {run_id} is {run.state}; cancel it before")
            session.execute(delete(Run).where(Run.id == run_id))

    def forget(self, older_than_s: float) -> None:
        """Remove the records of runs that ended so long ago."""
        with self.database.write() as session:
            before = self.database.now_s(session) - older_than_s
            session.execute(delete(Run).where(Run.ended_s < before))

    def unknown(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of some ids that no job has."""
        with self.database.read() as session:
            return [i for i in job_ids if session.get(JobRow, i) is None]

    # --- look --------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRecord:
        """Return a run with all its jobs, superseded ones included."""
        with self.database.read() as session:
            run = session.execute(RUNS.select.where(_RUN.id == run_id)).first()
            if run is None:
                job = session.get(JobRow, run_id)
                hint = "" if job is None else f": that is a job of run {job.run_id}"
                raise NoSuchJobError(f"there is no run {run_id!r}{hint}")
            jobs = JOBS.select.where(_JOB.run_id == run_id).order_by(_JOB.created_s, _JOB.id)
            return run_record(run, session.execute(jobs).all())

    def job(self, job_id: str) -> JobRecord:
        """Return a job."""
        with self.database.read() as session:
            job = session.execute(JOBS.select.where(_JOB.id == job_id)).first()
            if job is None:
                raise NoSuchJobError(f"there is no job {job_id!r}")
            return job_record(job)


_RETRIED = {JobState.FAILED, JobState.PARTIAL, JobState.CANCELLED, JobState.UPSTREAM_FAILED}
_WHY = {
    Wanted.CANCEL: "cancelled before it was started",
    Wanted.PAUSE: "paused while it waited",
    Wanted.RUN: "resumed",
}


def queue_run(
    session: Session,
    asked: Submission,
    table_uri: str,
    fills: Sequence[str],
    now_s: float,
    key: str | None = None,
    fingerprint: str = "",
) -> tuple[Run, JobRow]:
    """Add a run of one job, queued."""
    run = _new_run(asked, now_s, key, fingerprint)
    job = _new_job(run, asked, table_uri, fills, now_s)
    _add(session, run, job)
    note(session, run, job, now_s, "submitted", asked.cause)
    move(session, run, job, JobState.QUEUED, "waiting for the scheduler", now_s)
    return run, job


def _add(session: Session, run: Run, job: JobRow) -> None:
    for row in (run, job):  # without a relationship, one flush inserts in any order
        session.add(row)
        session.flush()


def _new_id() -> str:
    return uuid4().hex[:12]


def _new_run(asked: Submission, now_s: float, key: str | None, fingerprint: str) -> Run:
    return Run(
        id=_new_id(),
        name=asked.name,
        cause=asked.cause,
        state=JobState.PENDING.value,
        db=asked.db,
        table=asked.table,
        columns=list(asked.columns),
        priority=asked.priority,
        max_active=asked.max_active,
        idempotency_key=key,
        fingerprint=fingerprint,
        created_s=now_s,
        event_seq=0,
        sealed=True,
    )


def _new_job(
    run: Run, asked: Submission, table_uri: str, fills: Sequence[str], now_s: float
) -> JobRow:
    return JobRow(
        id=_new_id(),
        run_id=run.id,
        mode=Mode.SERVICE.value,
        db=asked.db,
        table=asked.table,
        table_uri=table_uri,
        columns=list(asked.columns),
        fills=sorted(fills),
        fragments=asked.arguments.get("fragments"),
        arguments=dict(asked.arguments),
        ray=dict(asked.ray),
        params=dict(asked.arguments.get("params") or {}),
        pool=asked.pool,
        priority=asked.priority,
        cause=asked.cause,
        state=JobState.PENDING.value,
        created_s=now_s,
        queued_s=now_s,
    )


def _child(parent: JobRow, now_s: float) -> JobRow:
    """Return the retry of a job: its missing rows and its failed ones."""
    if HIDDEN in json.dumps([parent.arguments, parent.ray]):
        raise JobStateError(
            f"job {parent.id} was recorded without its secrets, so only its caller can repeat it"
        )
    arguments = dict(parent.arguments)
    if parent.state == JobState.PARTIAL:
        # All else is done, so a forced run is not forced again.
        arguments |= {"retry_failed": True, "force": False}
    elif parent.rows_failed:
        arguments["retry_failed"] = True
    copied: tuple[str, ...] = (
        "run_id",
        "mode",
        "db",
        "table",
        "table_uri",
        "columns",
        "fills",
        "fragments",
        "ray",
    )
    copied += ("params", "pool", "priority")
    return JobRow(
        **{n: getattr(parent, n) for n in copied} | {"mode": Mode.SERVICE.value},
        id=_new_id(),
        parent_id=parent.id,
        arguments=arguments,
        cause="retry",
        state=JobState.PENDING.value,
        created_s=now_s,
        queued_s=now_s,
    )


def _refuse_secrets(asked: Submission) -> None:
    given = dict(asked.arguments) | {"ray": dict(asked.ray)}
    kept = without_secrets(asked.arguments)
    kept["ray"] = without_secrets(asked.ray, by_name=True)
    found = [name for name in given if given[name] != kept[name]]
    if found:
        raise SettingError(
            f"{' and '.join(found)} would put a secret into the database of jobs: set it in the "
            "environment of the service and of Ray's nodes instead"
        )


def _queue_apart(
    session: Session, children: Sequence[JobRow], name: str, part: str, now_s: float
) -> RunRecord:
    """Queue retries of parts of jobs of one table in a run of their own."""
    first = children[0]
    columns = tuple(dict.fromkeys(c for child in children for c in child.columns))
    asked = Submission(
        first.db, first.table, columns, name=name, priority=first.priority, cause="retry"
    )
    run = _new_run(asked, now_s, None, "")
    session.add(run)
    session.flush()
    for child in children:
        child.run_id = run.id
        session.add(child)
        session.flush()
        note(session, run, child, now_s, "retry", f"of {part} of job {child.parent_id}")
        move(session, run, child, JobState.QUEUED, "waiting for the scheduler", now_s)
    return run_record(run, children)


def _limited(parent: JobRow, picked: Picked, now_s: float) -> JobRow:
    """Return a retry of some rows of a job, which stays as it is.

    A job that stopped at the first failure is continued as a whole.
    """
    child = _child(parent, now_s)
    child.columns = [c for c in parent.columns if c in picked.columns] or parent.columns
    child.fills = [c for c in parent.fills if c in picked.columns] or parent.fills
    if parent.arguments.get("on_error") == "null":
        only = {"only": [list(span) for span in picked.only], "retry_failed": True, "force": False}
        child.arguments = {k: v for k, v in child.arguments.items() if k != "num_frags"} | only
    return child


def _present(job: JobRow | None, job_id: str) -> JobRow:
    if job is None:
        raise NoSuchJobError(f"there is no job {job_id!r}; its records were deleted")
    return job


def _fingerprint(asked: Submission) -> str:
    try:
        text = json.dumps(asdict(replace(asked, cause="")), sort_keys=True)
    except TypeError as error:
        raise SettingError(f"the arguments of a job that is kept must be JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()
