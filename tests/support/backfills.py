"""What backfill tests share: UDFs that log their calls, gates, storage that logs its reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geneva
from geneva.storage.lance import TableStorage
from tests.support.calls import CallLog

CPUS = 0.5  # of one applier: few enough fit at once that warm ones of earlier tests must go


@dataclass(frozen=True)
class Gate:
    """Blocks UDF calls, in whatever process, until a test opens it; picklable, seen by digests."""

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))

    @property
    def is_open(self) -> bool:
        return Path(self.path).exists()

    def open(self) -> None:
        Path(self.path).touch()

    def wait(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_open:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened {self.path}")
            time.sleep(0.01)


def until(test: Any, timeout_s: float = 60.0) -> None:
    """Wait until something is true of a running job."""
    deadline = time.monotonic() + timeout_s
    while not test():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def times(calls: CallLog, factor: int = 2, **settings: Any) -> geneva.UDF:
    """Return a UDF x -> factor * x that logs every x it is called with."""

    @geneva.udf(**{"num_cpus": CPUS, "name": "times"} | settings)
    def multiply(x: int) -> int:
        calls(x)
        return factor * x

    return multiply


def run(table: geneva.Table, columns: Any, executor: str, **options: Any) -> geneva.BackfillResult:
    """Backfill on one applier, and check that the plan had said what was then done."""
    told = {k: v for k, v in options.items() if k not in ("num_frags", "concurrency")}
    plan = table.plan_backfill(columns, num_frags=options.get("num_frags"), **told)
    result = table.backfill(columns, executor=executor, **{"concurrency": 1} | options)
    if isinstance(columns, str):
        assert plan.rows_compute == result.rows_computed, (str(plan), str(result))
        assert plan.rows_waiting == result.rows_waiting
    return result


def xs(calls: CallLog) -> list[int]:
    """Return the arguments of all calls so far, sorted, and forget them."""
    found = sorted(int(k) for k in calls.keys)
    calls.clear()
    return found


@dataclass(frozen=True)
class WatchedStorage(TableStorage):
    """Logs which scans happen, in whatever process; to show that some do not."""

    log: str = ""

    def scan(self, snapshot: Any, fragments: Any, columns: Any, **kwargs: Any) -> Iterator[Any]:
        ids = [fragments] if isinstance(fragments, int) else fragments
        CallLog(self.log)(f"scan:{','.join(map(str, ids))}")
        return super().scan(snapshot, fragments, columns, **kwargs)

    def read_footer(self, name: str) -> Any:
        CallLog(self.log)("footer")
        return super().read_footer(name)


def watched(table: geneva.Table, log: CallLog) -> geneva.Table:
    """Return the same table over storage that logs its reads."""
    return geneva.Table(table, storage=WatchedStorage(table.storage.uri, log=log.path))
