"""How much of a computed column is there, per fragment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from geneva.column.binding import Binding, target_of
from geneva.column.history.descent import live_mask
from geneva.column.history.ledger import Ledger
from geneva.column.history.marks import as_readable, files_gone
from geneva.column.history.provenance import History
from geneva.engine.plan.fragments import COVERED, Planner
from geneva.engine.plan.slices import OnColumn, Slices
from geneva.model.types import Options
from geneva.model.windows import Windows
from geneva.storage.lance import Snapshot, TableStorage


@dataclass(frozen=True)
class Coverage:
    """Live rows per fragment, by state.

    Attributes
    ----------
    table
        One row a fragment: fragment, rows, computed, stale, missing, failed, foreign, unverified;
        and waiting, which are those stale and missing ones that wait for a computed input.
    lost
        Files that the table names for the column and that nobody can read; their rows are missing.
    """

    column: str
    version: int
    table: pa.Table
    lost: tuple[str, ...] = ()

    @property
    def totals(self) -> dict[str, int]:
        """Sums over all fragments."""
        names = [n for n in self.table.column_names if n != "fragment"]
        return {n: sum(self.table[n].to_pylist()) for n in names}

    def __str__(self) -> str:
        totals = self.totals
        rows = max(totals["rows"], 1)
        share = 100.0 * totals["computed"] / rows
        rest = ", ".join(f"{n} {totals[n]:,}" for n in totals if n != "rows" and totals[n])
        return (
            f"{self.column}: {share:.1f}% of {totals['rows']:,} rows in "
            f"{self.table.num_rows:,} fragments computed ({rest}) at version {self.version}"
            + (f"\n{files_gone(self.lost)}" if self.lost else "")
        )


@dataclass(frozen=True)
class CoverageOver:
    """Live rows by state along a column, period by period.

    Attributes
    ----------
    on, step
        The column, and the length of a period.
    table
        One row a period: key, rows, computed, stale, missing, failed, foreign, unverified. Rows
        without a value of ``on`` are the last one, ``(null)``, if there are any.
    """

    column: str
    on: str
    step: str
    version: int
    table: pa.Table

    @property
    def totals(self) -> dict[str, int]:
        """Sums over all periods."""
        names = [n for n in self.table.column_names if n != "key"]
        return {n: sum(self.table[n].to_pylist()) for n in names}


def coverage_over(
    storage: TableStorage,
    column: str,
    binding: Binding,
    on: str,
    step: str,
    tz: str | None = None,
    snapshot: Snapshot | None = None,
    ledger: Ledger | None = None,
) -> CoverageOver:
    """Count the rows of every period along a date or timestamp column.

    Parameters
    ----------
    step
        ``"1d"``, ``"1w"``, ``"1mo"``, ``"1y"`` or any other step of windows.
    tz
        Where days begin.
    snapshot, ledger
        As `coverage`.

    Raises
    ------
    SettingError, ColumnError
        The column does not exist, or takes no such step.
    """
    version = snapshot or storage.open()
    storage.check_no_wal(version)
    known = ledger or Ledger.load(storage, binding.incarnation)
    target = target_of(version, binding, binding.digest)
    readable = as_readable(storage, version, target.columns)
    planner = Planner(storage, History(storage, readable, known), target, None, Options())
    along = OnColumn(storage, readable, on)
    windows = along.windows(Windows(on, step=step, tz=tz, nulls="last"), datetime.now(UTC))
    counts = np.zeros((len(windows), len(COVERED)), np.int64)
    fragments = list(readable.fragments.values())
    for fragment, places in Slices(along, windows).each(fragments):
        states = planner.row_states(fragment)
        if states is None and isinstance(places, int):
            counts[places, 0] += fragment.live_rows
            continue
        if states is None:
            live = live_mask(storage, readable, fragment)
            states = np.where(live, 0, -1).astype(np.int64)
        there = states >= 0
        at = np.broadcast_to(np.asarray(places), states.shape)[there].astype(np.int64)
        flat = np.bincount(at * len(COVERED) + states[there], minlength=counts.size)
        counts += flat.reshape(counts.shape)
    rows = counts.sum(axis=1)
    shown = [k for k, w in enumerate(windows) if rows[k] or not w.is_nulls]
    columns = {name: counts[shown, k] for k, name in enumerate(COVERED)}
    keys = {"key": [windows[k].key for k in shown], "rows": rows[shown]}
    return CoverageOver(column, on, step, readable.version, pa.table({**keys, **columns}))


_COUNTED = (
    *("fragment", "rows", "computed", "stale", "missing", "failed", "foreign", "unverified"),
    "waiting",
)


def coverage(
    storage: TableStorage,
    column: str,
    binding: Binding,
    snapshot: Snapshot | None = None,
    ledger: Ledger | None = None,
) -> Coverage:
    """Count the rows of every fragment; reads names, footers and, where needed, history.

    Parameters
    ----------
    snapshot
        The version that is looked at; the latest one by default.
    ledger
        Cache that is read and filled; by default the table's own.
    """
    known = ledger or Ledger.load(storage, binding.incarnation)
    if snapshot is not None:
        return _counted(storage, column, binding, snapshot, known)
    return storage.on_latest(lambda latest: _counted(storage, column, binding, latest, known))


def _counted(
    storage: TableStorage, column: str, binding: Binding, version: Snapshot, known: Ledger
) -> Coverage:
    storage.check_no_wal(version)
    target = target_of(version, binding, binding.digest)
    snapshot = as_readable(storage, version, target.columns)
    planner = Planner(storage, History(storage, snapshot, known), target, None, Options())
    counted, lost = [], list[str]()
    for fragment in snapshot.fragments.values():
        counted.append(planner.coverage(fragment))
        lost += planner.lost(fragment) if fragment.lost else ()
    schema = pa.schema([pa.field(n, pa.int64()) for n in _COUNTED])
    table = pa.Table.from_pylist(counted, schema)
    return Coverage(column, snapshot.version, table, tuple(lost))
