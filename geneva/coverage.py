"""How much of a computed column is there, per fragment."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from geneva.column.binding import Binding, target_of
from geneva.column.ledger import Ledger
from geneva.column.provenance import History
from geneva.plan.fragments import Planner
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import Options


@dataclass(frozen=True)
class Coverage:
    """Live rows per fragment by what they are.

    Attributes
    ----------
    table
        One row a fragment: fragment, rows, computed, stale, missing, failed, foreign, unverified;
        and waiting, which are those stale and missing ones that wait for a computed input.
    """

    column: str
    version: int
    table: pa.Table

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
        What is known already, and learns what is found; by default what the table keeps.
    """
    snapshot = snapshot or storage.open()
    known = ledger or Ledger.load(storage, binding.incarnation)
    history = History(storage, snapshot, known)
    target = target_of(snapshot, binding, binding.digest)
    planner = Planner(storage, history, target, None, Options())
    counted = [planner.coverage(f) for f in snapshot.fragments.values()]
    schema = pa.schema([pa.field(n, pa.int64()) for n in _COUNTED])
    return Coverage(column, snapshot.version, pa.Table.from_pylist(counted, schema))
