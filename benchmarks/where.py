"""Does a filter that selects little cost little?"""

from __future__ import annotations

from benchmarks import roofline, tables, udfs
from benchmarks.measure import Answer, Rounds, Scale, Side, alternate, growth

_WHERE = "x % 100 = 7"
_ROUNDS = 4  # times as many as elsewhere where it is judged: a fifth of a second differs by a tenth


def run(scale: Scale) -> list[Answer]:
    """A filter that matches 1% of the rows, spread over all fragments, against all rows."""
    small, *larger = (scale.rows(n) for n in (1_000_000, 3_000_000, 10_000_000))
    found = {small: _against_all_rows(small, _ROUNDS * scale.rounds)}
    found |= {rows: _against_all_rows(rows, scale.rounds) for rows in larger}
    grows = growth({rows: r.median("1%") for rows, r in found.items()})
    answers = []
    for rows, rounds in found.items():
        ratio, of_loop = rounds.ratio("1%", "all rows"), rounds.ratio("R 1%", "R")
        answers.append(
            Answer(
                f"where that matches 1% of {rows:,} rows, trivial UDF",
                "no more than the full backfill" if rows == small else "(no bar)",
                f"{ratio:.2f} of it",
                ratio <= 1.0 if rows == small else None,
                f"the roofline loop itself: {of_loop:.2f}; {rounds.text()}; {grows}",
            )
        )
    return answers


def _against_all_rows(rows: int, rounds: int) -> Rounds:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        uri = tables.write(path, tables.numbers(rows), 20, "roofline")
        before = tables.fresh(tbl, udfs.double_batch)
        return alternate(
            {
                "all rows": Side(lambda: tbl.backfill("c", progress=False), before),
                "1%": Side(lambda: tbl.backfill("c", where=_WHERE, progress=False), before),
                "R": roofline.side(uri),
                "R 1%": roofline.side(uri, _WHERE),
            },
            rounds,
        )
