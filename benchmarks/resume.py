"""After ``kill -9``: is anything computed twice, and what does starting again cost?

A child backfills on a Ray of its own and is killed halfway; another one runs the same command
again, and a third one a column that nobody disturbs. The UDF logs every row that it is given, so
the first answer does not depend on what the engine reports.

A run lasts from the call of ``backfill``, with Ray up and no applier started, to its end; the
killed one until the last call of its orphaned appliers, whose work counts too.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale, growth

_SECONDS_PER_ROW = 50e-6
_MARGIN_S = 0.5  # longer than a call that ended needs to reach the journal
_BACKFILL = """
import sys, time
import geneva
from geneva.appliers.ray.actors import start_ray
tbl = geneva.connect(sys.argv[1]).open_table("t")
start_ray({})
print(time.time(), flush=True)
tbl.backfill(sys.argv[2], progress=False)
print(time.time(), flush=True)
"""


def run(scale: Scale) -> list[Answer]:
    """Kill a backfill halfway, and finish it; the time is judged at the largest of three sizes."""
    judged = 40_000 if scale.quick else 640_000
    smaller = {n: [_round(n)] for n in (judged // 4, judged // 2)}  # three Rays and a minute each
    found = smaller | {judged: [_round(judged) for _ in range(1 if scale.quick else scale.rounds)]}
    grows = growth({n: statistics.median(f.disturbed_s for f in r) for n, r in found.items()})
    return [
        a for n, rounds in found.items() for a in _answers(n, rounds, grows, judged=n == judged)
    ]


def _answers(rows: int, found: Sequence[_Round], grows: str, *, judged: bool) -> list[Answer]:
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
            "<= 1.1x" if judged else "(no bar)",
            f"{ratio:.2f}x",
            ratio <= 1.1 if judged else None,
            "applier starts included, Ray's start not; "
            + "; ".join(f"{f.disturbed_s:.2f} s against {f.undisturbed_s:.2f} s" for f in found)
            + f"; {grows}",
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
        undisturbed = _whole(path, "quiet")
        tbl.add_columns({"c": udfs.counted(str(log), _SECONDS_PER_ROW)})
        first_s, killed = _killed_halfway(path, log, rows)
        before = _calls(log)
        log.unlink()
        second_s = _whole(path, "c")
        # What ended well before the kill must have been checkpointed by then.
        settled = _rows(c for c in before if c.what == "end" and c.at < killed - _MARGIN_S)
        again = _rows(c for c in _calls(log) if c.what == "begin")
        return _Round(
            len(settled & again), len(settled), len(again), first_s + second_s, undisturbed
        )


def _start(path: Path, column: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _BACKFILL, str(path), column]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _whole(path: Path, column: str) -> float:
    """Return the seconds that a backfill takes in a process of its own."""
    child = _start(path, column)
    printed, _ = child.communicate(timeout=300)
    began, ended = map(float, printed.split()[-2:])
    return ended - began


def _killed_halfway(path: Path, log: Path, rows: int) -> tuple[float, float]:
    """Run the backfill in a child, kill it when half is done: (working seconds, when)."""
    child = _start(path, "c")
    assert child.stdout is not None
    began = float(child.stdout.readline())
    deadline = time.monotonic() + 120
    while sum(c.rows for c in _calls(log) if c.what == "end") < rows // 2 and child.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    killed = time.time()
    child.wait()
    child.stdout.close()
    _wait_quiet(log)
    return max(killed, *(c.at for c in _calls(log))) - began, killed


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
