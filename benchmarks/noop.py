"""What does a backfill cost that has nothing to do?"""

from __future__ import annotations

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Curve, Rounds, Scale, alternate, growth

_BARS_MS = {20: 20.0, 1_000: 50.0, 10_000: 400.0}
_ROWS_PER_FRAGMENT = 10
_LANCE = "lance opens the table"


def run(scale: Scale) -> list[Answer]:
    """20, 1,000 and 10,000 fragments that are all computed."""
    sizes = [20, 1_000] if scale.quick else list(_BARS_MS)
    rounds = {n: _measured(n, scale) for n in sizes}
    points = {float(n): r.median("geneva") * 1e3 for n, r in rounds.items()}
    lance_ms = {float(n): r.median(_LANCE) * 1e3 for n, r in rounds.items()}
    curves = (Curve("noop", "geneva", points), Curve("noop", _LANCE, lance_ms))
    return [
        Answer(
            f"nothing to do, {n:,} fragments",
            f"<= {_BARS_MS[n]:.0f} ms, no data read",
            f"{points[n]:.1f} ms",
            points[n] <= _BARS_MS[n],
            f"{r.ratio('geneva', _LANCE):.1f} times as long as Lance takes to "
            f"open the table; {growth(points, 'fragments')}",
            curves if n == sizes[-1] else (),
        )
        for n, r in rounds.items()
    ]


def _measured(fragments: int, scale: Scale) -> Rounds:
    import lance

    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(fragments * _ROWS_PER_FRAGMENT), fragments)
        tbl.add_columns({"c": udfs.double_batch})
        tbl.backfill("c", progress=False)

        def again() -> None:
            result = tbl.backfill("c", progress=False)
            # A run that did something is no answer to the question.
            assert not result.versions, result
            assert not result.stage_seconds["read"], result

        sides = {
            "geneva": again,
            _LANCE: lambda: lance.dataset(tbl.storage.uri).get_fragments(),
        }
        return alternate(sides, max(scale.rounds, 5))
