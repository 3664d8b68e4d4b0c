"""Pages of runs, jobs, tasks, events and failures, and the pools."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, case, func, select, tuple_
from sqlalchemy.orm import Session

from geneva.errors import JobStateError, NoSuchJobError, SettingError
from geneva.jobs.page import MAX_LIMIT, Page, Wish, decode_cursor, encode_cursor
from geneva.jobs.records import (
    DEFAULT_POOL,
    STAGES,
    EventRecord,
    FailureRecord,
    JobRecord,
    PoolRecord,
    RunRecord,
    StageRecord,
    TaskRecord,
    TaskState,
    WindowRecord,
)
from geneva.jobs.states import ACTIVE
from geneva.jobs.store.database import Database
from geneva.jobs.store.mapping import (
    EVENTS,
    FAILURES,
    JOBS,
    RUNS,
    TASKS,
    WINDOWS,
    job_record,
    run_record,
)
from geneva.jobs.store.models import Base, Event, FailureRow, JobRow, Pool, Run, TaskRow, WindowRow
from geneva.model.result import WindowState
from geneva.model.types import JobState

_MOST = 2**31 - 1  # of a whole number in a column
_RUN, _JOB = Run.__table__.c, JobRow.__table__.c
_SLOTS = select(Pool.name, Pool.slots)
_COUNTED: Select[Any] = select(_JOB.state, _JOB.pool, func.count()).group_by(_JOB.state, _JOB.pool)
_RUN_ID, _JOB_ID = select(_RUN.id), select(_JOB.id)


class Lists:
    """Reads pages of an SQL database of jobs."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def runs(self, wish: Wish) -> Page[RunRecord]:
        """Return runs, the newest first unless asked otherwise."""
        with self.database.read() as session:
            found = session.execute(_wished(Run, RUNS.select, wish)).all()
            shown = found[: wish.limit]
            jobs: dict[str, list[Row[Any]]] = {run.id: [] for run in shown}
            of_them = JOBS.select.where(_JOB.run_id.in_(jobs), _JOB.superseded.is_(False))
            for job in session.execute(of_them.order_by(_JOB.created_s, _JOB.id)):
                jobs[job.run_id].append(job)
        return Page([run_record(r, jobs[r.id]) for r in shown], _next(Run, found, wish))

    def jobs(self, wish: Wish) -> Page[JobRecord]:
        """Return jobs, the newest first unless asked otherwise."""
        with self.database.read() as session:
            found = session.execute(_wished(JobRow, JOBS.select, wish)).all()
        return Page([job_record(j) for j in found[: wish.limit]], _next(JobRow, found, wish))

    def tasks(
        self,
        job_id: str,
        state: TaskState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[TaskRecord]:
        """Return the fragments of a job in order."""
        _check_limit(limit, 10_000)
        of = TaskRow.__table__.c
        wanted = TASKS.select.where(of.job_id == job_id)
        wanted = wanted.order_by(of.column, of.fragment_id).limit(limit + 1)
        if state is not None:
            wanted = wanted.where(of.state == state.value)
        if cursor is not None:
            after = decode_cursor(cursor, str, int)
            wanted = wanted.where(tuple_(of.column, of.fragment_id) > tuple_(*after))
        with self.database.read() as session:
            _known(session, job_id)
            found = session.execute(wanted).all()
        if len(found) <= limit:
            return Page([TASKS.record(t) for t in found])
        last = found[limit - 1]
        cursor = encode_cursor(last.column, last.fragment_id)
        return Page([TASKS.record(t) for t in found[:limit]], cursor)

    def windows(
        self,
        job_id: str,
        state: WindowState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[WindowRecord]:
        """Return the windows of a job, in the order in which they open."""
        _check_limit(limit, 10_000)
        of = WindowRow.__table__.c
        wanted = WINDOWS.select.where(of.job_id == job_id)
        wanted = wanted.order_by(of.column, of.number).limit(limit + 1)
        if state is not None:
            wanted = wanted.where(of.state == state.value)
        if cursor is not None:
            after = decode_cursor(cursor, str, int)
            wanted = wanted.where(tuple_(of.column, of.number) > tuple_(*after))
        with self.database.read() as session:
            _known(session, job_id)
            rows = session.execute(wanted).all()
        windows = [WINDOWS.record(w) for w in rows[:limit]]
        more = len(rows) > limit
        return Page(
            windows, encode_cursor(windows[-1].column, windows[-1].number) if more else None
        )

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
            _known(session, job_id)
            for column, state, number, failed, held, *spent in session.execute(
                wanted.order_by(TaskRow.column)
            ):
                fragments[column][TaskState(state)] = number
                rows, holders = failures[column]
                failures[column] = (rows + int(failed), holders + int(held))
                for stage, sum_s in zip(STAGES, spent, strict=True):
                    seconds[column][stage] += sum_s
        return [StageRecord(c, fragments[c], seconds[c], *failures[c]) for c in fragments]

    def failures(
        self, job_id: str, limit: int = 100, cursor: str | None = None
    ) -> Page[FailureRecord]:
        """Return the rows on which a job's UDF failed."""
        _check_limit(limit)
        of = FailureRow.__table__.c
        wanted = FAILURES.select.where(of.job_id == job_id)
        wanted = wanted.order_by(of.column, of.fragment_id, of.row)
        if cursor is not None:
            after = decode_cursor(cursor, str, int, int)
            place = tuple_(of.column, of.fragment_id, of.row)
            wanted = wanted.where(place > tuple_(*after))
        with self.database.read() as session:
            _known(session, job_id)
            found = session.execute(wanted.limit(limit + 1)).all()
        if len(found) <= limit:
            return Page([FAILURES.record(f) for f in found])
        last = found[limit - 1]
        cursor = encode_cursor(last.column, last.fragment_id, last.row)
        return Page([FAILURES.record(f) for f in found[:limit]], cursor)

    def events(self, run_id: str, after: int = 0, limit: int = MAX_LIMIT) -> Page[EventRecord]:
        """Return the events of a run that came after its n-th."""
        _check_limit(limit)
        after = min(after, _MOST)
        of = Event.__table__.c
        wanted = (
            EVENTS.select.where(of.run_id == run_id, of.seq > after).order_by(of.seq).limit(limit)
        )
        with self.database.read() as session:
            if session.execute(_RUN_ID.where(_RUN.id == run_id)).first() is None:
                raise NoSuchJobError(f"there is no run {run_id!r}")
            found = session.execute(wanted.order_by(of.seq).limit(limit)).all()
        return Page([EVENTS.record(e) for e in found])

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
            found = session.get(Pool, name) if name else None
            if found is None:
                raise NoSuchJobError(f"there is no pool {name!r}")
            live = select(func.count()).where(_JOB.pool == name, _JOB.ended_s.is_(None))
            if number := session.execute(live).scalar_one():
                raise JobStateError(f"{number:,} jobs of pool {name!r} have not ended")
            session.delete(found)

    def counts(self) -> tuple[dict[JobState, int], list[PoolRecord]]:
        """Return the number of jobs in each state, and the pools."""
        with self.database.read() as session:
            slots = _slots(session)
            counted = session.execute(_COUNTED).all()
        by_state: Counter[JobState] = Counter()
        for state, _, number in counted:
            by_state[JobState(state)] += number
        return dict(by_state), _pools(slots, counted)


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


def _wished(model: type[Base], wanted: Select[Any], wish: Wish) -> Select[Any]:
    """Return the query for runs or jobs, one more than the page holds."""
    _check_limit(wish.limit)
    of = model.__table__.c
    if wish.states:
        wanted = wanted.where(of.state.in_([s.value for s in wish.states]))
    for name in ("db", "table"):
        if (value := getattr(wish, name)) is not None:
            wanted = wanted.where(of[name] == value)
    if wish.pool is not None and model is JobRow:
        wanted = wanted.where(of.pool == wish.pool)
    if wish.name is not None and model is Run:
        wanted = wanted.where(of.name == wish.name)
    name, kind = _sorted_by(model, wish)
    order = (of[name], of.id)
    place = tuple_(*order)
    down = wish.sort.startswith("-")
    if wish.cursor is not None:
        after = tuple_(*decode_cursor(wish.cursor, kind, str))
        wanted = wanted.where(place < after if down else place > after)
    wanted = wanted.order_by(*((c.desc() for c in order) if down else order))
    return wanted.limit(wish.limit + 1)


def _sorted_by(model: type[Base], wish: Wish) -> tuple[str, type]:
    """Return the column that a list is sorted by, and the kind of its values."""
    name, kind = _SORTS[wish.sort.removeprefix("-")]
    if not hasattr(model, name):
        raise SettingError(f"jobs cannot be sorted by {name}: they have none")
    return name, kind


_SORTS = {"created": ("created_s", float), "priority": ("priority", int), "name": ("name", str)}


def _next(model: type[Base], found: Sequence[Row[Any]], wish: Wish) -> str | None:
    if len(found) <= wish.limit:
        return None
    last = found[wish.limit - 1]
    name, _ = _sorted_by(model, wish)
    return encode_cursor(getattr(last, name), last.id)


def _check_limit(limit: int, most: int = MAX_LIMIT) -> None:
    if not 1 <= limit <= most:
        raise SettingError(f"limit={limit} must be 1 to {most}")


def _known(session: Session, job_id: str) -> None:
    if session.execute(_JOB_ID.where(_JOB.id == job_id)).first() is None:
        raise NoSuchJobError(f"there is no job {job_id!r}")
