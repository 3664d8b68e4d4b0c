"""Why the rows of a plan need work, for people."""

from __future__ import annotations

from collections import Counter

import numpy as np

from geneva.column.binding import as_called, bindings_of, top_level
from geneva.column.file import ColumnFileName
from geneva.engine.plan.report import Plan
from geneva.model.rows import BoolArray, RowClass, RowStatus
from geneva.model.types import Task
from geneva.storage.lance import Snapshot, TableStorage

# Beside the ids of inputs that changed.
_NEW, _UDF, _UPDATED, _OTHER = "new", "udf", "updated", "other"
_LOOKED_AT = 100  # versions, for which columns their updates set


def causes(storage: TableStorage, snapshot: Snapshot, plan: Plan, since: int | None) -> str:
    """Return the causes of a plan: new rows, another UDF, inputs that changed.

    Parameters
    ----------
    snapshot
        The table, as it was planned or a moment before.
    since
        Table version at which there was nothing to do, if there was one.
    """
    names = {f.id: n for n, f in snapshot.fields.items()}
    rows: Counter[int | str] = Counter()
    for fragment in plan.to_compute:
        if fragment.task is not None:
            rows += _of(fragment.task, fragment.rows_compute)
    said = []
    for cause, n in rows.most_common():
        count = f"{min(n, plan.rows_compute):,}"  # with a filter, more rows than those it selects
        if cause == _NEW:
            said.append(f"{count} rows to fill" if since is None else _new(count, since))
        elif cause == _UDF:
            said.append(f"UDF changed ({count} rows)")
        elif cause == _UPDATED:
            inputs = _set_inputs(storage, snapshot, plan.columns[0], since)
            said.append(
                f"input column {inputs} changed ({count} rows)"
                if inputs
                else f"{count} rows updated"
            )
        elif cause == _OTHER:
            said.append(f"{count} rows to compute again")
        else:
            said.append(f"input column {names.get(int(cause), '?')} changed ({count} rows)")
    return "; ".join(said)


def _new(count: str, since: int) -> str:
    return f"{count} new rows since version {since}"


def _of(task: Task, rows: int) -> Counter[int | str]:
    """Count the rows of a task by why they need work."""
    if task.carry is None:
        return Counter({_NEW: rows})
    need = _mask(task)
    counts = np.bincount(task.carry.expand()[need], minlength=len(task.carry.classes))
    found: Counter[int | str] = Counter()
    for c, n in zip(task.carry.classes, counts.tolist(), strict=True):
        if n:
            found[_why(c, task)] += n
    return found


def _mask(task: Task) -> BoolArray:
    chosen = task.need if task.need is not None else task.live
    return np.ones(task.rows, np.bool_) if chosen is None else chosen.mask()


def _why(old: RowClass, task: Task) -> int | str:
    if old.status is RowStatus.MISSING:
        # Rows that an update moved are missing too; the file that they are in is its own.
        ours = ColumnFileName.parse(task.target_file or "") is not None
        return _NEW if ours else _UPDATED
    udf, now = old.digest.split(".")[0], task.row_class.digest.split(".")[0]
    if udf and udf != now:
        return _UDF
    return next((m.field for m in old.inputs if m not in task.row_class.inputs), _OTHER)


def _set_inputs(storage: TableStorage, snapshot: Snapshot, column: str, since: int | None) -> str:
    """Return the inputs of a column that updates since a version set."""
    binding = bindings_of(as_called(snapshot)).get(column)
    if since is None or binding is None:
        return ""
    inputs = dict.fromkeys(top_level(snapshot.schema, path) for path in binding.inputs)
    found: set[str] = set()
    for version in range(max(since, snapshot.version - _LOOKED_AT) + 1, snapshot.version + 1):
        change = storage.change(snapshot, version)
        if change is not None:
            ids = snapshot.fields
            found |= {n for n in inputs if change.written.intersection(ids[n].subtree)}
    return ", ".join(n for n in inputs if n in found)
