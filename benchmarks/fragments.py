"""Does it matter how a table is cut, and what does a fragment cost?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks import roofline, tables, udfs
from benchmarks.measure import Answer, Curve, Rounds, Scale, Side, alternate, growth
from geneva.table import Table

_CUTS = (1, 4, 10, 20, 100)


def run(scale: Scale) -> list[Answer]:
    """The same rows in few and many fragments; then thousands of tiny ones."""
    return [_cuts(scale), *_tiny(scale)]


def _cuts(scale: Scale) -> Answer:
    rows = scale.rows(1_000_000)
    with ExitStack() as stack:
        sides = {}
        for n in _CUTS:
            path = stack.enter_context(tables.folder())
            tbl = tables.table(path, tables.numbers(rows), n)
            sides[str(n)] = Side(_work(tbl), before=tables.warm(tbl, udfs.double_batch))
            uri = tables.write(path, tables.numbers(rows), n, "loop")
            sides[f"R {n}"] = roofline.side(uri)
        rounds = alternate(sides, scale.rounds)
    points = {float(n): rounds.median(str(n)) for n in _CUTS}
    bare = {float(n): rounds.median(f"R {n}") for n in _CUTS}
    ratio = max(points.values()) / min(points.values())
    return Answer(
        f"{rows:,} rows in 1, 4, 10, 20, 100 fragments: slowest / fastest",
        "<= 2",
        f"{ratio:.2f}",
        ratio <= 2,
        f"the roofline loop itself: {max(bare.values()) / min(bare.values()):.2f}; {rounds.text()}",
        (Curve("fragments", "geneva", points), Curve("fragments", "roofline R", bare)),
    )


def _work(tbl: Table) -> Callable[[], object]:
    return lambda: tbl.backfill("c", progress=False)


def _tiny(scale: Scale) -> Iterator[Answer]:
    sizes = [100, 200, 500] if scale.quick else [500, 1_000, 2_000]
    found = {n: _measured(n, scale) for n in sizes}
    grows = growth({n: r.median("geneva") for n, r in found.items()}, "fragments")
    for n, rounds in found.items():
        cost_ms = rounds.median("geneva") / n * 1e3
        yield Answer(
            f"cost per tiny fragment, {n:,} fragments of 50 rows",
            "<= 4 ms" if n == sizes[-1] else "(no bar)",
            f"{cost_ms:.1f} ms",
            cost_ms <= 4 if n == sizes[-1] else None,
            f"{rounds.text()}; {rounds.ratio('geneva', 'R'):.1f} R; {grows}",
        )


def _measured(fragments: int, scale: Scale) -> Rounds:
    with tables.folder() as path:
        data = tables.numbers(fragments * 50)
        tbl = tables.table(path, data, fragments)
        uri = tables.write(path, data, fragments, "loop")
        return alternate(
            {
                "R": roofline.side(uri),
                "geneva": Side(_work(tbl), before=tables.fresh(tbl, udfs.double_batch)),
            },
            scale.rounds,
        )
