"""From a fresh process to the first values, and to the second ones."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks import tables
from benchmarks.measure import Answer, Scale, end_ray

_ROUNDS = 7  # Ray's own start takes 2.5 s, or one or two more: it asks for its node once a second

_RAY_ALONE = """
import json, sys, time
started = time.perf_counter()
import ray
ray.init(address="local", include_dashboard=False, object_store_memory=96 << 20,
         logging_level="ERROR")
print(json.dumps({"seconds": time.perf_counter() - started}))
ray.shutdown()
"""

_BACKFILLS = """
import json, sys, time
started = time.perf_counter()
import ray
def timed(*args, init=ray.init, **options):
    global own
    before = time.perf_counter()
    init(*args, **options)
    own += time.perf_counter() - before
ray.init, own = timed, time.perf_counter() - started
import geneva
def double(x: int) -> int:
    return x * 2
tbl = geneva.connect(sys.argv[1]).open_table(sys.argv[2])
tbl.add_columns({"c": geneva.udf(double)})
tbl.backfill("c", progress=False)
first = time.perf_counter() - started
seconds = []
for _ in range(5):
    tbl.drop_columns(["c"])
    tbl.add_columns({"c": geneva.udf(double)})
    started = time.perf_counter()
    tbl.backfill("c", progress=False)
    seconds.append(time.perf_counter() - started)
print(json.dumps({"first": first, "own": own, "second": sorted(seconds)[2]}))
"""

_IMPORT = """
import json, time
started = time.perf_counter()
import {module}
print(json.dumps({{"seconds": time.perf_counter() - started}}))
"""


def run(scale: Scale) -> list[Answer]:
    """Import, first and second backfill of a process; Ray's own start beside them."""
    rounds = 1 if scale.quick else _ROUNDS
    alone, own, first, second, lancedb, geneva = [], [], [], [], [], []
    end_ray()
    with tables.folder() as path:
        for turn in range(rounds):
            name = f"t{turn}"
            tables.table(path, tables.numbers(100), 4, name)
            alone.append(_child(_RAY_ALONE)["seconds"])
            got = _child(_BACKFILLS, str(path), name)
            first.append(got["first"])
            own.append(got["own"])
            second.append(got["second"])
            lancedb.append(_child(_IMPORT.format(module="lancedb"))["seconds"])
            geneva.append(_child(_IMPORT.format(module="geneva"))["seconds"])
    excess = statistics.median(f - o for f, o in zip(first, own, strict=True))
    against = statistics.median(first) - statistics.median(alone)
    second_ms = statistics.median(second) * 1e3
    imports = statistics.median(geneva) - statistics.median(lancedb)
    return [
        Answer(
            "first backfill of a fresh process, 100 rows, Ray not started",
            "Ray's own start + 1.5 s",
            f"{excess:+.2f} s",
            excess <= 1.5,
            f"{_texts(first)} s, of which importing and starting Ray {_texts(own)} s; in processes "
            f"of their own these took {_texts(alone)} s, by the medians {against:+.2f} s",
        ),
        Answer(
            "second backfill of that process, 100 rows",
            "<= 100 ms",
            f"{second_ms:.0f} ms",
            second_ms <= 100,
            f"medians of 5 in each process: {_texts(second)} s",
        ),
        Answer(
            "import geneva",
            "<= 0.5 s beyond lancedb's own",
            f"{imports:+.2f} s",
            imports <= 0.5,
            f"lancedb {statistics.median(lancedb):.2f} s",
        ),
    ]


def _child(code: str, *arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=300,
    )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _texts(seconds: list[float]) -> str:
    return ", ".join(f"{s:.2f}" for s in seconds)
