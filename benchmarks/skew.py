"""Do two appliers help when the table has one fragment, or one that holds most of the rows?"""

from __future__ import annotations

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale, Side, alternate

_CASES = (
    ("one fragment, 2 CPU-bound appliers", 1.7, lambda n: [n]),
    (
        "skewed fragments (one holds 60% of the rows), 2 appliers",
        1.6,
        lambda n: [n * 6 // 10, *([n // 10] * 4)],
    ),
)


def run(scale: Scale) -> list[Answer]:
    """Time with one applier over time with two."""
    rows = scale.rows(80_000)
    return [_ask(name, bar, cut(rows), scale) for name, bar, cut in _CASES]


def _ask(name: str, bar: float, fragments: list[int], scale: Scale) -> Answer:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(sum(fragments)), fragments)
        tbl.add_columns({"warm": udfs.spin})
        fresh = tables.fresh(tbl, udfs.spin)

        def two_warm() -> None:
            # A job that takes one applier releases the second: start both again, untimed.
            tbl.backfill("warm", progress=False, concurrency=2, force=True)
            fresh()

        rounds = alternate(
            {
                "two": Side(
                    lambda: tbl.backfill("c", progress=False, concurrency=2), before=two_warm
                ),
                "one": Side(lambda: tbl.backfill("c", progress=False, concurrency=1), before=fresh),
            },
            scale.rounds,
        )
    ratio = rounds.ratio("one", "two")
    return Answer(
        f"{name}, {sum(fragments):,} rows",
        f">= {bar}x one applier",
        f"{ratio:.2f}x",
        ratio >= bar,
        rounds.text(),
    )
