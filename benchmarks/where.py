"""Does a filter that selects little cost little?"""

from __future__ import annotations

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale, Side, alternate

_ROUNDS = 4  # times as many as elsewhere: one of a fifth of a second differs by a tenth


def run(scale: Scale) -> list[Answer]:
    """A filter that matches 1% of the rows, spread over all fragments, against all rows."""
    rows = scale.rows(1_000_000)
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        before = tables.fresh(tbl, udfs.double_batch)
        rounds = alternate(
            {
                "all rows": Side(lambda: tbl.backfill("c", progress=False), before),
                "1%": Side(lambda: tbl.backfill("c", where="x % 100 = 7", progress=False), before),
            },
            _ROUNDS * scale.rounds,
        )
    ratio = rounds.ratio("1%", "all rows")
    return [
        Answer(
            f"where that matches 1% of {rows:,} rows, trivial UDF",
            "no more than the full backfill",
            f"{ratio:.2f} of it",
            ratio <= 1.0,
            rounds.text(),
        )
    ]
