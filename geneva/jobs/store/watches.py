"""The columns that a service keeps filled, and the runs that are made for them.

Several schedulers look at the same columns. Each decides by itself, from a row that it read; the
decision takes effect in one transaction that finds the row unchanged, and is void otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from geneva.jobs.records import Submission, WatchRecord
from geneva.jobs.store.database import Database
from geneva.jobs.store.mapping import WATCHES
from geneva.jobs.store.models import JobRow, Run, TaskRow, WatchRow
from geneva.jobs.store.new_rows import queue_run
from geneva.model.types import JobState

_FIRST_WAIT_S, _MAX_WAIT_S = 60.0, 3600.0
_SKEW_S = 60.0  # by which a clock may be set back, and all goes on
_LIVE = [s.value for s in JobState if not s.ended]
_FAILED = (JobState.FAILED, JobState.UPSTREAM_FAILED)


@dataclass(frozen=True, slots=True)
class Watched:
    """A column group that is to be kept filled, as its table says it."""

    db: str
    table: str
    table_uri: str
    incarnation: str
    columns: tuple[str, ...]
    schedule: str
    digest: str


@dataclass(frozen=True, slots=True)
class WatchLook:
    """The facts of a decision.

    Attributes
    ----------
    now_s
        The database's clock.
    live
        Id of a job that fills one of the columns and has not ended.
    idle_version
        While the table has this version and the UDF is the same, there is nothing to do.
    """

    watched: Watched
    now_s: float
    live: str | None
    changes: int
    version: int | None
    idle_version: int | None
    fired_s: float | None
    not_before_s: float
    digest: str

    @property
    def rebound(self) -> bool:
        """Whether another UDF was bound since the last decision."""
        return bool(self.digest) and self.digest != self.watched.digest


class Watches:
    """The side of the database that makes runs without being asked each time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def look(self, watched: Watched) -> WatchLook:
        """Return the watch of a column group, after taking in the end of its latest run."""
        with self._database.read() as session:
            watch = session.get(WatchRow, (watched.table_uri, watched.incarnation))
            live, now_s = _live(session, watched), self._database.now_s(session)
            if watch is not None and _is_known(watch, watched, now_s) and (watch.judged or live):
                return _look(watched, watch, live, now_s)
        with self._database.write(alone=True) as session:
            now_s = self._database.now_s(session)
            watch = _locked(session, watched) or _new(session, watched, now_s)
            if not _is_known(watch, watched, now_s):
                watch.schedule, watch.fired_s = watched.schedule, _begin(watched, now_s)
                watch.not_before_s = min(watch.not_before_s, now_s + _MAX_WAIT_S)
                watch.changes += 1
            live = _live(session, watched)
            if not watch.judged and live is None:
                _judge(session, watch, now_s)
            return _look(watched, watch, live, now_s)

    def settle(self, look: WatchLook, version: int, reason: str = "nothing to do") -> None:
        """Note that no run is made until the table has another version, or the UDF changes."""
        with self._database.write() as session:
            watch = _unchanged(session, look)
            if watch is not None:
                _decide(watch, look, version, reason)
                watch.idle_version = version

    def refuse(self, look: WatchLook, reason: str) -> None:
        """Note that no run can be made; it is tried again later and later."""
        with self._database.write() as session:
            watch = _unchanged(session, look)
            if watch is not None:
                _decide(watch, look, watch.version, reason)
                _back_off(watch, look.now_s)

    def submit(
        self, look: WatchLook, version: int, submission: Submission, fills: Sequence[str]
    ) -> str | None:
        """Queue a run; return its id, or ``None`` if somebody else was first.

        Parameters
        ----------
        version
            From which it was planned.
        """
        with self._database.write(alone=True) as session:
            watch = _unchanged(session, look)
            if watch is None or _live(session, look.watched) is not None:
                return None
            now_s = self._database.now_s(session)
            run, _ = queue_run(session, submission, look.watched.table_uri, fills, now_s)
            _decide(watch, look, version, submission.cause)
            watch.run_id, watch.judged, watch.planned_version = run.id, False, version
            watch.idle_version = None
            return run.id

    def keep(self, table_uri: str, incarnations: Collection[str]) -> None:
        """Forget the columns of a table that are not kept filled any more."""
        known = select(WatchRow).where(WatchRow.table_uri == table_uri)
        self._forget(known, lambda w: w.incarnation not in incarnations)

    def keep_tables(self, db: str, tables: Collection[str]) -> None:
        """Forget the columns of all other tables of a database."""
        names = frozenset(tables)
        self._forget(select(WatchRow).where(WatchRow.db == db), lambda w: w.table not in names)

    def _forget(self, known: Select[WatchRow], gone: Callable[[WatchRow], bool]) -> None:
        with self._database.read() as session:  # most often there is none
            if not any(gone(w) for w in session.scalars(known)):
                return
        with self._database.write() as session:
            for watch in session.scalars(known.with_for_update()):
                if gone(watch):
                    session.delete(watch)

    def all(self) -> list[WatchRecord]:
        """Return all column groups that are kept filled."""
        with self._database.read() as session:
            order = (WatchRow.db, WatchRow.table, WatchRow.table_uri, WatchRow.incarnation)
            return [WATCHES.record(w) for w in session.scalars(select(WatchRow).order_by(*order))]


def _look(watched: Watched, watch: WatchRow, live: str | None, now_s: float) -> WatchLook:
    return WatchLook(
        watched,
        now_s,
        live,
        watch.changes,
        watch.version,
        watch.idle_version,
        watch.fired_s,
        watch.not_before_s,
        watch.digest,
    )


def _locked(session: Session, watched: Watched) -> WatchRow | None:
    key = (watched.table_uri, watched.incarnation)
    return session.get(WatchRow, key, with_for_update=True, populate_existing=True)


def _new(session: Session, watched: Watched, now_s: float) -> WatchRow:
    watch = WatchRow(
        table_uri=watched.table_uri,
        incarnation=watched.incarnation,
        db=watched.db,
        table=watched.table,
        columns=list(watched.columns),
        schedule=watched.schedule,
        digest=watched.digest,
        fired_s=_begin(watched, now_s),
        judged=True,
        failures=0,
        not_before_s=0.0,
        reason="",
        changes=0,
    )
    session.add(watch)
    session.flush()
    return watch


def _is_known(watch: WatchRow, watched: Watched, now_s: float) -> bool:
    """Whether the moments that were noted are of this schedule, and of this clock."""
    latest_s = max((watch.fired_s or 0.0), watch.not_before_s - _MAX_WAIT_S)
    return watch.schedule == watched.schedule and latest_s <= now_s + _SKEW_S


def _begin(watched: Watched, now_s: float) -> float | None:
    """Return the moment from which a schedule counts: a cron text is due only from now on."""
    return now_s if " " in watched.schedule else None


def _live(session: Session, watched: Watched) -> str | None:
    jobs = select(JobRow.id, JobRow.fills).where(
        JobRow.state.in_(_LIVE), JobRow.table_uri == watched.table_uri
    )
    columns = set(watched.columns)
    return next((i for i, fills in session.execute(jobs) if columns & set(fills)), None)


def _judge(session: Session, watch: WatchRow, now_s: float) -> None:
    """Take note of how the latest run ended, and which version of the table it left."""
    watch.judged = True
    watch.changes += 1
    run = None if watch.run_id is None else session.get(Run, watch.run_id)
    if run is None:
        return  # its record was deleted
    state = JobState(run.state)
    if state in _FAILED:
        watch.reason = f"run {run.id} failed: {run.reason}"
        _back_off(watch, now_s)
        return
    watch.failures, watch.not_before_s = 0, 0.0
    if state is JobState.CANCELLED:
        watch.reason = f"run {run.id} was cancelled; the next change of the table makes another"
        watch.idle_version = _last_commit(session, watch, run)
    elif (left := _left_by(session, watch, run)) is not None:
        watch.version = watch.idle_version = left


def _left_by(session: Session, watch: WatchRow, run: Run) -> int | None:
    """Return the version that a run left if nobody else wrote meanwhile; ``None`` if rows remain.

    If that is the table's version, the run did all that there was to do, whatever a plan says: so
    one that computes nothing is not made again and again.
    """
    found = session.scalars(select(JobRow.outputs).where(JobRow.run_id == run.id))
    outputs: list[dict[str, Any]] = list(found)
    if watch.planned_version is None or any(o.get("fragments_left") for o in outputs):
        return None
    return watch.planned_version + sum(len(o.get("versions") or ()) for o in outputs)


def _last_commit(session: Session, watch: WatchRow, run: Run) -> int | None:
    jobs = select(JobRow.id).where(JobRow.run_id == run.id)
    last = session.scalar(select(func.max(TaskRow.version)).where(TaskRow.job_id.in_(jobs)))
    return watch.planned_version if last is None else last


def _unchanged(session: Session, look: WatchLook) -> WatchRow | None:
    watch = _locked(session, look.watched)
    return watch if watch is not None and watch.changes == look.changes else None


def _decide(watch: WatchRow, look: WatchLook, version: int | None, reason: str) -> None:
    watched = look.watched
    watch.version, watch.reason, watch.fired_s = version, reason, look.now_s
    watch.digest, watch.schedule = watched.digest, watched.schedule
    watch.db, watch.table, watch.columns = watched.db, watched.table, list(watched.columns)
    watch.changes += 1


def _back_off(watch: WatchRow, now_s: float) -> None:
    watch.failures += 1
    wait_s = min(_FIRST_WAIT_S * 2.0 ** (watch.failures - 1), _MAX_WAIT_S)
    watch.not_before_s = now_s + wait_s
