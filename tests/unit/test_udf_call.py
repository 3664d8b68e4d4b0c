"""One batch through a UDF: what fails, what is called how often, and who is blamed."""

from __future__ import annotations

import array
import asyncio
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from geneva.errors import SettingError
from geneva.udf import BadResult, Caller, Retry, RowFailed, udf


def batch(**columns: list[Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def picky(bad: set[int], calls: list[int]) -> Any:
    """A batch UDF that raises when a bad value is in its batch, and counts its calls."""

    @udf(data_type=pa.int64())
    def double(x: pa.Array) -> pa.Array:
        calls.append(len(x))
        if bad & set(x.to_pylist()):
            raise ValueError("bad value")
        return pa.compute.multiply(x, 2)

    return double


@pytest.mark.parametrize("where", range(8))
def test_one_bad_row_of_a_batch_costs_one_row_and_bounded_calls(where: int) -> None:
    calls: list[int] = []
    applied = Caller(picky({where}, calls), "null")(batch(x=list(range(8))))
    assert applied.values.to_pylist() == [None if i == where else 2 * i for i in range(8)]
    assert [failure.row for failure in applied.failures] == [where]
    assert len(calls) == 1 + 2 * 3


def test_every_row_bad_ends_with_a_call_per_node_of_the_halving() -> None:
    calls: list[int] = []
    applied = Caller(picky(set(range(8)), calls), "null")(batch(x=list(range(8))))
    assert applied.values.null_count == len(applied.failures) == 8
    assert [failure.row for failure in applied.failures] == list(range(8))
    assert len(calls) == 15


@pytest.mark.parametrize("where", [0, 1, 499, 998, 999])
def test_naming_the_bad_row_of_a_batch_takes_few_calls(where: int) -> None:
    calls: list[int] = []
    with pytest.raises(RowFailed) as caught:
        Caller(picky({where}, calls))(batch(x=list(range(1000))))
    assert caught.value.failure.row == where
    assert caught.value.failure.input == f"x={where}"
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(calls) <= math.ceil(math.log2(1000)) + 2


def test_batch_that_fails_only_as_a_whole_blames_no_single_row() -> None:
    calls: list[int] = []

    @udf(data_type=pa.int64())
    def small(x: pa.Array) -> pa.Array:
        calls.append(len(x))
        if len(x) > 3:
            raise RuntimeError("too many")
        return x

    rows = batch(x=list(range(8)))
    with pytest.raises(RowFailed, match="no row fails alone: the batch of 8 rows does") as caught:
        Caller(small)(rows)
    assert caught.value.failure.row == 0
    assert len(calls) <= 5
    applied = Caller(small, "null")(rows)
    assert applied.values.to_pylist() == list(range(8))
    assert not applied.failures


def test_failing_row_is_null_and_the_rows_behind_it_are_not_shifted() -> None:
    calls: list[Any] = []

    @udf
    def inverse(x: int) -> float:
        calls.append(x)
        return 1 / x

    applied = Caller(inverse, "null")(batch(x=[1, 0, 2, 0, 4]))
    assert applied.values.to_pylist() == [1.0, None, 0.5, None, 0.25]
    assert [(f.row, f.error, f.input) for f in applied.failures] == [
        (1, "ZeroDivisionError", "x=0"),
        (3, "ZeroDivisionError", "x=0"),
    ]
    assert "in inverse" in applied.failures[0].traceback
    assert calls == [1, 0, 2, 0, 4]


def test_stop_iteration_of_a_row_does_not_end_the_batch() -> None:
    @udf
    def first(x: list[int]) -> int:
        return next(iter(x))

    applied = Caller(first, "null")(batch(x=[[1], [], [3]]))
    assert applied.values.to_pylist() == [1, None, 3]
    assert applied.failures[0].row == 1
    with pytest.raises(RowFailed, match="StopIteration"):
        Caller(first)(batch(x=[[1], []]))


def test_fail_stops_at_the_first_row_and_says_which() -> None:
    calls: list[int] = []

    @udf
    def check(x: int, y: str) -> int:
        calls.append(x)
        if x == 2:
            raise ValueError("two")
        return x

    with pytest.raises(RowFailed, match="row 1 with input x=2, y='b'") as caught:
        Caller(check)(batch(x=[1, 2, 3], y=["a", "b", "c" * 999]))
    assert calls == [1, 2]
    assert isinstance(caught.value.__cause__, ValueError)
    back = pickle.loads(pickle.dumps(caught.value))
    assert back.failure == caught.value.failure


def test_long_input_is_shortened_in_the_report() -> None:
    @udf
    def fail(x: str, y: list[float]) -> int:
        raise ValueError(x)

    applied = Caller(fail, "null")(batch(x=["a" * 10_000], y=[[0.5] * 10_000]))
    assert len(applied.failures[0].input) <= 210


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("form", ["row", "batch", "async"])
def test_interruption_is_no_failed_row(error: type[BaseException], form: str) -> None:
    def scalar(x: int) -> int:
        raise error

    def arrays(x: pa.Array) -> pa.Array:
        raise error

    async def awaited(x: int) -> int:
        raise error

    function: Any = {"row": scalar, "batch": arrays, "async": awaited}[form]
    with Caller(udf(function, data_type=pa.int64()), "null") as caller, pytest.raises(error):
        caller(batch(x=[1]))


@pytest.mark.parametrize("form", ["row", "batch", "async"])
def test_call_that_awaits_something_cancelled_fails_its_row_alone(form: str) -> None:
    def scalar(x: int) -> int:
        if x == 3:
            raise asyncio.CancelledError("not you")
        return 10 * x

    def arrays(x: pa.Array) -> pa.Array:
        return pa.array([scalar(v) for v in x.to_pylist()])

    async def awaited(x: int) -> int:
        return scalar(x)

    function: Any = {"row": scalar, "batch": arrays, "async": awaited}[form]
    made = udf(function, data_type=pa.int64())
    with Caller(made, "null") as caller:
        applied = caller(batch(x=list(range(8))))
    assert applied.values.to_pylist() == [0, 10, 20, None, 40, 50, 60, 70]
    assert [(f.row, f.error) for f in applied.failures] == [(3, "CancelledError")]
    with Caller(made, awaits=2) as caller, pytest.raises(RowFailed, match="CancelledError"):
        caller(batch(x=list(range(8))))


@pytest.mark.parametrize("on_error", ["fail", "null"])
def test_result_of_wrong_length_is_an_error_even_where_failures_are_null(on_error: Any) -> None:
    @udf(data_type=pa.int64())
    def short(x: pa.Array) -> pa.Array:
        return x[:-1]

    with pytest.raises(BadResult, match=r"'short'.*expected 3 values, one per row, got 2"):
        Caller(short, on_error)(batch(x=[1, 2, 3]))


def test_lossy_result_names_row_and_input_even_where_failures_are_null() -> None:
    @udf(data_type=pa.int64())
    def half(x: int) -> Any:
        return x / 2

    with pytest.raises(BadResult, match=r"1\.5.*row 2 of the batch, input x=3"):
        Caller(half, "null")(batch(x=[2, 4, 3]))


def test_transient_failure_is_tried_again_just_as_often_as_said() -> None:
    calls: list[int] = []

    @udf(retry=Retry(attempts=3, wait=0.0, on=(ConnectionError,)))
    def flaky(x: int) -> int:
        calls.append(x)
        if x == 1 and calls.count(1) < 3:
            raise ConnectionError
        if x in {2, 3}:
            raise ConnectionError("down") if x == 2 else ValueError("wrong")
        return x

    applied = Caller(flaky, "null")(batch(x=[0, 1, 2, 3]))
    assert applied.values.to_pylist() == [0, 1, None, None]
    assert [calls.count(x) for x in range(4)] == [1, 3, 3, 1]
    assert [(f.row, f.attempts) for f in applied.failures] == [(2, 3), (3, 1)]


def test_transient_failure_of_a_batch_costs_no_row() -> None:
    calls: list[int] = []

    @udf(data_type=pa.int64(), retry=Retry(attempts=2, wait=0.0))
    def flaky(x: pa.Array) -> pa.Array:
        calls.append(len(x))
        if len(calls) == 1:
            raise ConnectionError
        return x

    applied = Caller(flaky, "null")(batch(x=[1, 2]))
    assert applied.values.to_pylist() == [1, 2]
    assert not applied.failures
    assert calls == [2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"wait": -1},
        {"backoff": 0.5},
        {"max_wait": math.nan},
        {"on": ()},
        {"on": (KeyboardInterrupt,)},
        {"on": (7,)},
    ],
)
def test_senseless_retry_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"Retry\\({next(iter(wrong))}="):
        Retry(**wrong)


def test_wait_between_attempts_grows_to_its_limit() -> None:
    assert Retry(attempts=5, wait=1, backoff=3, max_wait=10).waits_s() == (1, 3, 9, 10)


def test_async_results_keep_the_order_of_their_rows() -> None:
    running, most = 0, 0

    @udf
    async def later(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 * (5 - x))
        running -= 1
        if x == 3:
            raise ValueError("three")
        return 10 * x

    with Caller(later, "null", awaits=3) as caller:
        for _ in range(2):
            applied = caller(batch(x=list(range(5))))
            assert applied.values.to_pylist() == [0, 10, 20, None, 40]
            assert [f.row for f in applied.failures] == [3]
    assert most == 3


def test_async_failure_stops_the_rows_behind_it() -> None:
    begun: list[int] = []

    @udf
    async def fails(x: int) -> int:
        begun.append(x)
        await asyncio.sleep(0.01)
        raise ValueError(x)

    with Caller(fails, awaits=2) as caller, pytest.raises(RowFailed) as caught:
        caller(batch(x=list(range(100))))
    assert caught.value.failure.row == 0
    assert begun == [0, 1]


@pytest.mark.parametrize(("instances", "expected"), [("applier", 1), ("thread", 3)])
def test_stateful_udf_is_built_as_often_as_said(instances: Any, expected: int) -> None:
    built: list[int] = []
    together = threading.Barrier(3)

    @udf(instances=instances)
    class Count:
        def __init__(self) -> None:
            built.append(1)

        def __call__(self, x: int) -> int:
            return x + 1

    counter = Count()
    assert not built
    caller = Caller(counter)

    def work(_: int) -> list[int]:
        together.wait(5)
        return [caller(batch(x=[i])).values[0].as_py() for i in range(3)]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [[1, 2, 3]] * 3
    assert len(built) == expected


def test_parameters_reach_the_function_beside_its_columns() -> None:
    @udf(params={"by": 2})
    def scale(by: int, x: int) -> int:
        return by * x

    assert Caller(scale)(batch(x=[1, 2])).values.to_pylist() == [2, 4]
    tripled = scale.with_params({"by": 3})
    assert Caller(tripled)(batch(x=[1, 2])).values.to_pylist() == [3, 6]
    assert tripled(x=5) == 15


def test_each_container_arrives_as_annotated() -> None:
    seen: list[Any] = []

    @udf(data_type=pa.float64())
    def numpy(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        seen.append((type(x), v.shape))
        return x + v.sum(axis=1)

    @udf(data_type=pa.int64())
    def pandas(x: pd.Series) -> pd.Series:
        seen.append(type(x))
        return x + 1

    @udf(data_type=pa.int64(), input_columns=["x", "meta.n"])
    def record(rows: pa.RecordBatch) -> pa.Array:
        seen.append(rows.schema.names)
        return pa.compute.add(rows.column(0), rows.column("meta.n"))

    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64(), 2))
    both = pa.RecordBatch.from_arrays([pa.array([1.0, 2.0]), vectors], ["x", "v"])
    assert Caller(numpy)(both).values.to_pylist() == [4.0, 9.0]
    assert Caller(pandas)(batch(x=[1, 2])).values.to_pylist() == [2, 3]
    nested = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([5])], ["x", "meta.n"])
    assert Caller(record)(nested).values.to_pylist() == [6]
    assert seen == [(np.ndarray, (2, 2)), pd.Series, ["x", "meta.n"]]


def test_empty_batch_calls_nothing() -> None:
    @udf
    def never(x: int) -> int:
        raise AssertionError

    empty = pa.RecordBatch.from_arrays([pa.array([], pa.int64())], ["x"])
    applied = Caller(never)(empty)
    assert len(applied.values) == 0
    assert applied.values.type == pa.int64()


LATE = pa.array([0, 10**12, 1], pa.timestamp("s"))  # the middle one is after the year 9999
FINE = pa.array([0, 1, 1000], pa.time64("ns"))
NO_TEXT = pa.array([b"a", b"\xff", b"c"]).view(pa.string())


@pytest.mark.parametrize("values", [LATE, FINE, NO_TEXT], ids=["late", "fine", "no_text"])
@pytest.mark.parametrize("form", ["row", "async"])
def test_value_that_python_cannot_hold_fails_more_than_its_row(form: str, values: pa.Array) -> None:
    def scalar(x: Any) -> bool:
        return True

    async def awaited(x: Any) -> bool:
        return True

    made = udf(scalar if form == "row" else awaited)
    inputs = pa.RecordBatch.from_pydict({"x": values})
    with Caller(made, "null") as caller:
        applied = caller(inputs)
    assert applied.values.to_pylist() == [True, None, True]
    assert [f.row for f in applied.failures] == [1]
    assert "column 'x'" in applied.failures[0].message
    with Caller(made) as caller, pytest.raises(RowFailed, match=r"row 1.*pyarrow\.Array"):
        caller(inputs)


@pytest.mark.parametrize("values", [LATE, FINE, NO_TEXT], ids=["late", "fine", "no_text"])
def test_report_of_a_failed_row_fails_over_its_input(values: pa.Array) -> None:
    @udf(data_type=pa.int64())
    def fail(x: pa.Array) -> pa.Array:
        raise ValueError("bad")

    applied = Caller(fail, "null")(pa.RecordBatch.from_pydict({"x": values}))
    assert [f.message for f in applied.failures] == ["bad"] * 3
    assert all(f.input.startswith("x=") for f in applied.failures)


@pytest.mark.parametrize("memory", [np.zeros(2), [0.0, 0.0]], ids=["numpy", "list"])
@pytest.mark.parametrize("form", ["row", "async"])
def test_memory_filled_for_each_row_keeps_each_rows_value(form: str, memory: Any) -> None:
    fails = [2.0]

    def scalar(x: float) -> list[float]:
        memory[0] = x
        if x in fails:
            raise ValueError(fails.pop())
        return memory  # type: ignore[no-any-return]

    async def awaited(x: float) -> list[float]:
        return scalar(x)

    made = udf(scalar if form == "row" else awaited, retry=Retry(attempts=2, wait=0.001))
    with Caller(made) as caller:
        found = caller(batch(x=[1.0, 2.0, 3.0])).values.to_pylist()
    assert found == [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]


@pytest.mark.parametrize("form", ["row", "async"])
def test_another_attempt_gets_its_inputs_as_the_table_holds_them(form: str) -> None:
    fails = [ConnectionError("first"), ConnectionError("second")]

    def total(v: list[int], s: dict[str, int]) -> int:
        v.append(s.pop("more"))
        if len(v) > 2 and fails:
            raise fails.pop()
        return sum(v)

    async def awaited(v: list[int], s: dict[str, int]) -> int:
        return total(v, s)

    made = udf(total if form == "row" else awaited, retry=Retry(attempts=3, wait=0.001))
    inputs = batch(v=[[1], [2, 3]], s=[{"more": 10}, {"more": 20}])
    with Caller(made) as caller:
        assert caller(inputs).values.to_pylist() == [11, 25]


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("awaits", [1, 4])
@pytest.mark.parametrize("then", ["awaits", "returns", "raises"])
def test_udf_that_cancels_its_own_task_fails_its_row_and_no_other(
    then: str, awaits: int, attempts: int
) -> None:
    @udf(retry=Retry(attempts=attempts, wait=0.001))
    async def echo(x: int) -> int:
        this = asyncio.current_task()
        if x == 3 and this is not None:
            this.cancel()
        if x == 3 and then == "raises":
            raise ValueError
        if then != "returns":
            await asyncio.sleep(0)
        return x

    with Caller(echo, "null", awaits) as caller:
        applied = caller(batch(x=list(range(8))))
    assert applied.values.to_pylist() == [x if x != 3 else None for x in range(8)]
    error = "ValueError" if then == "raises" else "CancelledError"
    tried = attempts if then == "raises" else 1
    assert [(f.row, f.error, f.attempts) for f in applied.failures] == [(3, error, tried)]


BUFFER = np.zeros(2)
BYTES = bytearray(8)
RECORD = {"v": 0.0}
VECTOR, STRUCT = pa.list_(pa.float64()), pa.struct([pa.field("v", pa.float64())])


@pytest.mark.parametrize(
    ("data_type", "made", "fill", "shown"),
    [
        (pa.struct([pa.field("v", VECTOR)]), {"v": BUFFER}, BUFFER, lambda x: {"v": [x, 0.0]}),
        (pa.list_(VECTOR), [BUFFER], BUFFER, lambda x: [[x, 0.0]]),
        (pa.list_(VECTOR), (BUFFER,), BUFFER, lambda x: [[x, 0.0]]),
        (pa.list_(STRUCT), [RECORD], RECORD, lambda x: [{"v": x}]),
        (pa.binary(), BYTES, BYTES, lambda x: bytes([int(x), *[0] * 7])),
        (pa.binary(), memoryview(BYTES), BYTES, lambda x: bytes([int(x), *[0] * 7])),
        (VECTOR, ARRAY := array.array("d", [0.0, 0.0]), ARRAY, lambda x: [x, 0.0]),
    ],
    ids=["struct", "list", "tuple", "records", "bytes", "view", "array"],
)
def test_memory_within_a_result_filled_for_each_row_keeps_each_rows_value(
    data_type: pa.DataType, made: Any, fill: Any, shown: Callable[[float], Any]
) -> None:
    def refilled(x: float) -> Any:
        if isinstance(fill, dict):
            fill["v"] = x
        else:
            fill[0] = int(x) if isinstance(fill, bytearray) else x
        return made

    with Caller(udf(refilled, data_type=data_type)) as caller:
        found = caller(batch(x=[1.0, 2.0, 3.0])).values.to_pylist()
    assert found == [shown(1.0), shown(2.0), shown(3.0)]
