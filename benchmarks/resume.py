"""After ``kill -9``: is anything computed twice, and what does starting again cost?

A child backfills on a Ray of its own and is killed halfway; this process runs the same command
again. The UDF logs every row that it is given, so nothing depends on what the engine reports.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale

_SECONDS_PER_ROW = 50e-6
_ROUNDS = 3  # a round starts a Ray and takes half a minute


def run(scale: Scale) -> list[Answer]:
    """Kill a backfill halfway, and finish it."""
    rows = 40_000 if scale.quick else 160_000
    found = [_round(rows) for _ in range(1 if scale.quick else _ROUNDS)]
    again = max(f.computed_twice for f in found)
    ratio = statistics.median(f.disturbed_s / f.undisturbed_s for f in found)
    in_flight = max(f.in_flight for f in found)
    return [
        Answer(
            f"resume after kill -9, {rows:,} rows",
            "no checkpointed batch is computed again",
            f"{again:,} rows computed again",
            again == 0,
            f"{in_flight:,} rows were in flight when the process died; the second run replayed "
            f"or found committed {found[0].kept:,} of {rows:,} rows",
        ),
        Answer(
            f"first + resumed run against an undisturbed one, {rows:,} rows",
            "<= 1.1x",
            f"{ratio:.2f}x",
            ratio <= 1.1,
            "; ".join(f"{f.disturbed_s:.2f} s against {f.undisturbed_s:.2f} s" for f in found),
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Round:
    computed_twice: int
    in_flight: int
    kept: int
    disturbed_s: float
    undisturbed_s: float


def _round(rows: int) -> _Round:
    with tables.folder() as path:
        quiet, log = path / "quiet.log", path / "calls.log"
        tbl = tables.table(path, tables.numbers(rows), 10)
        tbl.add_columns({"quiet": udfs.counted(str(quiet), _SECONDS_PER_ROW)})
        tbl.backfill("quiet", progress=False, where="x < 2")  # starts the appliers
        undisturbed = _seconds(lambda: tbl.backfill("quiet", progress=False))
        tbl.add_columns({"c": udfs.counted(str(log), _SECONDS_PER_ROW)})
        first_s = _killed_halfway(path, log, rows)
        begun, ended = _logged(log, "begin"), _logged(log, "end")
        log.unlink()
        results: list = []
        tbl.backfill("quiet", progress=False)  # the appliers are warm for this table, as above
        second_s = _seconds(lambda: results.append(tbl.backfill("c", progress=False)))
        result = results[0]
        computed = _logged(log, "begin")
        kept = rows - computed
        # What ended before the kill was checkpointed, or (the last call of an applier) was about
        # to be; what the second run took from checkpoints or commits plus what it called for
        # must be every row once.
        replayed_or_committed = rows - result.rows_computed + result.rows_replayed
        return _Round(
            max(0, computed + replayed_or_committed - rows),
            begun - min(ended, kept),
            kept,
            first_s + second_s,
            undisturbed,
        )


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _killed_halfway(path: Path, log: Path, rows: int) -> float:
    """Run the backfill in a child, kill it when half of the rows are done; its working time."""
    code = (
        "import geneva, sys\n"
        "tbl = geneva.connect(sys.argv[1]).open_table('t')\n"
        "tbl.backfill('c', progress=False)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=os.environ, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while _logged(log, "end") < rows // 2 and child.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    killed = time.time()
    child.wait()
    _wait_quiet(log)
    return killed - _first(log)


def _wait_quiet(log: Path) -> None:
    """Wait until the orphaned workers of the killed driver are gone too."""
    size = -1
    while size != log.stat().st_size:
        size = log.stat().st_size
        time.sleep(2.0)


def _logged(log: Path, what: str) -> int:
    if not log.exists():
        return 0
    lines = (s.split() for s in log.read_text().splitlines())
    return sum(int(s[2]) for s in lines if len(s) == 3 and s[0] == what)


def _first(log: Path) -> float:
    return min(float(s.split()[1]) for s in log.read_text().splitlines())
