"""How much of a computed column is there, per fragment."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from geneva.column.binding import Binding, target_of
from geneva.column.ledger import Ledger
from geneva.column.provenance import History
from geneva.plan.fragments import Planner
from geneva.storage.lance import TableStorage
from geneva.types import Options


@dataclass(frozen=True)
class Coverage:
    """Live rows per fragment by what they are.

    Attributes
    ----------
    table
        One row a fragment: fragment, rows, computed, stale, missing, failed, foreign, unverified.
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


def coverage(storage: TableStorage, column: str, binding: Binding) -> Coverage:
    """Count the rows of every fragment; reads names, footers and, where needed, history."""
    snapshot = storage.open()
    history = History(storage, snapshot, Ledger.load(storage, binding.incarnation))
    target = target_of(snapshot.schema, binding, binding.digest)
    planner = Planner(storage, history, target, None, Options())
    counted = [planner.coverage(f) for f in snapshot.fragments.values()]
    names = ["fragment", "rows", "computed", "stale", "missing", "failed", "foreign", "unverified"]
    schema = pa.schema([pa.field(n, pa.int64()) for n in names])
    return Coverage(column, snapshot.version, pa.Table.from_pylist(counted, schema))
