"""How much of a computed column is there, per fragment."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from geneva.column.binding import Binding, target_of
from geneva.column.history.ledger import Ledger
from geneva.column.history.marks import as_readable, files_gone
from geneva.column.history.provenance import History
from geneva.engine.plan.fragments import Planner
from geneva.model.types import Options
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
