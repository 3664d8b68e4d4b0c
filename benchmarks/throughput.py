"""How fast are trivial UDFs: the engine's own cost, against the roofline and a bare loop."""

from __future__ import annotations

import lance

from benchmarks import roofline, tables, udfs
from benchmarks.measure import Answer, Curve, Rounds, Scale, Side, alternate, growth


def run(scale: Scale) -> list[Answer]:
    """A trivial batch UDF and a trivial scalar UDF, at three sizes each."""
    sizes = [scale.rows(n) for n in (1_000_000, 3_000_000, 10_000_000)]
    batch = {rows: _against_roofline(rows, scale) for rows in sizes}
    small, large = sizes[0], sizes[-1]
    points = {float(rows): r.median("geneva") for rows, r in batch.items()}
    scalar = {rows: _against_loop(rows, scale) for rows in sizes}
    grows = growth({rows: r.median("geneva") for rows, r in scalar.items()})
    ratio = batch[large].ratio("geneva", "R")
    excess = batch[small].excess("geneva", "R")
    return [
        Answer(
            f"trivial batch UDF, {large:,} rows, 20 fragments, Ray warm",
            "<= 2.0 R",
            f"{ratio:.2f} R",
            ratio <= 2.0,
            f"{batch[large].text()}; {growth(points)}",
            (Curve("rows", "geneva, 2 appliers", {n: n / s for n, s in points.items()}),),
        ),
        Answer(
            f"trivial batch UDF, {small:,} rows, 20 fragments, Ray warm",
            "<= 0.25 s more than R",
            f"{excess:+.3f} s",
            excess <= 0.25,
            batch[small].text(),
        ),
        *(_scalar(rows, rounds, grows, judged=rows == small) for rows, rounds in scalar.items()),
    ]


def _against_roofline(rows: int, scale: Scale) -> Rounds:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        uri = tables.write(path, tables.numbers(rows), 20, "roofline")
        return alternate(
            {
                "R": roofline.side(uri),
                "geneva": Side(
                    lambda: tbl.backfill("c", progress=False),
                    before=tables.fresh(tbl, udfs.double_batch),
                ),
            },
            scale.rounds,
        )


def _against_loop(rows: int, scale: Scale) -> Rounds:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        lists = [
            lance.dataset(tbl.storage.uri).get_fragments()[k].to_table(["x"])["x"].to_pylist()
            for k in range(20)
        ]

        called = udfs.double.target

        def loop() -> None:
            for values in lists:
                [called(x) for x in values]

        return alternate(
            {
                "loop": loop,
                "geneva": Side(
                    lambda: tbl.backfill("c", progress=False, concurrency=2),
                    before=tables.fresh(tbl, udfs.double),
                ),
            },
            scale.rounds,
        )


def _scalar(rows: int, rounds: Rounds, grows: str, *, judged: bool) -> Answer:
    ratio = rounds.ratio("geneva", "loop")
    return Answer(
        f"trivial scalar UDF, {rows:,} rows, 2 appliers, against a bare Python loop",
        "<= 0.8 of its time" if judged else "(no bar)",
        f"{ratio:.2f}",
        ratio <= 0.8 if judged else None,
        f"{rounds.text()}; {grows}",
    )
