"""What do windows cost, against the same job without them and against a job for each window?

A window is a slice of one job. The peer is how Airflow's and Polyaxon's backfills go: a run for
each interval, here a backfill with a filter. Tables are in the order of the column, or shuffled, so
that each fragment holds rows of every window.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import tables
from benchmarks.measure import Answer, Scale, growth
from geneva import Windows, udf
from geneva.table import Table

_LAYOUTS = ("in order", "shuffled")


@udf(data_type=pa.int64(), num_cpus=0.1)
def slow(x: int) -> int:
    time.sleep(0.001)
    return x


@udf(data_type=pa.int64(), num_cpus=0.1)
def quick(x: int) -> int:
    return x


@dataclass(frozen=True, slots=True)
class _Run:
    seconds: float
    files: int
    versions: int


def run(scale: Scale) -> list[Answer]:
    """A UDF of a millisecond, a trivial one, a job per window, and the plan."""
    return [*_slow(scale), *_trivial(scale), *_jobs(scale), *_plans(scale)]


def _table(path: Path, rows: int, fragments: int, layout: str) -> Table:
    ts = np.arange(rows)
    if layout == "shuffled":
        np.random.default_rng(1).shuffle(ts)
    return tables.table(path, pa.table({"x": ts, "ts": ts}), fragments)


def _windows(rows: int, cut: int, **others: Any) -> Windows:
    return Windows("ts", start=0, end=rows, step=rows // cut, **others)


def _backfill(table: Table, column: str, with_udf: Any, **arguments: Any) -> _Run:
    table.add_columns({column: with_udf})
    before = _files(table)
    started = time.perf_counter()
    result = table.backfill(column, executor="local", progress=False, **arguments)
    seconds = time.perf_counter() - started
    return _Run(seconds, _files(table) - before, len(result.versions))


def _files(table: Table) -> int:
    return sum(1 for _ in Path(table.storage.uri, "data").glob("gv.*"))


def _slow(scale: Scale) -> Iterator[Answer]:
    """Few rounds: each run waits for minutes of UDF calls."""
    rows, cut = scale.rows(200_000), 10 if scale.quick else 100
    for layout in _LAYOUTS:
        with tables.folder() as path:
            table = _table(path, rows, cut, layout)
            plain = _backfill(table, "plain", slow)
            for at_once in (1, 4):
                asked = Windows(
                    "ts",
                    start=0,
                    end=rows,
                    step=rows // cut,
                    concurrency=at_once,
                    commit="fragment",
                )
                cut_up = _backfill(table, f"windows{at_once}", slow, windows=asked)
                ratio = cut_up.seconds / plain.seconds
                same = (cut_up.files, cut_up.versions) == (plain.files, plain.versions)
                yield Answer(
                    f"{cut} windows x {cut} fragments {layout}, 1 ms a row, {at_once} open",
                    "<= 1.15x one job without windows, as many files",
                    f"{ratio:.2f}x, {cut_up.files} files against {plain.files}",
                    ratio <= 1.15 and cut_up.files == plain.files,
                    f"{cut_up.seconds:.1f} s against {plain.seconds:.1f} s, "
                    f"{cut_up.versions} commits against {plain.versions}"
                    + ("" if same else "; commits follow the time that fragments end at"),
                )


def _trivial(scale: Scale) -> Iterator[Answer]:
    rows, cut = scale.rows(200_000), 10 if scale.quick else 100
    for layout in _LAYOUTS:
        with tables.folder() as path:
            table = _table(path, rows, cut, layout)
            asked = _windows(rows, cut, commit="fragment")
            plain = _backfill(table, "plain", quick)
            cut_up = _backfill(table, "windows", quick, windows=asked)
            pairs = cut if layout == "in order" else cut * cut
            cost_ms = (cut_up.seconds - plain.seconds) / pairs * 1e3
            yield Answer(
                f"{cut} windows x {cut} fragments {layout}, a trivial UDF",
                "<= 5 ms per window and fragment",
                f"{cost_ms:.2f} ms",
                cost_ms <= 5,
                f"{cut_up.seconds:.2f} s against {plain.seconds:.2f} s, {pairs:,} pairs",
            )


def _jobs(scale: Scale) -> Iterator[Answer]:
    rows, fragments, cut = scale.rows(200_000), 10, 20
    for layout in _LAYOUTS:
        with tables.folder() as path:
            table = _table(path, rows, fragments, layout)
            asked = _windows(rows, cut)
            ours = _backfill(table, "windows", quick, windows=asked)
            before, started = _files(table), time.perf_counter()
            table.add_columns({"jobs": quick})
            for k in range(cut):
                low, high = rows // cut * k, rows // cut * (k + 1)
                where = f"ts >= {low} and ts < {high}"
                table.backfill("jobs", executor="local", progress=False, where=where)
            seconds, files = time.perf_counter() - started, _files(table) - before
            yield Answer(
                f"{cut} windows of one job against a job per window, {layout}",
                "(no bar)",
                f"{seconds / ours.seconds:.1f}x the time, {files} files against {ours.files}",
                None,
                f"{seconds:.2f} s against {ours.seconds:.2f} s",
            )


def _plans(scale: Scale) -> Iterator[Answer]:
    fragments = 200 if scale.quick else 1_000
    rows = 20 * fragments
    for layout in _LAYOUTS:
        with tables.folder() as path:
            table = _table(path, rows, fragments, layout)
            table.add_columns({"y": quick})
            found: dict[int, float] = {}
            for cut in (10, 100, 1_000):
                asked = _windows(rows, cut)
                started = time.perf_counter()
                table.plan_backfill("y", windows=asked)
                found[cut] = time.perf_counter() - started
            yield Answer(
                f"the plan of 1,000 windows over {fragments:,} fragments {layout}",
                "(no bar at this size)",
                f"{found[1_000]:.2f} s",
                None,
                ", ".join(f"{n:,} windows {s:.2f} s" for n, s in found.items())
                + "; "
                + growth({float(n): s for n, s in found.items()}, "windows"),
            )
