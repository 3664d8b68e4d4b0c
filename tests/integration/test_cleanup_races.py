"""Cleanups and updates by another process, as fast as it can, beside whatever the engine does.

Each cleanup takes the version that was planned on, or is being opened. Whatever vanishes is looked
for in the latest version and planned again: no raw error of Lance, nothing given up, right values.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest

import geneva
from geneva.appliers import units
from geneva.errors import GenevaError
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, make_table, pairs

pytestmark = pytest.mark.disk(reason="the other process is given a path")

_WRITER = """
import datetime as dt, itertools, os, random, sys
import lance
uri, rows, ready = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for k in itertools.count():
    if os.getppid() != int(sys.argv[4]):
        sys.exit()  # the test was killed
    try:
        lance.dataset(uri).update({"s": f"'{k}'"}, where=f"x = {random.randrange(rows)}")
        lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))
    except Exception:
        pass  # a lost commit, or its own version gone: only how the engine takes it counts
    if k == 2:
        open(ready, "w").close()
"""


@contextmanager
def hot(table: geneva.Table, rows: int, path: Path) -> Iterator[None]:
    """Let another process update single rows and clean up without a pause."""
    ready = path / "ready"
    ready.unlink(missing_ok=True)
    arguments = [table.storage.uri, str(rows), str(ready), str(os.getpid())]
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, *arguments])
    try:
        while not ready.exists():
            assert writer.poll() is None, "the other process could not write"
            time.sleep(0.01)
        yield
    finally:
        writer.kill()
        writer.wait()


def table_of(path: Path, calls: CallLog, rows: int, seconds: float) -> geneva.Table:
    table = make_table(path, rows=rows, fragments=4)

    @geneva.udf(num_cpus=0.5)
    def double(x: int) -> int:
        import time

        time.sleep(seconds)
        calls(x)
        return 2 * x

    table.add_columns({"y": double, "z": double, "w": double})
    return table


@pytest.mark.parametrize("commit_granularity", [1, 64])
def test_backfills_beside_a_hot_loop_of_cleanups_end_well(
    tmp_path: Path,
    calls: CallLog,
    monkeypatch: pytest.MonkeyPatch,
    executor: Literal["local", "ray"],
    commit_granularity: int,
) -> None:
    monkeypatch.setattr(units, "_HELD_S", 0.0)
    rows = 80
    table = table_of(tmp_path, calls, rows, 0.01)
    columns = ["y", "z", "w"]
    arguments: dict[str, Any] = {
        "executor": executor,
        "concurrency": 2,
        "batch_size": 4,
        "commit_granularity": commit_granularity,
        "progress": False,
    }
    with hot(table, rows, tmp_path):
        for column in columns:
            table.backfill(column, timeout=120.0, **arguments)
    table.backfill(columns, **arguments)
    for column in columns:
        assert pairs(table, "x", column) == {x: 2 * x for x in range(rows)}
    assert_table_invariants(table)


def test_plans_and_coverage_beside_a_hot_loop_of_cleanups_are_answered(
    tmp_path: Path, calls: CallLog
) -> None:
    rows = 80
    table = table_of(tmp_path, calls, rows, 0.0)
    table.backfill("y", where="x % 2 = 0", executor="local", progress=False)
    with hot(table, rows, tmp_path):
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert table.coverage("y").totals["rows"] == rows
            table.plan_backfill("y")
            table.plan_backfill("y", where="x > 3 and s is not null", force=True)
            assert "y" in table.computed_columns()
            table.check_backfill("y", where="x > 3")
            geneva.connect(str(tmp_path)).open_table("t")
            table.refresh()


def test_binding_beside_a_hot_loop_of_cleanups_is_done_or_told(
    tmp_path: Path, calls: CallLog
) -> None:
    rows = 80
    table = table_of(tmp_path, calls, rows, 0.0)
    with hot(table, rows, tmp_path):
        until = time.monotonic() + 5
        k = 0
        while time.monotonic() < until:
            k += 1

            @geneva.udf
            def times(x: int, k: int = k) -> int:
                return k * x

            with suppress(GenevaError):  # others may be first every time
                table.alter_columns({"path": "y", "udf": times})


def test_threads_that_backfill_beside_a_hot_loop_of_cleanups_share_the_work(
    tmp_path: Path, calls: CallLog
) -> None:
    rows = 80
    table = table_of(tmp_path, calls, rows, 0.005)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            again = geneva.connect(str(tmp_path)).open_table("t")
            again.backfill("y", executor="local", concurrency=2, progress=False, timeout=120.0)
        except BaseException as error:
            raised.append(error)

    with hot(table, rows, tmp_path):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert raised == []
    table.backfill("y", executor="local", progress=False)
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(rows)}
