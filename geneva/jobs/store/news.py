"""What a driver's record adds to the database: fragments, failures, commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sqlalchemy import Insert, bindparam, case, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from geneva.jobs.records import TaskState
from geneva.jobs.store.change import locked_job, note
from geneva.jobs.store.database import Database
from geneva.jobs.store.models import FailureRow, JobRow, TaskRow, WindowRow
from geneva.jobs.store.queue import QueueClaim
from geneva.model.result import WindowResult, WindowState, joined_windows

_CHUNK = 500  # rows per statement: SQLite takes 32766 parameters in one


@dataclass(frozen=True, slots=True)
class NewWindows:
    """The windows of one column of a job, in the order in which they open.

    Attributes
    ----------
    config
        The argument that cuts the same windows at any later moment.
    """

    column: str
    config: Mapping[str, Any]
    windows: Sequence[WindowResult]


@dataclass(slots=True)
class News:
    """What happened since the last report.

    Attributes
    ----------
    skipped
        Fragments that a plan found to need nothing.
    cuts, windows
        The windows of a column as they were planned, and those that changed since.
    tasks
        Fragments as they stand now.
    events
        ``(kind, message, data)``.
    first_plan
        The first plan of this driver for a column is among the news.
    mine
        With it, (column, fragment) of what this driver does for that column.
    """

    skipped: list[dict[str, Any]] = field(default_factory=list)
    cuts: list[NewWindows] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    first_plan: bool = False
    mine: frozenset[tuple[str, int]] = frozenset()

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self))


def report(database: Database, claim: QueueClaim, news: News) -> None:
    """Write down what happened; nothing if the job is another driver's by now."""
    with database.write() as session:
        run, job = locked_job(session, claim.job_id)
        if job.epoch != claim.epoch:
            return
        _skip(session, job, news.skipped)
        _put(session, database, TaskRow, news.tasks)
        for cut in news.cuts:
            job.arguments = {**job.arguments, "windows": dict(cut.config)}
            _put_windows(session, database, job, cut)
        _change_windows(session, job, news.windows)
        _put(session, database, FailureRow, news.failures)
        if news.first_plan:
            _count_before(session, job, news.mine)
        now = database.now_s(session)
        for kind, message, data in news.events:
            note(session, run, job, now, kind, message, data)


def _skip(session: Session, job: JobRow, skipped: Sequence[Mapping[str, Any]]) -> None:
    """Note fragments that need nothing; if an earlier driver finished them, they are committed."""
    if not skipped:
        return
    held = {(t.column, t.fragment_id): t for t in session.scalars(_of(job))}
    for facts in skipped:
        known = held.get((facts["column"], facts["fragment_id"]))
        if known is None:
            session.add(TaskRow(**facts))
        elif known.state == TaskState.DONE:
            known.state = TaskState.COMMITTED.value


def _put_windows(session: Session, database: Database, job: JobRow, cut: NewWindows) -> None:
    """Note the windows of a column; those that an earlier driver worked on keep its counts."""
    of_column = (WindowRow.job_id == job.id, WindowRow.column == cut.column)
    held = {(w.number, w.key): w for w in session.scalars(select(WindowRow).where(*of_column))}
    before: dict[int, int] = {}
    windows = list(cut.windows)
    for number, window in enumerate(windows):
        earlier = held.get((number, window.key))
        if earlier is None or not earlier.rows_planned:
            continue
        idle = window.state is WindowState.SKIPPED
        done = max(earlier.rows_planned - window.rows_planned, 0)
        before[number] = done
        windows[number] = replace(
            window,
            state=WindowState.COMMITTED if idle else window.state,
            reason="" if idle else window.reason,
            rows_planned=done + window.rows_planned,
            rows_computed=done + window.rows_computed,
            rows_failed=max(earlier.rows_failed, window.rows_failed),
            seconds=earlier.seconds,
        )
    session.execute(delete(WindowRow).where(*of_column))
    rows = [
        asdict(w)
        | {"state": w.state.value, "job_id": job.id, "column": cut.column, "number": number}
        | {"rows_before": before.get(number, 0)}
        for number, w in joined_windows(windows)
    ]
    _put(session, database, WindowRow, rows)


def _change_windows(session: Session, job: JobRow, windows: Sequence[Mapping[str, Any]]) -> None:
    """Note the present state and counts of windows, added to those of earlier drivers."""
    of = WindowRow.__table__.c
    failed: Any = bindparam("failed")
    change = (
        update(WindowRow.__table__)  # type: ignore[arg-type]  # a Table, as the ORM declares it
        .where(of.job_id == job.id, of.column == bindparam("of"), of.number == bindparam("at"))
        .values(
            state=bindparam("new_state"),
            reason=bindparam("new_reason"),
            rows_computed=of.rows_before + bindparam("computed"),
            rows_failed=case((of.rows_failed < failed, failed), else_=of.rows_failed),
            seconds=bindparam("spent"),
        )
    )
    if windows:
        session.connection().execute(change, list(windows))


def _of(job: JobRow) -> Any:
    return select(TaskRow).where(TaskRow.job_id == job.id)


def _count_before(session: Session, job: JobRow, mine: Collection[tuple[str, int]]) -> None:
    """Count what others committed of the job, so that its progress goes on from there.

    Some of what this driver does may be committed before its plan is reported.
    """
    session.flush()
    committed = select(TaskRow.column, TaskRow.fragment_id, TaskRow.rows_computed).where(
        TaskRow.job_id == job.id, TaskRow.state == TaskState.COMMITTED.value
    )
    rows = [n for *key, n in session.execute(committed) if tuple(key) not in mine]
    session.execute(
        update(JobRow)
        .where(JobRow.id == job.id)
        .values(rows_before=sum(rows), fragments_before=len(rows))
        .execution_options(synchronize_session=False)
    )


def _put(
    session: Session, database: Database, model: Any, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows, or replace those that are there."""
    keys = [c.name for c in model.__table__.primary_key]
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        insert: Any = (sqlite if database.is_sqlite else postgresql).insert(model).values(chunk)
        names = [n for n in chunk[0] if n not in keys]
        put: Insert = insert.on_conflict_do_update(
            index_elements=keys, set_={n: insert.excluded[n] for n in names}
        )
        session.execute(put)
