"""When a UDF fails: stop and say where, or null and go on; retries, dying workers, bad results."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import geneva
from geneva import Retry
from geneva.errors import (
    GenevaError,
    JobTimeoutError,
    SettingError,
    StorageError,
    TooManyFailuresError,
    UdfError,
    UdfFailedError,
    WorkerDiedError,
)
from tests.support.backfills import CPUS
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, flushing, make_table, pairs

ROWS, FRAGMENTS, BAD = 40, 4, 13  # row 13: row 3 of fragment 1
DOUBLED = {"y": lambda row: 2 * row["x"]}
ONE_BY_ONE: dict[str, Any] = {"concurrency": 1, "batch_size": 2}


def doubled(*, without: tuple[int, ...] = ()) -> dict[int, int | None]:
    return {i: None if i in without else 2 * i for i in range(ROWS)}


@pytest.fixture
def table(tmp_path: Path) -> geneva.Table:
    return make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)


@pytest.fixture
def picky(table: geneva.Table, calls: CallLog, tmp_path: Path) -> geneva.Table:
    """A column y whose UDF fails on one row until the file ``mended`` exists."""
    mended = str(tmp_path / "mended")

    @geneva.udf
    def double(x: int, s: str) -> int:
        calls(x)
        if x == BAD and not os.path.exists(mended):
            raise KeyError(f"cannot do {x}")
        return 2 * x

    table.add_columns({"y": double})
    return table


def mend(tmp_path: Path) -> None:
    (tmp_path / "mended").touch()


# --- on_error="fail" ----------------------------------------------------------------------


def test_error_names_all_that_one_needs_to_find_the_row(picky: geneva.Table, executor: str) -> None:
    with pytest.raises(UdfFailedError) as caught:
        picky.backfill("y", executor=executor, **ONE_BY_ONE)
    text = str(caught.value)
    assert "'y'" in text  # the column
    assert "'double'" in text  # the UDF
    assert "fragment 1" in text
    assert "row 3" in text
    assert f"row id {(1 << 32) + 3}" in text
    assert "x=13" in text
    assert "s='b13'" in text
    assert "KeyError" in text
    assert "cannot do 13" in text
    notes = "\n".join(caught.value.__notes__)
    assert 'raise KeyError(f"cannot do {x}")' in notes
    assert "in double" in notes
    assert_table_invariants(picky, DOUBLED)


def test_rows_before_the_failing_one_are_kept_and_not_computed_again(
    picky: geneva.Table, calls: CallLog, tmp_path: Path, executor: str
) -> None:
    with pytest.raises(UdfFailedError):
        picky.backfill("y", executor=executor, **ONE_BY_ONE)
    kept = pairs(picky, "x", "y")
    if executor == "local":  # the two calls of an actor may begin in either order
        assert {i: kept[i] for i in range(10)} == {i: 2 * i for i in range(10)}  # fragment 0
    mend(tmp_path)
    result = picky.backfill("y", executor=executor, **ONE_BY_ONE)
    assert result.rows_replayed >= 2  # rows 10 and 11, checkpointed before row 13 failed
    assert pairs(picky, "x", "y") == doubled()
    counts = calls.counts
    assert all(counts[str(i)] == 1 for i in range(ROWS) if i not in (12, BAD))
    assert counts["12"] == 2  # in the batch that failed
    assert counts[str(BAD)] == 2
    assert_table_invariants(picky, DOUBLED)


def test_failing_batch_udf_names_the_one_bad_row(
    table: geneva.Table, calls: CallLog, executor: str
) -> None:
    @geneva.udf(data_type=pa.int64())
    def double(x: np.ndarray) -> np.ndarray:
        calls(len(x))
        if BAD in x:
            raise ValueError("thirteen")
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(UdfFailedError, match=r"fragment 1, row 3 .*x=13.*thirteen"):
        table.backfill("y", executor=executor, concurrency=1, batch_size=10)
    assert len(calls) <= 2 + 2 + 4  # fragment 0, the failing batch, log2(10) + 2 to find the row


def test_udf_that_cannot_start_is_an_error_with_its_text(
    table: geneva.Table, executor: str
) -> None:
    @geneva.udf(data_type=pa.int64())
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no weights here")

        def __call__(self, x: int) -> int:
            return x

    table.add_columns({"y": Broken()})
    with pytest.raises(GenevaError, match="no weights here"):
        table.backfill("y", executor=executor, concurrency=1)
    assert_table_invariants(table)


# --- on_error="null" ----------------------------------------------------------------------


def test_failed_row_is_null_and_listed_with_all_about_it(
    picky: geneva.Table, calls: CallLog, executor: str
) -> None:
    result = picky.backfill("y", executor=executor, on_error="null", **ONE_BY_ONE)
    assert (result.rows_computed, result.rows_failed) == (ROWS, 1)
    assert pairs(picky, "x", "y") == doubled(without=(BAD,))
    assert set(calls.counts.values()) == {1}
    assert isinstance(result.failures, pa.Table)
    (failure,) = result.failures.to_pylist()
    assert failure["column"] == "y"
    assert (failure["fragment"], failure["row"]) == (1, 3)
    assert failure["row_id"] == (1 << 32) + 3
    assert failure["input"] == "x=13, s='b13'"
    assert failure["error"] == "KeyError"
    assert "cannot do 13" in failure["message"]
    assert 'raise KeyError(f"cannot do {x}")' in failure["traceback"]
    assert failure["attempts"] == 1
    assert_table_invariants(picky, DOUBLED)


def test_failed_row_is_left_until_it_is_asked_for(
    picky: geneva.Table, calls: CallLog, tmp_path: Path
) -> None:
    picky.backfill("y", executor="local", on_error="null")
    calls.clear()
    again = picky.backfill("y", executor="local", on_error="null")
    assert (again.rows_computed, again.rows_failed_before) == (0, 1)
    assert "retry_failed=True" in str(again)
    assert len(calls) == 0
    mend(tmp_path)
    retried = picky.backfill("y", executor="local", on_error="null", retry_failed=True)
    assert (retried.rows_computed, retried.rows_failed) == (1, 0)
    assert retried.rows_failed_before == 0
    assert calls.keys == [str(BAD)]
    assert pairs(picky, "x", "y") == doubled()
    assert_table_invariants(picky, DOUBLED)


def test_where_selects_the_failed_rows_again(
    picky: geneva.Table, calls: CallLog, tmp_path: Path
) -> None:
    picky.backfill("y", executor="local", on_error="null")
    mend(tmp_path)
    calls.clear()
    picky.backfill("y", where="y is null", executor="local", retry_failed=True)
    assert calls.keys == [str(BAD)]
    assert pairs(picky, "x", "y") == doubled()


def test_one_bad_row_costs_a_batch_udf_one_row(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf(data_type=pa.int64())
    def double(x: np.ndarray) -> np.ndarray:
        calls(len(x))
        if BAD in x:
            raise ValueError("thirteen")
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor="local", concurrency=1, batch_size=10, on_error="null")
    assert result.rows_failed == 1
    assert pairs(table, "x", "y") == doubled(without=(BAD,))
    # Four batches; the bad one is halved: 10 -> 5 5, 5 -> 2 3, 2 or 3 -> singles.
    assert 4 + 6 <= len(calls) <= 4 + 8
    assert_table_invariants(table, DOUBLED)


def test_many_bad_rows_are_each_found(table: geneva.Table) -> None:
    @geneva.udf(data_type=pa.int64())
    def double(x: np.ndarray) -> np.ndarray:
        if (x % 7 == 0).any():
            raise ValueError("seven")
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor="local", batch_size=10, on_error="null")
    bad = tuple(range(0, ROWS, 7))
    assert pairs(table, "x", "y") == doubled(without=bad)
    found = sorted(result.failures["row_id"].to_pylist())
    assert found == [(i // 10 << 32) + i % 10 for i in bad]


def test_honest_null_is_not_counted_as_a_failure(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf
    def half(x: int) -> int | None:
        calls(x)
        return x // 2 if x % 2 == 0 else None

    table.add_columns({"y": half})
    result = table.backfill("y", executor="local", on_error="null")
    assert (result.rows_failed, result.failures.num_rows) == (0, 0)
    assert table.backfill("y", executor="local", retry_failed=True).rows_computed == 0
    assert len(calls) == ROWS


@pytest.mark.parametrize(("allowed", "stops"), [(3, False), (2, True), (0.1, False), (0.05, True)])
def test_max_failures_is_a_count_or_a_fraction(
    table: geneva.Table, allowed: float, stops: bool
) -> None:
    @geneva.udf
    def double(x: int) -> int:
        if x in (5, 15, 25):
            raise ValueError(f"no {x}")
        return 2 * x

    table.add_columns({"y": double})
    arguments: dict[str, Any] = {"on_error": "null", "max_failures": allowed, **ONE_BY_ONE}
    if stops:
        with pytest.raises(TooManyFailuresError, match=rf"max_failures={allowed}.*no \d"):
            table.backfill("y", executor="local", **arguments)
    else:
        assert table.backfill("y", executor="local", **arguments).rows_failed == 3
    assert_table_invariants(table, DOUBLED)


def test_share_of_failures_is_of_all_rounds_not_of_the_last(table: geneva.Table) -> None:
    uri = table.storage.uri

    @geneva.udf
    def double(x: int) -> int:
        if x == 0:  # the next round has this one row
            lance.write_dataset(pa.table({"x": [ROWS], "s": ["late"]}), uri, mode="append")
        if 0 < x < 6:
            raise ValueError(f"no {x}")
        return 2 * x

    table.add_columns({"y": double})
    arguments: dict[str, Any] = {"on_error": "null", "include_new": True, **ONE_BY_ONE}
    result = table.backfill("y", executor="local", where="x >= 0", max_failures=0.5, **arguments)
    assert (result.rows_computed, result.rows_failed) == (ROWS + 1, 5)


def test_failures_replayed_from_a_checkpoint_are_still_listed(
    table: geneva.Table, calls: CallLog, tmp_path: Path
) -> None:
    stop = str(tmp_path / "go")

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 2:
            raise KeyError("two")
        if x == 8 and not os.path.exists(stop):
            return "no number"  # type: ignore[return-value]  # an error whatever on_error says
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(UdfFailedError, match="no number"):
        table.backfill("y", executor="local", on_error="null", **ONE_BY_ONE)
    Path(stop).touch()
    result = table.backfill("y", executor="local", on_error="null", **ONE_BY_ONE)
    assert result.failures["message"].to_pylist() == ["'two'"]
    assert calls.counts["2"] == 1
    assert pairs(table, "x", "y") == doubled(without=(2,))


# --- retry --------------------------------------------------------------------------------


def test_transient_error_is_tried_again_and_costs_only_its_row(
    table: geneva.Table, calls: CallLog, executor: str
) -> None:
    @geneva.udf(retry=Retry(attempts=3, wait=0.01, on=(ConnectionError,)))
    def double(x: int) -> int:
        calls(x)
        if x == BAD and calls.counts[str(BAD)] < 3:
            raise ConnectionError("try again")
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor=executor, concurrency=1)
    assert result.rows_failed == 0
    assert pairs(table, "x", "y") == doubled()
    assert calls.counts == {str(i): 3 if i == BAD else 1 for i in range(ROWS)}


def test_error_of_another_kind_is_not_tried_again(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf(retry=Retry(attempts=3, wait=0.01, on=(ConnectionError,)))
    def double(x: int) -> int:
        calls(x)
        if x == BAD:
            raise ValueError("for ever")
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor="local", on_error="null")
    assert calls.counts[str(BAD)] == 1
    assert result.failures["attempts"].to_pylist() == [1]


def test_attempts_that_were_made_are_listed(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf(retry=Retry(attempts=3, wait=0.01))
    def double(x: int) -> int:
        calls(x)
        if x == BAD:
            raise ConnectionError("for ever")
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor="local", on_error="null")
    assert calls.counts[str(BAD)] == 3
    assert result.failures["attempts"].to_pylist() == [3]


# --- bad results --------------------------------------------------------------------------


def _short(x: pa.Array) -> pa.Array:
    return x.slice(1)


def _long(x: pa.Array) -> pa.Array:
    return pa.concat_arrays([x, x.slice(0, 1)])


def _text(x: pa.Array) -> pa.Array:
    return x.cast(pa.string())


def _fractions(x: pa.Array) -> pa.Array:
    return pa.array([v + 0.5 for v in x.to_pylist()], pa.float64())


def _scalar(x: pa.Array) -> Any:
    return 7


@pytest.mark.parametrize("on_error", ["fail", "null"])
@pytest.mark.parametrize(
    ("function", "data_type", "message"),
    [
        (_short, pa.int64(), r"\b9\b.*\b10\b|\b10\b.*\b9\b"),
        (_long, pa.int64(), r"\b11\b.*\b10\b|\b10\b.*\b11\b"),
        (_text, pa.int64(), "string"),
        (_fractions, pa.int64(), "double|float|0.5"),
        (_scalar, pa.int64(), "int"),
    ],
)
def test_result_that_does_not_fit_is_always_an_error(
    table: geneva.Table, function: Any, data_type: pa.DataType, message: str, on_error: Any
) -> None:
    @geneva.udf(data_type=data_type, input_columns=["x"], version="1")
    def bad(x: pa.Array) -> pa.Array:
        return function(x)

    table.add_columns({"y": bad})
    with pytest.raises(UdfFailedError, match=message) as caught:
        table.backfill("y", executor="local", batch_size=10, on_error=on_error, concurrency=1)
    assert "bad" in str(caught.value)
    assert set(pairs(table, "x", "y").values()) == {None}
    assert_table_invariants(table)


def test_number_too_large_for_the_column_names_the_row(table: geneva.Table) -> None:
    @geneva.udf(data_type=pa.int32())
    def large(x: int) -> int:
        return 2**40 if x == BAD else x

    table.add_columns({"y": large})
    with pytest.raises(UdfFailedError, match=r"int32") as caught:
        table.backfill("y", executor="local", **ONE_BY_ONE)
    assert "x=13" in str(caught.value)
    assert "fragment 1, row 3" in str(caught.value)


def test_list_of_another_length_names_expected_and_found(table: geneva.Table) -> None:
    @geneva.udf(data_type=pa.list_(pa.float32(), 3))
    def vector(x: int) -> list[float]:
        return [0.0] * (4 if x == BAD else 3)

    table.add_columns({"y": vector})
    with pytest.raises(UdfFailedError, match=r"3.*4|4.*3"):
        table.backfill("y", executor="local", **ONE_BY_ONE)


def test_widening_is_fine(table: geneva.Table) -> None:
    @geneva.udf(data_type=pa.float64())
    def widened(x: pa.Array) -> pa.Array:
        return x.cast(pa.int32())

    table.add_columns({"y": widened})
    table.backfill("y", executor="local")
    assert pairs(table, "x", "y") == {i: float(i) for i in range(ROWS)}


# --- workers that die ---------------------------------------------------------------------


@pytest.mark.ray
def test_row_that_kills_its_worker_fails_the_job_and_is_named(
    table: geneva.Table, calls: CallLog, ray_cluster: None
) -> None:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == BAD:
            os._exit(1)
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(WorkerDiedError) as caught:
        table.backfill("y", executor="ray", **ONE_BY_ONE)
    text = str(caught.value)
    assert "'y'" in text
    assert "fragment 1" in text
    assert "rows" in text
    assert calls.counts[str(BAD)] == 4  # one worker and its three replacements
    kept = pairs(table, "x", "y")
    assert {i: kept[i] for i in range(10)} == {i: 2 * i for i in range(10)}
    assert_table_invariants(table, DOUBLED)


@pytest.mark.ray
def test_row_that_kills_its_worker_once_costs_its_batch_and_no_more(
    table: geneva.Table, calls: CallLog, tmp_path: Path, ray_cluster: None
) -> None:
    marker = str(tmp_path / "died")

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == BAD and not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return 2 * x

    table.add_columns({"y": double})
    flushing(table).backfill("y", executor="ray", **ONE_BY_ONE)
    assert pairs(table, "x", "y") == doubled()
    assert {k: n for k, n in calls.counts.items() if n > 1} == {"12": 2, str(BAD): 2}
    assert_table_invariants(table, DOUBLED)


@pytest.mark.ray
def test_rows_that_kill_workers_are_isolated_and_skipped(
    table: geneva.Table, calls: CallLog, ray_cluster: None
) -> None:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == BAD:
            os._exit(1)
        return 2 * x

    table.add_columns({"y": double})
    result = flushing(table).backfill(
        "y", executor="ray", on_error="null", concurrency=1, batch_size=5
    )
    assert result.rows_failed == 1
    assert pairs(table, "x", "y") == doubled(without=(BAD,))
    (failure,) = result.failures.to_pylist()
    assert (failure["fragment"], failure["row"]) == (1, 3)
    assert "died" in failure["message"]
    counts = calls.counts
    assert all(counts[str(i)] == 1 for i in range(ROWS) if not 10 <= i < 15)
    assert_table_invariants(table, DOUBLED)


@pytest.mark.ray
def test_applier_that_cannot_start_takes_no_work_of_others_along(
    table: geneva.Table, tmp_path: Path, ray_cluster: None
) -> None:
    first, busy = tmp_path / "first", tmp_path / "busy"

    @geneva.udf(num_cpus=CPUS)
    class Model:
        def __init__(self) -> None:
            try:
                first.touch(exist_ok=False)
            except FileExistsError:
                while not busy.exists():
                    time.sleep(0.01)
                raise OSError("no weights") from None

        def __call__(self, x: int) -> int:
            if x >= 30:
                busy.touch()
                time.sleep(0.5)
            return 2 * x

    table.add_columns({"y": Model})
    with pytest.raises(UdfError, match="no weights"):
        table.backfill("y", executor="ray", concurrency=2, batch_size=1, commit_granularity=100)
    kept = pairs(table, "x", "y")
    assert {i: kept[i] for i in range(20)} == {i: 2 * i for i in range(20)}
    assert_table_invariants(table, DOUBLED)


@pytest.mark.ray
def test_running_out_of_memory_is_not_simply_repeated(
    table: geneva.Table, calls: CallLog, ray_cluster: None
) -> None:
    @geneva.udf(data_type=pa.int64())
    def double(x: np.ndarray) -> np.ndarray:
        calls(len(x))
        if len(x) > 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor="ray", num_frags=1, concurrency=1, batch_size=10)
    assert (result.rows_computed, result.rows_failed) == (10, 0)
    values = pairs(table, "x", "y")
    assert {i: values[i] for i in range(10)} == {i: 2 * i for i in range(10)}
    assert calls.counts["10"] == 1
    assert_table_invariants(table, DOUBLED)


def test_memory_error_is_tried_with_smaller_batches(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf(data_type=pa.int64())
    def double(x: np.ndarray) -> np.ndarray:
        calls(len(x))
        if len(x) > 4:
            raise MemoryError("too much")
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor="local", concurrency=1, batch_size=10)
    assert (result.rows_computed, result.rows_failed) == (ROWS, 0)
    assert pairs(table, "x", "y") == doubled()
    assert_table_invariants(table, DOUBLED)


def test_row_that_never_fits_in_memory_fails_or_is_skipped(
    table: geneva.Table, calls: CallLog
) -> None:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == BAD:
            raise MemoryError("too much")
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(WorkerDiedError, match=r"too much.*fragment 1"):
        table.backfill("y", executor="local", **ONE_BY_ONE)
    assert calls.counts[str(BAD)] == 4
    result = table.backfill("y", executor="local", on_error="null", **ONE_BY_ONE)
    assert result.rows_failed == 1
    assert pairs(table, "x", "y") == doubled(without=(BAD,))
    assert_table_invariants(table, DOUBLED)


@pytest.mark.parametrize("on_error", ["fail", "null"])
def test_udf_that_exits_does_not_hang_the_job(table: geneva.Table, on_error: Any) -> None:
    @geneva.udf
    def double(x: int) -> int:
        if x == BAD:
            raise SystemExit(3)
        return 2 * x

    table.add_columns({"y": double})
    if on_error == "fail":
        with pytest.raises(WorkerDiedError, match=r"sys\.exit\(3\).*fragment 1"):
            table.backfill("y", executor="local", **ONE_BY_ONE)
    else:
        result = table.backfill("y", executor="local", on_error="null", **ONE_BY_ONE)
        assert result.rows_failed == 1
        assert pairs(table, "x", "y") == doubled(without=(BAD,))
    assert_table_invariants(table, DOUBLED)


# --- time-outs and parameters ---------------------------------------------------------------


def test_timeout_stops_the_job_and_not_just_the_waiting(
    table: geneva.Table, calls: CallLog, executor: str
) -> None:
    @geneva.udf
    def slow(x: int) -> int:
        calls(x)
        time.sleep(0.2)
        return 2 * x

    table.add_columns({"y": slow})
    limit = 1.0 if executor == "local" else 4.0
    with pytest.raises(JobTimeoutError, match="same command continues"):
        table.backfill("y", executor=executor, concurrency=1, batch_size=1, timeout=limit)
    made = len(calls)
    assert made < ROWS
    time.sleep(0.8)
    assert len(calls) == made
    table.backfill("y", executor=executor, concurrency=4, batch_size=1)
    assert pairs(table, "x", "y") == doubled()
    assert set(calls.counts.values()) == {1}  # all that was computed before had been checkpointed
    assert_table_invariants(table, DOUBLED)


def test_params_override_those_declared_for_one_call_and_enter_the_digest(
    table: geneva.Table, calls: CallLog
) -> None:
    @geneva.udf(data_type=pa.int64(), params={"factor": 2})
    def scaled(x: int, factor: int = 2) -> int:
        calls(x)
        return factor * x

    table.add_columns({"y": scaled})
    table.backfill("y", executor="local", params={"factor": 5})
    assert pairs(table, "x", "y") == {i: 5 * i for i in range(ROWS)}
    assert table.backfill("y", executor="local", params={"factor": 5}).rows_computed == 0
    assert table.backfill("y", executor="local").rows_computed == ROWS
    assert pairs(table, "x", "y") == doubled()
    assert len(calls) == 2 * ROWS


def test_unknown_parameter_is_refused_before_any_work(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(geneva.GenevaError, match="nope"):
        table.backfill("y", executor="local", params={"nope": 1})
    assert len(calls) == 0


def test_max_failures_without_null_is_refused(picky: geneva.Table) -> None:
    with pytest.raises(SettingError, match="on_error='null'"):
        picky.backfill("y", executor="local", max_failures=3)


def test_model_that_exits_when_it_is_built_leaves_the_job_waiting(table: geneva.Table) -> None:
    @geneva.udf
    class Model:
        def __init__(self) -> None:
            raise SystemExit("no licence")

        def __call__(self, x: int) -> int:
            return x

    table.add_columns({"y": Model})
    with pytest.raises(UdfFailedError, match=r"could not start.*SystemExit: no licence"):
        table.backfill("y", executor="local", timeout=30)


def test_udf_that_raises_what_ends_threads_leaves_the_job_waiting(table: geneva.Table) -> None:
    @geneva.udf
    def interrupt(x: int) -> int:
        raise KeyboardInterrupt

    table.add_columns({"y": interrupt})
    with pytest.raises(StorageError, match="KeyboardInterrupt"):
        table.backfill("y", executor="local", concurrency=1, timeout=30)
