"""A call of native code that never returns: on Ray its process ends, and with it what it holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import geneva
from geneva.appliers.ray import actors
from tests.support.backfills import CPUS, until
from tests.support.calls import CallLog
from tests.support.tables import make_table, pairs

ROWS, BAD = 24, 3


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def table_of(path: Path, stuck: Any, calls: CallLog) -> tuple[geneva.Table, Path]:
    """Return a table, and the folder with a file for each process that computes its column."""
    pids = path / "pids"
    pids.mkdir()

    @geneva.udf(num_cpus=CPUS, timeout=0.5, version="1")
    def double(x: int) -> int:
        (pids / str(os.getpid())).touch()
        calls(x)
        if x == BAD:
            stuck()
        return 2 * x

    table = make_table(path, rows=ROWS, fragments=6)
    table.add_columns({"y": double})
    return table, pids


def burn() -> None:
    """Hold a core, not Python's lock, for ever."""
    import hashlib

    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def hold() -> None:
    """Hold Python's lock for ever."""
    import ctypes

    ctypes.PyDLL(None).pause()


@pytest.mark.ray
def test_applier_with_a_stuck_call_ends_its_task_and_its_process(
    tmp_path: Path, calls: CallLog, ray_cluster: None
) -> None:
    table, pids = table_of(tmp_path, burn, calls)
    result = table.backfill("y", concurrency=1, on_error="null", batch_size=1)
    assert result.rows_failed == 1
    assert "timeout" in str(result.failures.to_pylist())
    assert pairs(table, "x", "y") == {x: None if x == BAD else 2 * x for x in range(ROWS)}
    processes = [int(p.name) for p in pids.iterdir()]
    assert len(processes) > 1, "another process went on"
    first = min(pids.iterdir(), key=lambda p: p.stat().st_ctime)
    until(lambda: not alive(int(first.name)), 20)
    assert max(calls.counts.values()) == 1, "nothing was computed twice"


@pytest.mark.ray
def test_applier_whose_udf_keeps_pythons_lock_is_replaced(
    tmp_path: Path, calls: CallLog, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_SILENCE_S", 3.0)
    table, pids = table_of(tmp_path, hold, calls)
    result = table.backfill("y", concurrency=1, on_error="null", batch_size=1)
    assert result.rows_failed == 1
    assert pairs(table, "x", "y") == {x: None if x == BAD else 2 * x for x in range(ROWS)}
    assert 1 < len(list(pids.iterdir())) < 6, "the row was found as those are that kill"
