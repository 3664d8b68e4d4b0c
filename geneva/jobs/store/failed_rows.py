"""Rows that UDFs failed on, in groups that share a cause, without those computed since."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from geneva.errors import JobStateError, NoSuchJobError
from geneva.jobs.records import FailureGroup, FailureGroups, FailureSample, FailureWish
from geneva.jobs.store.mapping import FAILURES, moment
from geneva.jobs.store.models import FailureRow, JobRow, Run
from geneva.model.types import JobState

_SCANNED = 200_000  # rows that one look goes through, those of the latest jobs first
_SAMPLES, _RUNS = 3, 20
_SPANS = 20_000  # in one request; beyond it whole fragments are named
_ALL = 2**31
_SHAPE_CHARS = 200
_VARYING = re.compile(
    r"""(?P<quoted>(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`)"""
    r"""|(?P<path>(?<!\w)/[^\s:,;)]+)|(?P<number>\b0x[0-9a-fA-F]+\b|\b[0-9a-fA-F-]{12,}\b|\d+)"""
)
_STAND_INS = {"quoted": "'…'", "path": "/…", "number": "#"}
_KEPT = (JobState.SUCCEEDED.value, JobState.PARTIAL.value)


@dataclass(frozen=True, slots=True)
class Picked:
    """Rows of a job that are tried again.

    Attributes
    ----------
    columns
        Those that are filled together and whose UDF failed.
    only
        (fragment, start, stop), physical rows, half-open.
    """

    job_id: str
    columns: tuple[str, ...]
    only: tuple[tuple[int, int, int], ...]


def shape_of(message: str) -> str:
    """Return the common part of the messages of one cause."""
    line = message.strip().split("\n", 1)[0]
    shape = _VARYING.sub(lambda m: _STAND_INS[m.lastgroup or ""], line)
    return shape if len(shape) <= _SHAPE_CHARS else shape[: _SHAPE_CHARS - 1] + "…"


def groups_of(session: Session, wish: FailureWish) -> FailureGroups:
    """Return the groups of rows that failed and were not computed since.

    Raises
    ------
    NoSuchJobError
        There is no such run.
    """
    if wish.run_id is not None and session.get(Run, wish.run_id) is None:
        raise NoSuchJobError(f"there is no run {wish.run_id!r}")
    groups, complete = _look(session, wish)
    records = [_group(session, key, g) for key, g in groups.items()]
    records.sort(key=lambda g: (-g.rows, g.column, g.error, g.shape))
    return FailureGroups(tuple(records), sum(g.rows for g in records), complete)


def picked_of(session: Session, wish: FailureWish, key: str) -> tuple[str, list[Picked]]:
    """Return the error of a group, and its rows that no retry has.

    Raises
    ------
    NoSuchJobError
        There is no such group.
    JobStateError
        All of its rows are being retried already.
    """
    group = _look(session, wish)[0].get(key)
    if group is None:
        raise NoSuchJobError(
            f"there is no group of failures {key!r} (any more): its rows were computed since, "
            "or the records of their runs were deleted; look at the list again"
        )
    picked = _picked(group)
    if not picked:
        raise JobStateError("all rows of this group are being retried already")
    return group.error, picked


def _look(session: Session, wish: FailureWish) -> tuple[dict[str, _Group], bool]:
    retries = _Retries(session)
    groups: dict[str, _Group] = {}
    known: set[tuple[str, str, int, int]] = set()
    scanned = 0
    for f in session.execute(_wanted(wish).limit(_SCANNED + 1)):
        scanned += 1
        place = (f.table_uri, f.column, f.fragment_id, f.row)
        state = retries.state(f.job_id, f.fragment_id, f.row)
        if place in known or state is _Retry.DONE:
            continue
        known.add(place)
        group = _Group(f.db, f.table, f.column, f.error, shape_of(f.message))
        row = _Row(f.job_id, f.run_id, f.fragment_id, f.row, f.created_s, state is _Retry.LIVE)
        groups.setdefault(group.key, group).rows.append(row)
    return groups, scanned <= _SCANNED


class _Retry(IntEnum):
    NONE, LIVE, DONE = range(3)


class _Retries:
    """Which rows of a job were tried again, by its children and theirs."""

    def __init__(self, session: Session) -> None:
        children = select(JobRow.id, JobRow.parent_id, JobRow.state, JobRow.arguments)
        self._children: dict[str, list[tuple[str, str, _Spans]]] = {}
        for job_id, parent_id, state, arguments in session.execute(
            children.where(JobRow.parent_id.is_not(None))
        ):
            spans = _Spans(arguments.get("only"))
            self._children.setdefault(parent_id, []).append((job_id, state, spans))

    def state(self, job_id: str, fragment_id: int, row: int) -> _Retry:
        """Say whether a row that a job failed on was tried again."""
        latest = _Retry.NONE
        for child_id, state, spans in self._children.get(job_id, ()):
            if not spans.hold(fragment_id, row):
                continue
            if state in _KEPT:
                return _Retry.DONE
            if not JobState(state).ended:
                latest = max(latest, _Retry.LIVE)
            latest = max(latest, self.state(child_id, fragment_id, row))
        return latest


class _Spans:
    """Rows that a job is limited to; all of them without a limit."""

    def __init__(self, only: Sequence[tuple[int, int, int]] | None) -> None:
        self._all = only is None
        self._spans: dict[int, list[tuple[int, int]]] = {}
        for fragment_id, start, stop in only or ():
            self._spans.setdefault(fragment_id, []).append((start, stop))
        self._rows = {(f, a) for f, spans in self._spans.items() for a, b in spans if b - a == 1}

    def hold(self, fragment_id: int, row: int) -> bool:
        """Whether a row is one of them."""
        if self._all or (fragment_id, row) in self._rows:
            return True
        return any(a <= row < b for a, b in self._spans.get(fragment_id, ()) if b - a > 1)


@dataclass(frozen=True, slots=True)
class _Row:
    job_id: str
    run_id: str
    fragment_id: int
    row: int
    created_s: float
    retrying: bool


@dataclass(slots=True)
class _Group:
    db: str
    table: str
    column: str
    error: str
    shape: str
    rows: list[_Row] = field(default_factory=list)

    @property
    def key(self) -> str:
        text = "\0".join((self.db, self.table, self.column, self.error, self.shape))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _wanted(wish: FailureWish) -> Any:
    """Return the query for failures, those of the latest jobs first."""
    wanted: Any = select(
        FailureRow.job_id,
        FailureRow.column,
        FailureRow.fragment_id,
        FailureRow.row,
        FailureRow.error,
        FailureRow.message,
        JobRow.run_id,
        JobRow.db,
        JobRow.table,
        JobRow.table_uri,
        JobRow.created_s,
    ).join(JobRow, JobRow.id == FailureRow.job_id)
    for chosen, column in (
        (wish.run_id, JobRow.run_id),
        (wish.db, JobRow.db),
        (wish.table, JobRow.table),
        (wish.column, FailureRow.column),
    ):
        if chosen is not None:
            wanted = wanted.where(column == chosen)
    return wanted.order_by(
        JobRow.created_s.desc(), JobRow.id, FailureRow.fragment_id, FailureRow.row
    )


def _group(session: Session, key: str, group: _Group) -> FailureGroup:
    rows = group.rows
    return FailureGroup(
        key=key,
        db=group.db,
        table=group.table,
        column=group.column,
        error=group.error,
        shape=group.shape,
        rows=len(rows),
        retrying=sum(r.retrying for r in rows),
        fragments=len({r.fragment_id for r in rows}),
        runs=tuple(dict.fromkeys(r.run_id for r in rows))[:_RUNS],
        first_at=moment(min(r.created_s for r in rows)),
        last_at=moment(max(r.created_s for r in rows)),
        samples=tuple(_samples(session, group)),
    )


def _samples(session: Session, group: _Group) -> Iterator[FailureSample]:
    chosen = {(r.job_id, r.fragment_id, r.row): r for r in group.rows[:_SAMPLES]}
    place = tuple_(FailureRow.job_id, FailureRow.fragment_id, FailureRow.row)
    wanted = select(FailureRow).where(place.in_(list(chosen)), FailureRow.column == group.column)
    for found in session.scalars(wanted.order_by(FailureRow.fragment_id, FailureRow.row)):
        row = chosen[found.job_id, found.fragment_id, found.row]
        yield FailureSample(row.run_id, row.job_id, FAILURES.record(found))


def _picked(group: _Group) -> list[Picked]:
    """Return the rows of a group that no retry has, by job."""
    by_job: dict[str, list[tuple[int, int]]] = {}
    for row in group.rows:
        if not row.retrying:
            by_job.setdefault(row.job_id, []).append((row.fragment_id, row.row))
    columns = tuple(group.column.split(", "))
    few = {job: tuple(_spans(sorted(rows))) for job, rows in by_job.items()}
    if sum(map(len, few.values())) > _SPANS:
        few = {
            job: tuple((f, 0, _ALL) for f in sorted({f for f, _ in rows}))
            for job, rows in by_job.items()
        }
    return [Picked(job, columns, spans) for job, spans in few.items()]


def _spans(rows: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Join rows that follow one another."""
    current: tuple[int, int, int] | None = None
    for fragment_id, row in rows:
        if current is not None and (fragment_id, row) == (current[0], current[2]):
            current = (fragment_id, current[1], row + 1)
            continue
        if current is not None:
            yield current
        current = (fragment_id, row, row + 1)
    if current is not None:
        yield current
