"""The store: people submit runs and jobs, look at them, steer, retry and forget them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Row, Select, case, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from geneva.engine.control import Wanted
from geneva.engine.process import ProcessId
from geneva.errors import JobStateError, NoSuchJobError, SettingError
from geneva.jobs.page import MAX_LIMIT, Page, RunQuery, Wish, decode_cursor, encode_cursor
from geneva.jobs.records import (
    DEFAULT_POOL,
    STAGES,
    EventRecord,
    FailureGroups,
    FailureRecord,
    FailureWish,
    JobRecord,
    Keep,
    Membership,
    Mode,
    PoolRecord,
    RunRecord,
    StageRecord,
    Submission,
    TaskRecord,
    TaskState,
    WindowRecord,
)
from geneva.jobs.states import ACTIVE, RETRIED, when_asked
from geneva.jobs.store.change import jobs_of, locked_job, locked_run, move, note, settle
from geneva.jobs.store.database import Database
from geneva.jobs.store.failed_rows import groups_of, picked_of
from geneva.jobs.store.mapping import (
    EVENTS,
    FAILURES,
    JOBS,
    RUNS,
    TASKS,
    WINDOWS,
    Reading,
    job_record,
    moment,
    run_record,
)
from geneva.jobs.store.models import EndedSession, Event, JobRow, Pool, Run, TaskRow, WindowRow
from geneva.jobs.store.new_rows import (
    add_rows,
    fingerprint_of,
    new_job,
    new_run,
    queue_apart,
    queue_run,
    refuse_secrets,
    retry_of,
    retry_of_rows,
)
from geneva.jobs.store.queue import QueueClaim
from geneva.jobs.store.wishes import check_limit, counted_by_state, next_cursor, paged, wished
from geneva.model.result import WindowState
from geneva.model.types import JobState

_RUN, _JOB = Run.__table__.c, JobRow.__table__.c
MAX_JOBS = 300
"""Jobs of one timeline."""
_MOST = 2**31 - 1  # of a whole number in a column
_SLOTS = select(Pool.name, Pool.slots)
_COUNTED: Select[Any] = select(_JOB.state, _JOB.pool, func.count()).group_by(_JOB.state, _JOB.pool)
_RUN_ID, _JOB_ID = select(_RUN.id), select(_JOB.id)
_OF_TASK: Mapping[str, type] = {"column": str, "fragment_id": int}
_OF_WINDOW: Mapping[str, type] = {"column": str, "number": int}
_OF_FAILURE: Mapping[str, type] = {"column": str, "fragment_id": int, "row": int}
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class CountedRuns:
    """One page of runs; ``counts`` are of all states, whichever are wanted."""

    runs: Sequence[RunRecord]
    counts: Counter[JobState]
    total: int


@dataclass(frozen=True, slots=True)
class JobSpan:
    """A job on a timeline, and since when it was in which state, in order."""

    job: JobRecord
    changes: Sequence[tuple[datetime, JobState]]


@dataclass(frozen=True, slots=True)
class Fragments:
    """The fragments of one column of a job in order, with their states and their failed rows."""

    ids: Sequence[int]
    states: Sequence[TaskState]
    failed: Sequence[int]


class Store:
    """Runs and jobs in an SQL database.

    Parameters
    ----------
    database
        One that was brought up to date.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    # --- submit ------------------------------------------------------------------------

    def submit(
        self,
        submission: Submission,
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
        fingerprint = fingerprint_of(submission)
        refuse_secrets(submission)
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
                session,
                submission,
                table_uri,
                fills,
                self.database.now_s(session),
                key,
                fingerprint,
            )
            return run_record(run, [job])

    def begin_direct(
        self,
        submission: Submission,
        table_uri: str,
        fills: Sequence[str],
        owner: ProcessId,
        lease_s: float,
        job_id: str,
        member: Membership | None = None,
    ) -> QueueClaim:
        """Record a job that the calling process carries out itself, perhaps as one of a flow."""
        with self.database.write() as session:
            now = self.database.now_s(session)
            if member is None:
                run = new_run(submission, now, None, "")
            else:
                run = locked_run(session, member.run_id)
            job = new_job(run, submission, table_uri, fills, now)
            job.id, job.mode, job.epoch = job_id, Mode.DIRECT.value, 1
            job.owner, job.lease_until_s = asdict(owner), now + lease_s
            if member is not None:
                job.operation, job.params = member.operation, dict(member.inputs)
            add_rows(session, run, job)
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
            if run.document is not None and not run.sealed:  # also of operations to come
                run.document = {**run.document, "wanted": wanted.value}
                live = [j for j in live if not JobState(j.state).ended]
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
            failed = [j for j in jobs_of(session, run) if j.state in RETRIED]
            if not failed:
                raise JobStateError(f"run {run_id} is {run.state}: there is nothing to retry")
            for parent in failed:
                child = retry_of(parent, now)
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
        with self.database.write() as session:
            now = self.database.now_s(session)
            parents = [_present(session.get(JobRow, p.job_id), p.job_id) for p in picked]
            children = [retry_of_rows(j, p, now) for j, p in zip(parents, picked, strict=True)]
            return queue_apart(session, children, f"{error} again", "rows", now)

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
            child = retry_of(parent, now)
            windows = {**parent.arguments["windows"], "keys": chosen}
            child.arguments = {**child.arguments, "windows": windows, "retry_failed": True}
            name = chosen[0] if len(chosen) == 1 else f"{len(chosen):,} windows"
            return queue_apart(session, [child], f"{name} again", "windows", now)

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

    # --- lists -------------------------------------------------------------------------

    def runs(self, wish: Wish) -> Page[RunRecord]:
        """Return runs, the newest first unless asked otherwise."""
        with self.database.read() as session:
            rows = session.execute(wished(Run, RUNS.select, wish)).all()
            shown = _with_jobs(session, rows[: wish.limit])
        return Page(shown, next_cursor(Run, rows, wish))

    def counted_runs(self, wish: RunQuery) -> CountedRuns:
        """Return a page of runs by its number, and how many there are in each state."""
        per_state = counted_by_state(wish)
        with self.database.read() as session:
            counts = Counter({JobState(s): n for s, n in session.execute(per_state)})
            shown = _with_jobs(session, session.execute(paged(RUNS.select, wish)).all())
        total = sum(n for s, n in counts.items() if not wish.states or s in wish.states)
        return CountedRuns(shown, counts, total)

    def tables(self) -> list[str]:
        """Return the tables of all runs."""
        return self._distinct(Run.table)

    def causes(self) -> list[str]:
        """Return the causes of all runs."""
        return self._distinct(Run.cause)

    def _distinct(self, column: Any) -> list[str]:
        with self.database.read() as session:
            return list(session.scalars(select(column).distinct().order_by(column)))

    def jobs(self, wish: Wish) -> Page[JobRecord]:
        """Return jobs, the newest first unless asked otherwise."""
        with self.database.read() as session:
            rows = session.execute(wished(JobRow, JOBS.select, wish)).all()
        jobs = [job_record(j) for j in rows[: wish.limit]]
        return Page(jobs, next_cursor(JobRow, rows, wish))

    def spans(self, since: datetime, until: datetime) -> list[JobSpan]:
        """Return the jobs that existed in a stretch of time, the newest `MAX_JOBS`, oldest first.

        Those that ended before it are left out, as are those that were made after it.
        """
        alive = or_(JobRow.ended_s.is_(None), JobRow.ended_s >= since.timestamp())
        wanted = select(JobRow).where(JobRow.created_s <= until.timestamp(), alive)
        wanted = wanted.order_by(JobRow.created_s.desc(), JobRow.id).limit(MAX_JOBS)
        with self.database.read() as session:
            jobs = list(session.scalars(wanted))[::-1]
            moved = select(Event).where(
                Event.run_id.in_({j.run_id for j in jobs}), Event.kind == "state"
            )
            changes: dict[str | None, list[tuple[datetime, JobState]]] = defaultdict(list)
            for event in session.scalars(moved.order_by(Event.run_id, Event.seq)):
                changes[event.job_id].append((moment(event.at_s), JobState(event.data["to"])))
            return [JobSpan(job_record(j), changes[j.id]) for j in jobs]

    # --- parts of a run ----------------------------------------------------------------

    def tasks(
        self,
        job_id: str,
        state: TaskState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[TaskRecord]:
        """Return the fragments of a job in order."""
        check_limit(limit, 10_000)
        return self._parts(TASKS, job_id, _OF_TASK, state, limit, cursor)

    def windows(
        self,
        job_id: str,
        state: WindowState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[WindowRecord]:
        """Return the windows of a job, in the order in which they open."""
        check_limit(limit, 10_000)
        return self._parts(WINDOWS, job_id, _OF_WINDOW, state, limit, cursor)

    def failures(
        self, job_id: str, limit: int = 100, cursor: str | None = None
    ) -> Page[FailureRecord]:
        """Return the rows on which a job's UDF failed."""
        check_limit(limit)
        return self._parts(FAILURES, job_id, _OF_FAILURE, None, limit, cursor)

    def _parts(
        self,
        reading: Reading[R],
        job_id: str,
        key: Mapping[str, type],
        state: StrEnum | None,
        limit: int,
        cursor: str | None,
    ) -> Page[R]:
        """Return a page of the parts of a job, in the order of their key."""
        of = reading.model.__table__.c
        place = [of[name] for name in key]
        selected = reading.select.where(of.job_id == job_id).order_by(*place).limit(limit + 1)
        if state is not None:
            selected = selected.where(of.state == state.value)
        if cursor is not None:
            after = decode_cursor(cursor, *key.values())
            selected = selected.where(tuple_(*place) > tuple_(*after))
        with self.database.read() as session:
            _check_known(session, job_id)
            rows = session.execute(selected).all()
        records = [reading.record(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(records)
        last = rows[limit - 1]
        return Page(records, encode_cursor(*(getattr(last, name) for name in key)))

    def stages(self, job_id: str) -> list[StageRecord]:
        """Return the sums over the fragments of each column of a job."""
        sums = [func.sum(getattr(TaskRow, f"seconds_{s}")) for s in STAGES]
        holding = func.sum(case((TaskRow.rows_failed > 0, 1), else_=0))
        sums = [func.sum(TaskRow.rows_failed), holding, *sums]
        wanted = select(TaskRow.column, TaskRow.state, func.count(), *sums)
        wanted = wanted.where(TaskRow.job_id == job_id).group_by(TaskRow.column, TaskRow.state)
        fragments: dict[str, dict[TaskState, int]] = defaultdict(dict)
        seconds: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(STAGES, 0.0))
        failures: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        with self.database.read() as session:
            _check_known(session, job_id)
            for column, state, number, failed, held, *spent in session.execute(
                wanted.order_by(TaskRow.column)
            ):
                fragments[column][TaskState(state)] = number
                rows, holders = failures[column]
                failures[column] = (rows + int(failed), holders + int(held))
                for stage, sum_s in zip(STAGES, spent, strict=True):
                    seconds[column][stage] += sum_s
        return [StageRecord(c, fragments[c], seconds[c], *failures[c]) for c in fragments]

    def events(self, run_id: str, after: int = 0, limit: int = MAX_LIMIT) -> Page[EventRecord]:
        """Return the events of a run that came after its n-th."""
        check_limit(limit)
        after = min(after, _MOST)
        of = Event.__table__.c
        wanted = EVENTS.select.where(of.run_id == run_id, of.seq > after)
        with self.database.read() as session:
            if session.execute(_RUN_ID.where(_RUN.id == run_id)).first() is None:
                raise NoSuchJobError(f"there is no run {run_id!r}")
            rows = session.execute(wanted.order_by(of.seq).limit(limit)).all()
        return Page([EVENTS.record(e) for e in rows])

    def latest_events(self, run_id: str, limit: int) -> list[EventRecord]:
        """Return the latest events of a run, the newest first."""
        wanted = select(Event).where(Event.run_id == run_id).order_by(Event.seq.desc())
        with self.database.read() as session:
            return [EVENTS.record(e) for e in session.scalars(wanted.limit(limit))]

    def fragments(self, job_id: str, column: str) -> Fragments:
        """Return the fragments of one column of a job."""
        wanted = select(TaskRow.fragment_id, TaskRow.state, TaskRow.rows_failed)
        wanted = wanted.where(TaskRow.job_id == job_id, TaskRow.column == column)
        with self.database.read() as session:
            rows = session.execute(wanted.order_by(TaskRow.fragment_id)).all()
        names = {s.value: s for s in TaskState}
        ids, states, failed = zip(*rows, strict=True) if rows else ((), (), ())
        return Fragments(ids, [names[state] for state in states], failed)

    def fragment(self, job_id: str, column: str, fragment_id: int) -> TaskRecord:
        """Return one fragment of a job.

        Raises
        ------
        NoSuchJobError
            The job has none such.
        """
        with self.database.read() as session:
            task = session.get(TaskRow, (job_id, column, fragment_id))
            if task is None:
                raise NoSuchJobError(f"job {job_id!r} has no fragment {fragment_id} of {column!r}")
            return TASKS.record(task)

    # --- pools -------------------------------------------------------------------------

    def pools(self) -> list[PoolRecord]:
        """Return the pools; the one with the empty name stands for all jobs."""
        going_on = [*(s.value for s in ACTIVE), JobState.QUEUED.value]
        with self.database.read() as session:
            slots = _slots(session)
            counted = session.execute(_COUNTED.where(_JOB.state.in_(going_on))).all()
        return _pools(slots, counted)

    def set_pool(self, name: str, slots: int | None) -> None:
        """Set how many jobs of a pool may be active at once; running ones go on."""
        if slots is not None and slots < 0:
            raise SettingError(f"slots={slots} must be 0, more, or null for no cap")
        with self.database.write() as session:
            session.merge(Pool(name=name, slots=slots))

    def delete_pool(self, name: str) -> None:
        """Remove a pool that no live job is in.

        Raises
        ------
        NoSuchJobError
            There is none of that name.
        JobStateError
            Jobs that have not ended are in it.
        """
        with self.database.write() as session:
            pool = session.get(Pool, name) if name else None
            if pool is None:
                raise NoSuchJobError(f"there is no pool {name!r}")
            live = select(func.count()).where(_JOB.pool == name, _JOB.ended_s.is_(None))
            if number := session.execute(live).scalar_one():
                raise JobStateError(f"{number:,} jobs of pool {name!r} have not ended")
            session.delete(pool)

    def counts(self) -> tuple[dict[JobState, int], list[PoolRecord]]:
        """Return the number of jobs in each state, and the pools."""
        with self.database.read() as session:
            slots = _slots(session)
            counted = session.execute(_COUNTED).all()
        by_state: Counter[JobState] = Counter()
        for state, _, number in counted:
            by_state[JobState(state)] += number
        return dict(by_state), _pools(slots, counted)

    # --- sessions of browsers ----------------------------------------------------------

    def end_session(self, session_id: str, until_s: float) -> None:
        """Take note that a session was ended: a copy of its cookie opens nothing from then on.

        Parameters
        ----------
        until_s
            When it would be over by itself, after which nobody needs to know.
        """
        with self.database.write() as session:
            now = self.database.now_s(session)
            session.execute(delete(EndedSession).where(EndedSession.until_s < now))
            session.merge(EndedSession(id=session_id, until_s=until_s))

    def is_ended(self, session_id: str) -> bool:
        """Whether somebody ended a session."""
        with self.database.read() as session:
            return session.get(EndedSession, session_id) is not None


_WHY = {
    Wanted.CANCEL: "cancelled before it was started",
    Wanted.PAUSE: "paused while it waited",
    Wanted.RUN: "resumed",
}


def _with_jobs(session: Session, runs: Sequence[Row[Any]]) -> list[RunRecord]:
    """Return runs with the jobs that no retry has taken the place of."""
    jobs: dict[str, list[Row[Any]]] = {run.id: [] for run in runs}
    present = JOBS.select.where(_JOB.run_id.in_(jobs), _JOB.superseded.is_(False))
    for job in session.execute(present.order_by(_JOB.created_s, _JOB.id)):
        jobs[job.run_id].append(job)
    return [run_record(r, jobs[r.id]) for r in runs]


def _slots(session: Session) -> dict[str, int | None]:
    return {name: slots for name, slots in session.execute(_SLOTS)}


def _pools(slots: dict[str, int | None], counted: Sequence[Any]) -> list[PoolRecord]:
    taken: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for state, pool, number in counted:
        if state in ACTIVE:
            taken[pool] += number
        elif state == JobState.QUEUED:
            waiting[pool] += number
    names = sorted({"", DEFAULT_POOL, *slots, *taken, *waiting})
    taken[""], waiting[""] = taken.total(), waiting.total()
    return [PoolRecord(n, slots.get(n), taken[n], waiting[n]) for n in names]


def _present(job: JobRow | None, job_id: str) -> JobRow:
    if job is None:
        raise NoSuchJobError(f"there is no job {job_id!r}; its records were deleted")
    return job


def _check_known(session: Session, job_id: str) -> None:
    if session.execute(_JOB_ID.where(_JOB.id == job_id)).first() is None:
        raise NoSuchJobError(f"there is no job {job_id!r}")
