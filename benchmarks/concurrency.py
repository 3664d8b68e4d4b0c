"""Are as many UDF calls under way as was asked for, and are the cores busy in UDFs?"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Curve, Scale

_CALL_S = 0.010
_ROWS_PER_CALL = 10


def run(scale: Scale) -> list[Answer]:
    """50 sleeping calls at once; CPU-bound calls with default settings; more and more appliers."""
    judged = scale.rows(200_000)
    sizes = (judged // 4, judged // 2, judged)
    return [
        *(_calls(rows, scale, judged=rows == judged) for rows in sizes),
        *(_cores(rows, scale, judged=rows == judged) for rows in sizes),
        _appliers(scale),
    ]


def _calls(rows: int, scale: Scale, *, judged: bool) -> Answer:
    found = []
    with tables.folder() as path:
        log = path / "calls.log"
        tbl = tables.table(path, tables.numbers(rows), 40)
        before = tables.fresh(tbl, udfs.sleeper(str(log), _CALL_S, _ROWS_PER_CALL))
        for turn in range(scale.rounds + 1):
            before()
            log.unlink(missing_ok=True)
            tbl.backfill("c", concurrency=10, intra_applier_concurrency=5, progress=False)
            if turn:
                found.append(_under_way(log))
    at_once = statistics.median(found)
    return Answer(
        "UDF with num_cpus=0.1 that sleeps 10 ms per batch, concurrency=10, "
        f"intra_applier_concurrency=5, {rows // _ROWS_PER_CALL:,} calls",
        ">= 45 of 50 calls at once in steady state" if judged else "(no bar)",
        f"{at_once:.1f}",
        at_once >= 45 if judged else None,
        "the middle half of the run; rounds: " + ", ".join(f"{f:.1f}" for f in found),
    )


def _under_way(log: Path) -> float:
    """Mean number of calls under way in the middle half of the run."""
    calls = _lines(log)
    low, high = _middle(calls)
    return sum(max(0.0, min(c[1], high) - max(c[0], low)) for c in calls) / (high - low)


def _cores(rows: int, scale: Scale, *, judged: bool) -> Answer:
    found = []
    with tables.folder() as path:
        log = path / "calls.log"
        tbl = tables.table(path, tables.numbers(rows), 20)
        before = tables.fresh(tbl, udfs.cores(str(log)))
        for turn in range(scale.rounds + 1):
            before()
            log.unlink(missing_ok=True)
            tbl.backfill("c", progress=False)
            if turn:
                calls = _lines(log)
                low, high = min(c[0] for c in calls), max(c[1] for c in calls)
                found.append(sum(c[2] for c in calls) / (high - low))
    busy = statistics.median(found)
    cores = os.cpu_count() or 1
    bar = 1.7 * cores / 2
    return Answer(
        f"CPU-bound UDF, {cores} cores, default settings, {rows:,} rows",
        f">= {bar:.1f} cores busy in UDFs" if judged else "(no bar)",
        f"{busy:.2f}",
        busy >= bar if judged else None,
        "processor seconds in the UDF per second between the first and the last call; rounds: "
        + ", ".join(f"{f:.2f}" for f in found),
    )


def _appliers(scale: Scale) -> Answer:
    points = {}
    with tables.folder() as path:
        log = path / "calls.log"
        for appliers in (1, 2, 4, 8):
            calls = scale.rows(200) * appliers
            tbl = tables.table(path, tables.numbers(calls * _ROWS_PER_CALL), 16, f"t{appliers}")
            udf = udfs.sleeper(str(log), _CALL_S, _ROWS_PER_CALL)
            before = tables.warm(tbl, udf)
            before()
            log.unlink()
            tbl.backfill("c", concurrency=appliers, progress=False)
            logged = _lines(log)
            seconds = max(c[1] for c in logged) - min(c[0] for c in logged)
            points[float(appliers)] = calls * _ROWS_PER_CALL / seconds
    share = points[8] / (8 * points[1])
    return Answer(
        "the same UDF with 1, 2, 4, 8 appliers: rows a second of 8 over 8 times those of 1",
        "(no bar)",
        f"{share:.2f}",
        None,
        ", ".join(f"{n:.0f}: {y:,.0f} rows/s" for n, y in points.items()),
        (Curve("appliers", "sleeps 10 ms a call", points),),
    )


def _lines(log: Path) -> list[list[float]]:
    return [[float(v) for v in s.split()] for s in log.read_text().splitlines()]


def _middle(calls: list[list[float]]) -> tuple[float, float]:
    low, high = min(c[0] for c in calls), max(c[1] for c in calls)
    return low + (high - low) / 4, high - (high - low) / 4
