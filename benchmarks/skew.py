"""Do two appliers help when the table has one fragment, or one that holds most of the rows?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Rounds, Scale, Side, alternate, growth

_CASES = (
    ("one fragment, 2 CPU-bound appliers", 1.7, lambda n: [n]),
    (
        "skewed fragments (one holds 60% of the rows), 2 appliers",
        1.6,
        lambda n: [n * 6 // 10, *([n // 10] * 4)],
    ),
)


def run(scale: Scale) -> list[Answer]:
    """Time with one applier over time with two, at three sizes; the largest is judged."""
    return [a for name, bar, cut in _CASES for a in _ask(name, bar, cut, scale)]


def _ask(name: str, bar: float, cut: Callable[[int], list[int]], scale: Scale) -> Iterator[Answer]:
    judged = scale.rows(80_000)
    found = {n: _measured(cut(n), scale) for n in (judged // 4, judged // 2, judged)}
    grows = growth({rows: r.median("two") for rows, r in found.items()})
    for rows, rounds in found.items():
        ratio = rounds.ratio("one", "two")
        yield Answer(
            f"{name}, {rows:,} rows",
            f">= {bar}x one applier" if rows == judged else "(no bar)",
            f"{ratio:.2f}x",
            ratio >= bar if rows == judged else None,
            f"{rounds.text()}; {grows}",
        )


def _measured(fragments: list[int], scale: Scale) -> Rounds:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(sum(fragments)), fragments)
        tbl.add_columns({"warm": udfs.spin})
        fresh = tables.fresh(tbl, udfs.spin)

        def two_warm() -> None:
            # A job that takes one applier releases the second: start both again, untimed.
            tbl.backfill("warm", progress=False, concurrency=2, force=True)
            fresh()

        return alternate(
            {
                "two": Side(
                    lambda: tbl.backfill("c", progress=False, concurrency=2), before=two_warm
                ),
                "one": Side(lambda: tbl.backfill("c", progress=False, concurrency=1), before=fresh),
            },
            scale.rounds,
        )
