"""Rules for errors and limits of calls hold in whole backfills, on both executors."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import geneva
from geneva import Fail, Retry, Skip
from geneva.errors import JobTimeoutError, UdfFailedError, UdfTimeoutError
from tests.support.backfills import CPUS, run, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table


def ruled(calls: CallLog) -> geneva.UDF:
    @geneva.udf(
        num_cpus=CPUS,
        batch_size=3,
        on_error=[Retry(3, 0.0, match="429"), Skip(match="429|gone"), Fail(match="deadly")],
    )
    def f(x: int) -> int:
        calls(x)
        if x == 3:
            raise ValueError("429")
        if x == 5:
            raise ValueError("gone")
        return 10 * x

    return f


def test_skipped_rows_are_null_and_counted_as_failed(
    tmp_path: Path, executor: Any, calls: CallLog
) -> None:
    tbl = make_table(tmp_path, rows=12, fragments=2)
    tbl.add_columns({"c": ruled(calls)})
    result = run(tbl, "c", executor)  # on_error="fail"
    assert (result.rows_computed, result.rows_failed) == (12, 2)
    want = [None if x in (3, 5) else 10 * x for x in range(12)]
    assert column(tbl, "c") == want
    assert xs(calls) == sorted([*range(12), 3, 3])
    assert sorted(result.failures["attempts"].to_pylist()) == [1, 3]
    # What failed is left alone until it is asked for; what is there stays when they are tried.
    assert run(tbl, "c", executor).rows_computed == 0
    again = run(tbl, "c", executor, retry_failed=True)
    assert (again.rows_computed, again.rows_failed) == (2, 2)
    assert column(tbl, "c") == want
    assert_table_invariants(tbl)


def test_forced_run_with_a_skip_overwrites_with_null(tmp_path: Path, calls: CallLog) -> None:
    tbl = make_table(tmp_path, rows=6, fragments=1)

    @geneva.udf
    def whole(x: int) -> int:
        return x

    tbl.add_columns({"c": whole})
    run(tbl, "c", "local")
    tbl.alter_columns({"path": "c", "udf": ruled(calls)})
    result = run(tbl, "c", "local")
    assert (result.rows_computed, result.rows_failed) == (6, 2)
    assert column(tbl, "c") == [0, 10, 20, None, 40, None]
    assert run(tbl, "c", "local").rows_computed == 0
    assert_table_invariants(tbl)


def test_fail_stops_a_job_that_takes_failures(tmp_path: Path, executor: Any) -> None:
    tbl = make_table(tmp_path, rows=6, fragments=1)

    @geneva.udf(num_cpus=CPUS, on_error=[Fail(match="deadly")])
    def f(x: int) -> int:
        raise ValueError("deadly" if x == 4 else "other")

    tbl.add_columns({"c": f})
    with pytest.raises(UdfFailedError, match="deadly"):
        run(tbl, "c", executor, on_error="null")


def test_call_that_hangs_costs_its_row(tmp_path: Path, executor: Any) -> None:
    tbl = make_table(tmp_path, rows=6, fragments=1)

    @geneva.udf(num_cpus=CPUS, timeout=0.5, on_error=[Skip(on=UdfTimeoutError)])
    def f(x: int) -> int:
        if x == 4:
            time.sleep(3600)
        print("called", x)
        return x

    tbl.add_columns({"c": f})
    result = run(tbl, "c", executor)
    assert (result.rows_computed, result.rows_failed) == (6, 1)
    assert column(tbl, "c") == [0, 1, 2, 3, None, 5]
    assert result.failures["error"].to_pylist() == ["UdfTimeoutError"]


def test_process_ends_although_calls_hang(tmp_path: Path) -> None:
    tbl = make_table(tmp_path, rows=2, fragments=1)
    code = (
        "import sys, time, geneva\n"
        "tbl = geneva.connect(sys.argv[1]).open_table('t')\n"
        "@geneva.udf\n"
        "def f(x: int) -> int: time.sleep(3600)\n"
        "tbl.add_columns({'c': f})\n"
        "try: tbl.backfill('c', executor='local', timeout=0.5, progress=False)\n"
        "except geneva.GenevaError as error: print(type(error).__name__)\n"
    )
    uri = tbl.storage.uri.rsplit("/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", code, uri], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == JobTimeoutError.__name__, done.stderr


def test_job_that_hangs_on_ray_ends_at_its_timeout(tmp_path: Path, ray_cluster: Any) -> None:
    tbl = make_table(tmp_path, rows=2, fragments=1)

    @geneva.udf(num_cpus=CPUS, data_type=pa.int64())
    def f(x: pa.Array) -> pa.Array:
        time.sleep(3600)
        return x

    tbl.add_columns({"c": f})
    with pytest.raises(JobTimeoutError):
        tbl.backfill("c", concurrency=1, timeout=3, progress=False)
