"""The forecast of a backfill: its plan, its time, and the rows that it writes.

The plan is the engine's own, so a run of the same request on the same version does just that. The
time is a guess from earlier jobs of the column.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from geneva.column.binding import (
    Binding,
    as_called,
    bindings_of,
    computed,
    dependency_order,
    top_level,
)
from geneva.column.history.marks import group_subtree
from geneva.engine.plan.decision import NOT_SELECTED, Action, FragmentPlan
from geneva.engine.plan.report import Plan, plan_facts
from geneva.engine.preview import plan
from geneva.jobs.backfills import absolute
from geneva.jobs.records import Submission
from geneva.jobs.store.past import Past, PastPace
from geneva.model.arguments import check_value, checked_options, with_defaults
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import storage_errors
from geneva.table import Table

_SIZED = 64  # fragments whose column files are looked at to tell the bytes of a row


@dataclass(frozen=True, slots=True)
class PlanGroup:
    """Fragments that share an action and its reason."""

    action: str
    reason: str
    fragments: int
    rows: int
    rows_compute: int


@dataclass(frozen=True, slots=True)
class Writes:
    """The rows that are written for those asked for: whole column files of their fragments.

    Attributes
    ----------
    fragments_rewritten
        Those of them that hold values already, which are carried over.
    rows
        Rows of all fragments that are written.
    amplification
        Rows written for each row asked for.
    bytes, bytes_asked
        Of the files, and of the rows asked for; ``None`` where nobody can tell the size of a row.
    """

    fragments: int
    fragments_rewritten: int
    rows: int
    amplification: float | None
    bytes: int | None
    bytes_asked: int | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A guess of the time, and its evidence."""

    seconds: float
    rows_per_s: float
    basis: str


@dataclass(frozen=True, slots=True)
class ColumnForecast:
    """The forecast for columns that are filled together.

    Attributes
    ----------
    rows, fragments
        Of the table.
    rows_compute, fragments_compute
        Of them in this run; estimates unless ``exact``.
    exact
        Whether the filter was evaluated for every fragment, and no column that is computed before
        decides about rows of this one.
    """

    columns: tuple[str, ...]
    rows: int
    fragments: int
    rows_compute: int
    fragments_compute: int
    rows_waiting: int
    rows_foreign: int
    rows_unverified: int
    rows_failed_before: int
    exact: bool
    writes: Writes
    estimate: Estimate | None
    groups: tuple[PlanGroup, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of a backfill; ``seconds`` is ``None`` where nobody can tell.

    Attributes
    ----------
    fragments
        What it would do with each fragment, column after column, where that was asked for.
    """

    table: str
    version: int
    where: str | None
    rows_compute: int
    fragments_compute: int
    exact: bool
    seconds: float | None
    columns: tuple[ColumnForecast, ...]
    fragments: tuple[dict[str, Any], ...] = ()


def forecast(
    table: Table,
    submission: Submission,
    past: Past,
    within_s: float = math.inf,
    *,
    fragments: bool = False,
) -> Forecast:
    """Plan a request as the engine would, column after column.

    Parameters
    ----------
    table
        As `geneva.service.admission.opened` returns it.
    within_s
        How long filters may be evaluated; what is left then is estimated.
    fragments
        Whether to say what is done with each fragment.

    Raises
    ------
    RequestError
        Whatever is wrong with the request.
    """
    table.check_backfill(list(submission.columns), **submission.arguments)
    storage = table.storage
    with storage_errors(storage.uri):
        snapshot = storage.open()
        bindings = bindings_of(as_called(snapshot))
        columns: list[ColumnForecast] = []
        each: list[dict[str, Any]] = []
        for name in _one_of_each_group(snapshot, bindings, submission.columns):
            planned = _planned(storage, name, submission, within_s / len(submission.columns))
            pace = _pace(past, absolute(storage.uri), bindings, planned.columns, submission)
            before = [f for f in columns if f.rows_compute and _reads(snapshot, bindings, name, f)]
            columns.append(_column(storage, planned, pace, before))
            if fragments:
                facts = plan_facts(planned)
                each += ({"columns": facts["columns"]} | f for f in facts["fragments"])
    seconds = [f.estimate.seconds if f.estimate else None for f in columns if f.rows_compute]
    return Forecast(
        submission.table,
        snapshot.version,
        submission.arguments.get("where"),
        sum(f.rows_compute for f in columns),
        sum(f.fragments_compute for f in columns),
        all(f.exact for f in columns),
        None if None in seconds else sum(s for s in seconds if s is not None),
        tuple(columns),
        tuple(each),
    )


def _one_of_each_group(
    snapshot: Snapshot, bindings: dict[str, Binding], columns: Sequence[str]
) -> list[str]:
    for name in columns:
        computed(snapshot.schema, name)
    groups: dict[str, str] = {}
    for name in dependency_order(bindings, columns):
        groups.setdefault(bindings[name].incarnation, name)
    return list(groups.values())


def _planned(storage: TableStorage, column: str, submission: Submission, within_s: float) -> Plan:
    known = with_defaults(submission.arguments)
    params = known.pop("params")
    check_value("params", params)
    return plan(storage, column, checked_options(known), dict(params or {}), within_s)


def _reads(
    snapshot: Snapshot, bindings: dict[str, Binding], column: str, before: ColumnForecast
) -> bool:
    read = {top_level(snapshot.schema, path) for path in bindings[column].inputs}
    return not read.isdisjoint(before.columns)


def _pace(
    past: Past,
    uri: str,
    bindings: dict[str, Binding],
    columns: Sequence[str],
    submission: Submission,
) -> tuple[PastPace, str] | None:
    """Return how quick the column is, or another one of the table with the same UDF."""
    concurrency = with_defaults(submission.arguments)["concurrency"]
    if (own := past.pace(uri, columns, concurrency)) is not None:
        return own, _basis(own, ", ".join(columns), concurrency)
    digest = bindings[columns[0]].digest
    twins = [n for n, b in bindings.items() if b.digest == digest and n not in columns]
    if twins and (other := past.pace(uri, twins, concurrency)) is not None:
        return other, _basis(other, "the same UDF", concurrency)
    return None


def _basis(pace: PastPace, of: str, concurrency: int) -> str:
    scaled = f", scaled to concurrency {concurrency}" if pace.scaled else ""
    return f"{pace.jobs} earlier {_plural(pace.jobs, 'job')} of {of}{scaled}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _column(
    storage: TableStorage,
    planned: Plan,
    pace: tuple[PastPace, str] | None,
    before: Sequence[ColumnForecast],
) -> ColumnForecast:
    scale = _ForecastScale.of(planned)
    rows, fragments = scale.rows, scale.fragments
    estimate = None
    if pace is not None and pace[0].rows_per_s > 0:
        rate = pace[0].rows_per_s
        estimate = Estimate(rows / rate, rate, pace[1])
    return ColumnForecast(
        columns=planned.columns,
        rows=sum(f.rows for f in planned.fragments),
        fragments=len(planned.fragments),
        rows_compute=rows,
        fragments_compute=fragments,
        rows_waiting=planned.rows_waiting,
        rows_foreign=planned.rows_foreign,
        rows_unverified=planned.rows_unverified,
        rows_failed_before=sum(f.rows_failed for f in planned.fragments),
        exact=scale.exact and not before,
        writes=_writes(storage.open(planned.version), planned, scale),
        estimate=estimate,
        groups=_groups(planned),
        notes=tuple(_notes(planned, before)),
    )


@dataclass(frozen=True, slots=True)
class _ForecastScale:
    """Rows and fragments of a plan; where a filter is not evaluated yet, as in the others.

    Attributes
    ----------
    fragments_factor
        How many times the fragments that are known to be computed.
    """

    rows: int
    fragments: int
    fragments_factor: float
    exact: bool

    @classmethod
    def of(cls, planned: Plan) -> _ForecastScale:
        """Extrapolate from the fragments in which the filter was evaluated."""
        chosen = planned.to_compute
        known = [f for f in chosen if f.action is Action.COMPUTE]
        open_ = [f for f in chosen if f.action is Action.FILTER]
        rows = sum(f.rows_compute for f in known)
        if not open_:
            return cls(rows, len(known), 1.0, exact=True)
        seen = [*known, *(f for f in planned.fragments if f.reason == NOT_SELECTED)]
        seen_rows = max(sum(f.rows for f in seen), 1)
        rows += round(sum(f.rows for f in open_) * rows / seen_rows)
        fragments = len(known) + round(len(open_) * len(known) / max(len(seen), 1))
        return cls(rows, fragments, fragments / max(len(known), 1), exact=False)


def _writes(snapshot: Snapshot, planned: Plan, scale: _ForecastScale) -> Writes:
    written = [f for f in planned.to_compute if f.action is Action.COMPUTE]
    rows = round(sum(f.rows for f in written) * scale.fragments_factor)
    rewritten = sum(f.task is not None and f.task.target_file is not None for f in written)
    row_bytes = _row_bytes(snapshot, planned.columns, written)
    return Writes(
        fragments=scale.fragments,
        fragments_rewritten=round(rewritten * scale.fragments_factor),
        rows=rows,
        amplification=rows / scale.rows if scale.rows else None,
        bytes=None if row_bytes is None else round(rows * row_bytes),
        bytes_asked=None if row_bytes is None else round(scale.rows * row_bytes),
    )


def _row_bytes(
    snapshot: Snapshot, columns: Sequence[str], written: Sequence[FragmentPlan]
) -> float | None:
    """Return the bytes of a row in the column's files, or of its type where there are none."""
    subtree = set(group_subtree(snapshot, columns[0]))
    others = {f.id for f in snapshot.fields.values()} - subtree
    rows = size = 0
    ids = list(snapshot.fragments)[-_SIZED:] + [f.fragment_id for f in written[:_SIZED]]
    for fragment in (snapshot.fragments[i] for i in dict.fromkeys(ids)):
        files = [f for f in fragment.files if not f.fields.isdisjoint(subtree)]
        if files and all(f.size_bytes and others.isdisjoint(f.fields) for f in files):
            rows, size = rows + fragment.rows, size + sum(f.size_bytes for f in files)
    if rows:
        return size / rows
    widths = [_width(snapshot.schema.field(c).type) for c in columns]
    return None if None in widths else float(sum(w for w in widths if w is not None))


def _width(data_type: pa.DataType) -> float | None:
    if pa.types.is_fixed_size_list(data_type):
        inner = _width(data_type.value_type)
        return None if inner is None else inner * data_type.list_size
    try:
        return float(data_type.bit_width) / 8
    except ValueError:  # of variable width
        return None


def _groups(planned: Plan) -> tuple[PlanGroup, ...]:
    chosen = {f.fragment_id for f in planned.to_compute}
    count: Counter[tuple[str, str]] = Counter()
    rows: Counter[tuple[str, str]] = Counter()
    compute: Counter[tuple[str, str]] = Counter()
    for f in planned.fragments:
        later = f.action is not Action.SKIP and f.fragment_id not in chosen
        key = ("later" if later else f.action.value, f.reason)
        count[key] += 1
        rows[key] += f.rows
        compute[key] += f.rows_compute
    return tuple(PlanGroup(*key, n, rows[key], compute[key]) for key, n in sorted(count.items()))


def _notes(planned: Plan, before: Sequence[ColumnForecast]) -> list[str]:
    notes = [*planned.warnings]
    if planned.windows is not None:
        busy = sum(1 for w in planned.windows.windows if w.rows_compute)
        count = len(planned.windows.windows)
        notes.append(f"{busy:,} of {count:,} windows have rows to compute; {planned.windows.cost}")
    for f in before:
        names = ", ".join(f.columns)
        notes.append(
            f"{names} is computed before: up to {f.rows_compute:,} more rows follow from it"
        )
    return notes
