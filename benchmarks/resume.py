"""After ``kill -9``: is anything computed twice, and what does starting again cost?

A child backfills on a Ray of its own and is killed halfway; this process runs the same command
again. The UDF logs every row that it is given, so the first answer does not depend
on what the engine reports.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale

_SECONDS_PER_ROW = 50e-6
_MARGIN_S = 0.5  # longer than a call that ended needs to reach the journal
_ROUNDS = 3  # a round starts a Ray and takes half a minute


def run(scale: Scale) -> list[Answer]:
    """Kill a backfill halfway, and finish it."""
    rows = 40_000 if scale.quick else 160_000
    found = [_round(rows) for _ in range(1 if scale.quick else _ROUNDS)]
    again = max(f.computed_twice for f in found)
    ratio = statistics.median(f.disturbed_s / f.undisturbed_s for f in found)
    return [
        Answer(
            f"resume after kill -9, {rows:,} rows",
            "no checkpointed batch is computed again",
            f"{again:,} rows computed again",
            again == 0 and all(f.settled for f in found),
            "; ".join(
                f"{f.settled:,} rows were done {_MARGIN_S} s before the kill, the second run "
                f"computed {f.second:,} of {rows:,}"
                for f in found
            ),
        ),
        Answer(
            f"first + resumed run against an undisturbed one, {rows:,} rows",
            "<= 1.1x",
            f"{ratio:.2f}x (not judged)",
            None,
            # Two biases of unknown size: no verdict until both are measured out.
            "the second run starts cold appliers, and orphaned workers go on for a moment after "
            "the kill, which is not in the time; "
            + "; ".join(f"{f.disturbed_s:.2f} s against {f.undisturbed_s:.2f} s" for f in found),
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Round:
    computed_twice: int
    settled: int
    second: int
    disturbed_s: float
    undisturbed_s: float


@dataclass(frozen=True, slots=True)
class _Call:
    what: str
    at: float
    first: int
    rows: int


def _round(rows: int) -> _Round:
    with tables.folder() as path:
        quiet, log = path / "quiet.log", path / "calls.log"
        tbl = tables.table(path, tables.numbers(rows), 10)
        tbl.add_columns({"quiet": udfs.counted(str(quiet), _SECONDS_PER_ROW)})
        tbl.backfill("quiet", progress=False, where="x < 2")  # starts the appliers
        undisturbed = _seconds(lambda: tbl.backfill("quiet", progress=False))
        tbl.add_columns({"c": udfs.counted(str(log), _SECONDS_PER_ROW)})
        first_s, killed = _killed_halfway(path, log, rows)
        before = _calls(log)
        log.unlink()
        second_s = _seconds(lambda: tbl.backfill("c", progress=False))
        # What ended well before the kill must have been checkpointed by then.
        settled = _rows(c for c in before if c.what == "end" and c.at < killed - _MARGIN_S)
        again = _rows(c for c in _calls(log) if c.what == "begin")
        return _Round(
            len(settled & again), len(settled), len(again), first_s + second_s, undisturbed
        )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _killed_halfway(path: Path, log: Path, rows: int) -> tuple[float, float]:
    """Run the backfill in a child, kill it when half is done: (working seconds, when)."""
    code = (
        "import geneva, sys\n"
        "tbl = geneva.connect(sys.argv[1]).open_table('t')\n"
        "tbl.backfill('c', progress=False)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=os.environ, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while sum(c.rows for c in _calls(log) if c.what == "end") < rows // 2 and child.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    killed = time.time()
    child.wait()
    _wait_quiet(log)
    return killed - min(c.at for c in _calls(log)), killed


def _wait_quiet(log: Path) -> None:
    """Wait until the orphaned workers of the killed driver are gone too."""
    size = -1
    while size != log.stat().st_size:
        size = log.stat().st_size
        time.sleep(2.0)


def _calls(log: Path) -> list[_Call]:
    if not log.exists():
        return []
    lines = (s.split() for s in log.read_text().splitlines())
    return [_Call(s[0], float(s[1]), int(s[2]), int(s[3])) for s in lines if len(s) == 4]


def _rows(calls: Iterable[_Call]) -> set[int]:
    return {row for c in calls for row in range(c.first, c.first + c.rows)}
