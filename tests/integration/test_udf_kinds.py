"""Every kind of UDF and every type of column goes through a backfill and comes back as it was."""

from __future__ import annotations

import datetime as dt
import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import lance
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest

import geneva
from geneva.errors import UdfError, UdfFailedError
from tests.support.backfills import CPUS, run
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, database, make_table, pairs

UTC = dt.UTC
DAY = dt.datetime(2024, 5, 17, 13, 30, 59, 123456)

TUPLE = pa.list_(pa.struct([("a", pa.int64())]), 2)

# type of a column, and the value for row i; a row for which i % 5 == 4 is null besides
TYPES: list[tuple[pa.DataType, Callable[[int], Any]]] = [
    (pa.bool_(), lambda i: i % 2 == 0),
    (pa.int8(), lambda i: -i),
    (pa.int16(), lambda i: -300 * i),
    (pa.int32(), lambda i: -70_000 * i),
    (pa.int64(), lambda i: -(2**40) * i),
    (pa.uint8(), lambda i: i),
    (pa.uint16(), lambda i: 300 * i),
    (pa.uint32(), lambda i: 70_000 * i),
    (pa.uint64(), lambda i: 2**60 + i),
    (pa.float16(), lambda i: i / 4),
    (pa.float32(), lambda i: i / 8),
    (pa.float64(), lambda i: i / 3),
    (pa.string(), lambda i: "ä" * i),
    (pa.large_string(), lambda i: "ö" * i),
    (pa.binary(), lambda i: bytes([i]) * i),
    (pa.large_binary(), lambda i: bytes([i]) * i),
    (pa.binary(4), lambda i: bytes([i]) * 4),
    (pa.date32(), lambda i: DAY.date() + dt.timedelta(days=i)),
    (pa.date64(), lambda i: DAY.date() + dt.timedelta(days=i)),
    (pa.time32("s"), lambda i: dt.time(i, 2, 3)),
    (pa.time64("us"), lambda i: dt.time(i, 2, 3, 4)),
    (pa.timestamp("s"), lambda i: DAY.replace(microsecond=0, second=i)),
    (pa.timestamp("us"), lambda i: DAY.replace(second=i)),
    (pa.timestamp("us", tz="UTC"), lambda i: DAY.replace(second=i, tzinfo=UTC)),
    (pa.timestamp("ms", tz="Europe/Berlin"), lambda i: dt.datetime(2024, 10, 27, i, tzinfo=UTC)),
    (pa.duration("ms"), lambda i: dt.timedelta(milliseconds=i)),
    (pa.decimal128(20, 3), lambda i: Decimal(i) / 8),
    (pa.decimal256(50, 2), lambda i: Decimal(10) ** 40 * i),
    (pa.list_(pa.int64()), lambda i: [j if j != 1 else None for j in range(i % 4)]),
    (pa.list_(pa.string()), lambda i: [str(i)] * (i % 3)),
    (pa.large_list(pa.float32()), lambda i: [i / 2] * (i % 3)),
    (pa.list_(pa.list_(pa.int32())), lambda i: [[i], [], [i, i]][: i % 4]),
    (pa.list_(pa.float16(), 3), lambda i: [i / 4, 0.0, 1.0]),
    (pa.list_(pa.float32(), 3), lambda i: [i / 4, 0.0, 1.0]),
    (pa.list_(pa.float64(), 3), lambda i: [i / 3, 0.0, 1.0]),
    (pa.list_(pa.uint8(), 2), lambda i: [i, 255]),
    (
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        lambda i: {"a": i if i % 3 else None, "b": str(i)},
    ),
    (
        pa.struct([("v", pa.list_(pa.float32(), 2)), ("in", pa.struct([("n", pa.int8())]))]),
        lambda i: {"v": [i, 1.0], "in": {"n": i} if i % 3 else None},
    ),
    (
        pa.list_(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])),
        lambda i: [{"a": j, "b": [str(i)] * j} for j in range(i % 3)],
    ),
    (pa.map_(pa.string(), pa.int64()), lambda i: [(f"k{j}", j) for j in range(i % 3)]),
    (pa.dictionary(pa.int32(), pa.string()), lambda i: "abc"[i % 3]),
    (pa.dictionary(pa.int8(), pa.string()), lambda i: "abc"[i % 3]),
]


def value(make: Callable[[int], Any], i: int) -> Any:
    return None if i % 5 == 4 else make(i)


def numbers(path: Path, **extra: Any) -> geneva.Table:
    """Return a table as a user makes it: 24 rows with key x in three fragments."""
    data = pa.table({"x": pa.array(range(24), pa.int64()), **extra})
    # pylance panics on slices of nested structs, so each part is a copy
    parts = [data.take(pa.array(range(k, k + 8))) for k in (0, 8, 16)]
    table = geneva.connect(database(path)).create_table("t", parts[0])
    table.add(parts[1])
    table.add(parts[2])
    return table


def stored(table: geneva.Table, name: str) -> pa.Array:
    return lance.dataset(table.storage.uri).to_table(columns=[name])[name].combine_chunks()


@pytest.mark.parametrize(("data_type", "make"), TYPES, ids=[str(t)[:40] for t, _ in TYPES])
def test_type_changes_values_on_its_way(
    tmp_path: Path, data_type: pa.DataType, make: Callable[[int], Any]
) -> None:
    table = numbers(tmp_path)
    values = [value(make, i) for i in range(24)]

    @geneva.udf(data_type=data_type)
    def y(x: int) -> Any:
        return values[x]

    def check(filled: Callable[[int], bool]) -> None:
        left = [i for i in range(24) if i not in (2, 17)]
        expected = pa.array([values[i] if filled(i) else None for i in left], data_type)
        if pa.types.is_dictionary(data_type):
            assert stored(table, "y").to_pylist() == expected.to_pylist()
        else:
            assert stored(table, "y").equals(expected)
        assert_table_invariants(table)

    table.add_columns({"y": y})
    table.delete("x in (2, 17)")
    assert run(table, "y", "local", where="x < 12").rows_computed == 11
    check(lambda i: i < 12)
    assert run(table, "y", "local").rows_computed == 11  # carries rows 8 to 11
    check(lambda _: True)
    assert run(table, "y", "local", where="x in (0, 9, 23)").rows_computed == 3
    check(lambda _: True)
    table.optimize()
    assert run(table, "y", "local").rows_computed == 0
    assert run(table, "y", "local", where="x = 20").rows_computed == 1
    check(lambda _: True)


def test_group_of_all_types_changes_values_on_its_way(tmp_path: Path, executor: str) -> None:
    table = numbers(tmp_path)
    names = tuple(f"c{k}" for k in range(len(TYPES)))
    struct = pa.struct([pa.field(n, t) for n, (t, _) in zip(names, TYPES, strict=True)])
    rows = [
        {n: value(make, i) for n, (_, make) in zip(names, TYPES, strict=True)} for i in range(24)
    ]

    @geneva.udf(data_type=struct, num_cpus=CPUS)
    def everything(x: pa.Array) -> pa.Array:
        return pa.array([rows[i] for i in x.to_pylist()], struct)

    table.add_columns({names: everything})
    table.delete("x in (2, 17)")
    left = [i for i in range(24) if i not in (2, 17)]
    run(table, "c0", executor, where="x < 12")
    run(table, "c0", executor)
    for name, (data_type, make) in zip(names, TYPES, strict=True):
        expected = pa.array([value(make, i) for i in left], data_type)
        assert stored(table, name).to_pylist() == expected.to_pylist(), data_type
    assert_table_invariants(table)


def test_group_that_lance_cannot_read_back_is_bound(tmp_path: Path) -> None:
    table = numbers(tmp_path)

    @geneva.udf(data_type=pa.struct([("a", pa.int64()), ("b", TUPLE)]))
    def both(x: int) -> Any:
        return {"a": x, "b": [{"a": x}, {"a": x}]}

    with pytest.raises(UdfError, match="cannot keep a fixed-size list of structs"):
        table.add_columns({("a", "b"): both})
    with pytest.raises(UdfError, match="cannot keep a fixed-size list of structs"):
        table.add_columns({"whole": both})
    assert table.schema.names == ["x"]


@pytest.mark.parametrize(
    "data_type",
    [
        pa.struct([("a", pa.dictionary(pa.int8(), pa.string()))]),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
        pa.json_(),
    ],
    ids=["struct", "list", "json"],
)
def test_type_whose_checkpoints_cannot_be_read_is_bound(
    tmp_path: Path, data_type: pa.DataType
) -> None:
    @geneva.udf(data_type=data_type)
    def y(x: int) -> Any:
        return None

    with pytest.raises(UdfError, match="cannot be checkpointed"):
        numbers(tmp_path).add_columns({"y": y})


@pytest.mark.parametrize(
    "data_type",
    [pa.list_(pa.string(), 2), pa.list_(pa.list_(pa.large_binary(), 2))],
    ids=["vectors", "lists_of_vectors"],
)
def test_type_that_lance_cannot_write_is_bound(tmp_path: Path, data_type: pa.DataType) -> None:
    @geneva.udf(data_type=data_type)
    def y(x: int) -> Any:
        return None

    with pytest.raises(UdfError, match="use a list"):
        numbers(tmp_path).add_columns({"y": y})


@pytest.mark.parametrize("data_type", [pa.string_view(), pa.list_(pa.string_view())], ids=str)
def test_views_of_text_do_not_join_with_what_was_computed_before(
    tmp_path: Path, data_type: pa.DataType
) -> None:
    table = make_table(tmp_path, rows=24, fragments=1)
    lets_pass = str(tmp_path / "lets_pass")
    listed = pa.types.is_list(data_type)

    @geneva.udf(data_type=data_type)
    def y(x: int) -> Any:
        if x == 12 and not os.path.exists(lets_pass):
            raise ValueError("stop")
        return [f"{x}"] if listed else f"{x}"

    table.add_columns({"y": y})
    with pytest.raises(UdfFailedError):
        run(table, "y", "local", batch_size=4)
    Path(lets_pass).touch()
    run(table, "y", "local", where="x % 7 = 1 or x > 12")
    run(table, "y", "local", batch_size=4)
    run(table, "y", "local", where="x % 5 = 1")
    assert pairs(table, "x", "y") == {i: [f"{i}"] if listed else f"{i}" for i in range(24)}


def test_sliced_results_of_nested_structs_break_the_writer(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=3000, fragments=1)
    struct = pa.struct([("in", pa.struct([("n", pa.int64())])), ("text", pa.string())])

    @geneva.udf(data_type=struct, batch_size=100)
    def y(x: pa.Array) -> pa.Array:
        # wide enough that the file is written in several pieces, and itself a slice
        values = [
            None if i % 5 == 4 else {"in": {"n": i}, "text": "t" * 4000} for i in x.to_pylist()
        ]
        return pa.array([None, *values], struct).slice(1)

    table.add_columns({"y": y})
    table.backfill("y", executor="local", where="x % 3 = 0")
    table.backfill("y", executor="local", batch_size=2500)
    found = lance.dataset(table.storage.uri).to_table(columns={"n": "y.in.n"})["n"].to_pylist()
    assert found == [None if i % 5 == 4 else i for i in range(3000)]
    assert_table_invariants(table)


# --- kinds ----------------------------------------------------------------------------------


def kinds() -> dict[str, Any]:  # noqa: C901 - a list, not a decision
    """Return one UDF of each kind that computes 2 * x, null where x is null."""

    @geneva.udf(num_cpus=CPUS)
    def scalar(x: int) -> int | None:
        return None if x is None else 2 * x

    @geneva.udf(num_cpus=CPUS)
    async def awaited(x: int) -> int | None:
        import asyncio

        await asyncio.sleep(0)
        return None if x is None else 2 * x

    @geneva.udf(num_cpus=CPUS, data_type=pa.int64())
    def arrow(x: pa.Array) -> pa.Array:
        import pyarrow.compute as pc

        assert isinstance(x, pa.Array)
        return pc.multiply(x, 2)

    @geneva.udf(num_cpus=CPUS, data_type=pa.int64())
    def numpy_(x: np.ndarray) -> np.ndarray:
        assert isinstance(x, np.ndarray)
        return np.array([None if np.isnan(v) else int(2 * v) for v in x], object)

    @geneva.udf(num_cpus=CPUS)
    def typed_numpy(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.ma.masked_array(np.nan_to_num(2 * x).astype(np.int64), np.isnan(x))

    @geneva.udf(num_cpus=CPUS, data_type=pa.int64())
    def pandas_(x: pd.Series) -> pd.Series:
        assert isinstance(x, pd.Series)
        return (2 * x).astype("Int64")

    @geneva.udf(num_cpus=CPUS, data_type=pa.int64(), input_columns=["x"])
    def record_batch(batch: pa.RecordBatch) -> pa.Array:
        assert batch.schema.names == ["x"]
        return pa.array([None if v is None else 2 * v for v in batch["x"].to_pylist()])

    @geneva.udf(num_cpus=CPUS)
    class Stateful:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def __call__(self, x: int) -> int | None:
            return None if x is None else self.factor * x

    @geneva.udf(num_cpus=CPUS, data_type=pa.int64())
    class StatefulBatch:
        def __init__(self, factor: int = 2) -> None:
            self.factor = factor

        def __call__(self, x: pa.Array) -> list[int | None]:
            return [None if v is None else self.factor * v for v in x.to_pylist()]

    def plain(x: int) -> int | None:
        return None if x is None else 2 * x

    @geneva.udf(num_cpus=CPUS, params={"factor": 2})
    def with_param(x: int, factor: int) -> int | None:
        return None if x is None else factor * x

    def multiply(factor: int, x: int) -> int | None:
        return None if x is None else factor * x

    return {
        "scalar": scalar,
        "async": awaited,
        "arrow": arrow,
        "numpy": numpy_,
        "typed_numpy": typed_numpy,
        "pandas": pandas_,
        "record_batch": record_batch,
        "stateful": Stateful(2),
        "stateful_batch": StatefulBatch(),
        "factory": StatefulBatch,
        "plain": plain,
        "with_param": with_param,
        "partial": geneva.udf(
            functools.partial(multiply, 2), input_columns=["x"], num_cpus=CPUS, name="partial"
        ),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_kind_computes_other_values(tmp_path: Path, kind: str, executor: str) -> None:
    inputs = [None if i % 7 == 3 else i for i in range(24)]
    data = pa.table({"id": pa.array(range(24)), "x": pa.array(inputs, pa.int64())})
    table = make_table(tmp_path, data=data, fragments=3)
    table.delete("id in (0, 9)")
    table.add_columns({"y": kinds()[kind]})
    run(table, "y", executor, where="id < 12")
    run(table, "y", executor)
    left = [i for i in range(24) if i not in (0, 9)]
    assert pairs(table, "id", "y") == {
        i: None if inputs[i] is None else 2 * inputs[i] for i in left
    }
    assert_table_invariants(table)


@pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow"])
def test_large_integer_beside_a_null_arrives_as_another_number(tmp_path: Path, kind: str) -> None:
    inputs = [2**53 + 1, None, 2**53, 5, -(2**53) - 1, 2**62]
    table = make_table(tmp_path, data=pa.table({"x": pa.array(inputs, pa.int64())}), fragments=1)

    @geneva.udf(data_type=pa.int64())
    def numpy_(x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), -1, x)

    @geneva.udf(data_type=pa.int64())
    def pandas_(x: pd.Series) -> pd.Series:
        return x.fillna(-1)

    @geneva.udf(data_type=pa.int64())
    def arrow(x: pa.Array) -> pa.Array:
        return x.fill_null(-1)

    table.add_columns({"y": {"numpy": numpy_, "pandas": pandas_, "arrow": arrow}[kind]})
    if kind != "arrow":
        with pytest.raises(UdfFailedError, match=r"'x' holds nulls.*pyarrow"):
            run(table, "y", "local", batch_size=6)
    run(table, "y", "local", batch_size=6, on_error="null")
    assert column(table, "y") == [-1 if v is None else v for v in inputs]


@pytest.mark.parametrize(
    ("data_type", "inputs"),
    [
        (pa.list_(pa.int64()), [[2**53 + 1, None], [1]]),
        (pa.list_(pa.int64(), 2), [[2**53 + 1, 1], None]),
        (pa.struct([("a", pa.int64())]), [{"a": 2**53 + 1}, {"a": None}]),
        (pa.dictionary(pa.int8(), pa.int64()), [2**53 + 1, None]),
    ],
    ids=["list", "vector", "struct", "dictionary"],
)
def test_large_integer_within_a_value_arrives_as_another_number(
    tmp_path: Path, data_type: pa.DataType, inputs: list[Any]
) -> None:
    data = pa.table({"x": pa.array(inputs, data_type)})
    table = make_table(tmp_path, data=data, fragments=1)

    @geneva.udf(data_type=pa.string())
    def shown(x: np.ndarray) -> list[str]:
        return [str(v) for v in x]

    table.add_columns({"y": shown})
    with pytest.raises(UdfFailedError, match=r"'x' holds nulls"):
        run(table, "y", "local", batch_size=2)


@pytest.mark.parametrize("form", ["numpy", "arrow", "read_only"])
def test_results_in_the_same_memory_overwrite_those_of_earlier_calls(
    tmp_path: Path, form: str
) -> None:
    table = numbers(tmp_path)

    @geneva.udf(data_type=pa.int64())
    class Doubled:
        def __init__(self) -> None:
            self.memory = np.zeros(1000, np.int64)

        def __call__(self, x: pa.Array) -> Any:
            out = np.multiply(x, 2, out=self.memory[: len(x)])
            if form == "read_only":
                out = out.view()
                out.flags.writeable = False
            return pa.array(out) if form == "arrow" else out

    table.add_columns({"y": Doubled})
    table.backfill("y", executor="local", concurrency=1, batch_size=2)
    assert pairs(table, "x", "y") == {i: 2 * i for i in range(24)}


def test_stateful_udf_is_built_more_than_once_per_applier(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=8)

    @geneva.udf(num_cpus=CPUS)
    class Model:
        def __init__(self) -> None:
            calls(f"built:{os.getpid()}:{threading.get_ident()}")

        def __call__(self, x: int) -> int:
            return x

    table.add_columns({"y": Model})
    table.backfill("y", executor=executor, concurrency=2, intra_applier_concurrency=3)

    def places() -> list[str]:
        return [k.split(":")[1] for k in calls.keys]

    assert 1 <= len(places()) <= 2
    if executor == "ray":
        assert len(set(places())) == len(places())
        table.backfill("y", executor=executor, concurrency=2, where="x < 20")
        # Warm appliers keep their instance; one that was not up before the first job ended is new.
        assert len(set(places())) == len(places())


@pytest.mark.ray
def test_column_that_is_bound_anew_finds_its_applier_cold(
    tmp_path: Path, calls: CallLog, ray_cluster: None
) -> None:
    table = make_table(tmp_path, rows=8, fragments=1)

    @geneva.udf(num_cpus=CPUS)
    class Model:
        def __init__(self) -> None:
            calls("built")

        def __call__(self, x: int) -> int:
            return x

    for _ in range(2):
        table.add_columns({"y": Model})
        table.backfill("y", executor="ray", concurrency=1)
        table.drop_columns(["y"])
    assert len(calls) == 1


def test_instance_per_thread_is_shared(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=60, fragments=1)

    @geneva.udf(num_cpus=CPUS, instances="thread")
    class Model:
        def __init__(self) -> None:
            calls("built")
            self.thread: int | None = None

        def __call__(self, x: int) -> int:
            import time

            here = threading.get_ident()
            assert self.thread in (None, here)
            self.thread = here
            calls(here)
            time.sleep(0.01)
            return x

    table.add_columns({"y": Model})
    table.backfill("y", executor=executor, concurrency=1, intra_applier_concurrency=3, batch_size=2)
    built = calls.counts["built"]
    assert 2 <= built <= 3
    assert len({k for k in calls.keys if k != "built"}) == built
    assert column(table, "y") == list(range(60))


# --- groups ---------------------------------------------------------------------------------


def sizes(calls: CallLog) -> geneva.UDF:
    @geneva.udf(num_cpus=CPUS, data_type=pa.struct([("w", pa.int64()), ("h", pa.string())]))
    def size(x: int) -> dict[str, Any] | None:
        calls(x)
        return None if x % 5 == 4 else {"w": 10 * x, "h": str(x)}

    return size


def test_group_is_computed_once_per_column(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = numbers(tmp_path)
    table.add_columns({("width", "height"): sizes(calls)})
    result = run(table, "height", executor)
    assert set(result.columns) == {"width", "height"}
    for name in ("width", "height"):
        assert run(table, name, executor).rows_computed == 0
    assert table.backfill(["height", "width"], executor=executor).rows_computed == 0
    assert set(calls.counts.values()) == {1}
    assert column(table, "width") == [None if i % 5 == 4 else 10 * i for i in range(24)]
    assert column(table, "height") == [None if i % 5 == 4 else str(i) for i in range(24)]


@pytest.mark.parametrize(("dropped", "left"), [("width", "height"), ("height", "width")])
def test_dropping_one_of_a_group_spoils_the_other(
    tmp_path: Path, calls: CallLog, executor: str, dropped: str, left: str
) -> None:
    table = numbers(tmp_path)
    table.add_columns({("width", "height"): sizes(calls)})
    run(table, "width", executor, where="x < 12")
    table.drop_columns([dropped])
    calls.clear()
    assert run(table, left, executor, where="x < 12").rows_computed == 0
    result = run(table, left, executor)
    assert result.columns == (left,)
    assert result.rows_computed == 12
    make = str if left == "height" else (10).__mul__
    assert column(table, left) == [None if i % 5 == 4 else make(i) for i in range(24)]
    assert run(table, left, executor, where="x < 3", force=True).rows_computed == 3
    assert_table_invariants(table)


@pytest.mark.parametrize(("dropped", "left", "factor"), [("w", "h", -1), ("h", "w", 1)])
def test_checkpoints_of_a_group_are_taken_for_those_of_the_column_that_is_left(
    tmp_path: Path, executor: str, dropped: str, left: str, factor: int
) -> None:
    table = numbers(tmp_path)
    mended = tmp_path / "mended"

    @geneva.udf(num_cpus=CPUS, data_type=pa.struct([("w", pa.int64()), ("h", pa.int64())]))
    def size(x: int) -> dict[str, Any]:
        if x == 20 and not mended.exists():
            raise KeyError(x)
        return {"w": x, "h": -x}

    table.add_columns({("w", "h"): size})
    with pytest.raises(UdfFailedError):
        table.backfill(["w", "h"], executor=executor, concurrency=1, batch_size=2)
    table.drop_columns([dropped])
    mended.touch()
    table.backfill(left, executor=executor, concurrency=1, batch_size=2)
    assert column(table, left) == [factor * i for i in range(24)]
    assert_table_invariants(table)


def test_group_cannot_be_bound_to_another_udf(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = numbers(tmp_path)
    table.add_columns({("width", "height"): sizes(calls)})
    run(table, "width", executor)

    @geneva.udf(num_cpus=CPUS, data_type=pa.struct([("w", pa.int64()), ("h", pa.string())]))
    def other(x: int) -> dict[str, Any]:
        return {"w": -x, "h": "-"}

    table.alter_columns({"path": "height", "udf": other})
    assert run(table, "width", executor).rows_computed == 24
    assert column(table, "width") == [-i for i in range(24)]
    assert column(table, "height") == ["-"] * 24


# --- inputs ---------------------------------------------------------------------------------


def test_nested_input_is_not_found(tmp_path: Path, executor: str) -> None:
    meta = [
        None if i % 6 == 5 else {"lang": "de" if i % 2 else None, "deep": {"n": i}}
        for i in range(24)
    ]
    table = numbers(
        tmp_path,
        meta=pa.array(
            meta, pa.struct([("lang", pa.string()), ("deep", pa.struct([("n", pa.int32())]))])
        ),
    )

    @geneva.udf(input_columns=["meta.lang", "meta.deep.n", "x"], num_cpus=CPUS)
    def y(lang: str, n: int, x: int) -> str:
        return f"{lang} {n} {x}"

    table.add_columns({"y": y})
    table.delete("x = 3")
    run(table, "y", executor)
    expected = {}
    for i, m in enumerate(meta):
        lang, n = (m["lang"], m["deep"]["n"]) if m else (None, None)
        expected[i] = f"{lang} {n} {i}"
    del expected[3]
    assert pairs(table, "x", "y") == expected


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.struct([("a", pa.int64())])),
        pa.struct([("a", pa.list_(pa.string()))]),
        pa.list_(pa.float32(), 4),
        pa.dictionary(pa.int32(), pa.string()),
        pa.timestamp("us", tz="UTC"),
        pa.decimal128(10, 2),
        pa.large_binary(),
    ],
    ids=str,
)
def test_input_arrives_otherwise_than_it_was_stored(tmp_path: Path, data_type: pa.DataType) -> None:
    make = {
        0: lambda i: [{"a": i}] * (i % 3),
        1: lambda i: {"a": [str(i)]},
        2: lambda i: [float(i)] * 4,
        3: lambda i: "abc"[i % 3],
        4: lambda i: DAY.replace(second=i, tzinfo=UTC),
        5: lambda i: Decimal(i),
        6: lambda i: bytes([i]),
    }
    kind = next(
        k
        for k, t in enumerate(
            [
                pa.types.is_list,
                pa.types.is_struct,
                pa.types.is_fixed_size_list,
                pa.types.is_dictionary,
                pa.types.is_timestamp,
                pa.types.is_decimal,
                pa.types.is_large_binary,
            ]
        )
        if t(data_type)
    )
    values = [None if i % 5 == 4 else make[kind](i) for i in range(24)]
    plain = data_type.value_type if pa.types.is_dictionary(data_type) else data_type
    array = pa.array(values, plain)
    array = array.dictionary_encode() if plain != data_type else array
    table = numbers(tmp_path, v=array)

    @geneva.udf
    def y(v: Any, x: int) -> bool:
        return v == values[x]

    table.add_columns({"y": y})
    table.delete("x in (1, 8)")
    run(table, "y", "local", where="x > 2")
    run(table, "y", "local")
    assert all(column(table, "y"))
    assert len(column(table, "y")) == 22


def test_computed_input_is_read_as_it_was_before(tmp_path: Path, executor: str) -> None:
    table = numbers(tmp_path)

    @geneva.udf(num_cpus=CPUS, data_type=pa.list_(pa.float32(), 2))
    def vector(x: int) -> list[float] | None:
        return None if x % 5 == 4 else [float(x), 1.0]

    @geneva.udf(num_cpus=CPUS, data_type=pa.float32())
    def norm(vector: pa.Array) -> pa.Array:
        return pa.array([None if v is None else sum(v) for v in vector.to_pylist()])

    table.add_columns({"vector": vector, "norm": norm})
    run(table, ["norm", "vector"], executor)
    assert column(table, "norm") == [None if i % 5 == 4 else i + 1.0 for i in range(24)]


def test_column_names_are_read_as_sql(tmp_path: Path) -> None:
    names = ["Title", "a b", "select", "größe", "o'clock"]
    data = pa.table({n: pa.array(range(20), pa.int64()) for n in names})
    table = make_table(tmp_path, data=data, fragments=2)

    @geneva.udf(input_columns=names)
    def total(*values: int) -> int:
        return sum(values)

    table.add_columns({"The Total": total})
    table.backfill("The Total", executor="local", where="Title < 15")
    table.backfill("The Total", executor="local")
    assert column(table, "The Total") == [5 * i for i in range(20)]


# --- types from hints -----------------------------------------------------------------------


@dataclass
class Box:
    left: int
    label: str | None


class Tags(TypedDict):
    names: list[str]
    when: dt.datetime


@pytest.mark.parametrize(
    ("hint", "made", "expected"),
    [
        (int | None, 5, pa.int64()),
        (list[float], [1.5], pa.list_(pa.float64())),
        (np.float32, np.float32(0.5), pa.float32()),
        (np.int16, np.int16(7), pa.int16()),
        (dt.datetime, DAY, pa.timestamp("us")),
        (dt.date, DAY.date(), pa.date32()),
        (bytes, b"\x00\xff", pa.binary()),
        (dict[str, int], {"a": 1}, pa.map_(pa.string(), pa.int64())),
        (Box, Box(3, None), pa.struct([("left", pa.int64()), ("label", pa.string())])),
        (
            Tags,
            {"names": ["a"], "when": DAY},
            pa.struct([("names", pa.list_(pa.string())), ("when", pa.timestamp("us"))]),
        ),
        (
            list[Box],
            [Box(1, "a")],
            pa.list_(pa.struct([("left", pa.int64()), ("label", pa.string())])),
        ),
    ],
    ids=lambda v: str(v)[:30],
)
def test_hint_gives_a_column_that_its_values_do_not_fit(
    tmp_path: Path, hint: Any, made: Any, expected: pa.DataType
) -> None:
    table = numbers(tmp_path)

    def y(x):
        return made

    y.__annotations__ = {"x": int, "return": hint}
    table.add_columns({"y": geneva.udf(y)})
    assert table.schema.field("y").type == expected
    table.backfill("y", executor="local")
    plain = made.__dict__ if isinstance(made, Box) else made
    plain = (
        [b.__dict__ for b in made] if isinstance(made, list) and isinstance(made[0], Box) else plain
    )
    plain = list(made.items()) if hint == dict[str, int] else plain
    plain = made.item() if isinstance(made, np.generic) else plain
    assert column(table, "y") == [plain] * 24


LISTS = {"list": pa.list_(pa.float64()), "vector": pa.list_(pa.float64(), 2)}


@pytest.mark.parametrize("kind", LISTS)
def test_array_of_a_list_column_is_one_rows_list_where_the_result_is_one_value(
    tmp_path: Path, executor: str, kind: str
) -> None:
    values = [None if k % 5 == 4 else [k / 2, 1.0] for k in range(24)]
    table = numbers(tmp_path, v=pa.array(values, LISTS[kind]))

    @geneva.udf(num_cpus=CPUS, version="1")
    def total(v: np.ndarray, x: int) -> float | None:
        assert v is None or (type(v) is np.ndarray and v.shape == (2,))
        return None if v is None else float(v.sum()) + x

    @geneva.udf(num_cpus=CPUS, version="1", data_type=LISTS["vector"])
    def twice(v: np.ndarray):  # type: ignore[no-untyped-def]
        if v is None:
            return None
        v *= 2  # its own: nobody else sees this
        return v

    table.add_columns({"total": total, "twice": twice})
    run(table, ["total", "twice"], executor)
    assert column(table, "total") == [
        None if v is None else sum(v) + k for k, v in enumerate(values)
    ]
    assert column(table, "twice") == [None if v is None else [k, 2.0] for k, v in enumerate(values)]
    assert column(table, "v") == values


def test_array_of_a_plain_column_is_a_batch(tmp_path: Path) -> None:
    table = numbers(tmp_path)

    @geneva.udf(data_type=pa.int64())
    def twice(x: np.ndarray):  # type: ignore[no-untyped-def]
        return 2 * x

    @geneva.udf
    def most(x: np.ndarray) -> int:
        return int(x.max())

    table.add_columns({"twice": twice})
    run(table, "twice", "local")
    assert column(table, "twice") == [2 * k for k in range(24)]
    with pytest.raises(UdfError, match="must return one value per row"):
        table.add_columns({"most": most})


def test_array_udf_that_was_bound_as_a_batch_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [[float(k), 1.0] for k in range(24)]
    table = numbers(tmp_path, v=pa.array(values, LISTS["vector"]))

    @geneva.udf(data_type=pa.float64())
    def total(v: np.ndarray):  # type: ignore[no-untyped-def]
        return v.sum(axis=1)

    with monkeypatch.context() as patch:  # as it was bound before rows were told apart
        patch.setattr("geneva.engine.bind.for_rows", lambda udf, lists: udf)
        table.add_columns({"total": total})
    run(table, "total", "local")
    table.add_columns({"total": total})
    assert not run(table, "total", "local").rows_computed
    table.alter_columns({"path": "total", "udf": total})
    assert not run(table, "total", "local").rows_computed
    table.add([{"x": 100, "v": [5.0, 6.0]}])
    run(table, "total", "local")
    assert column(table, "total") == [k + 1.0 for k in range(24)] + [11.0]


def test_null_within_a_row_does_not_change_other_rows_arrays(tmp_path: Path) -> None:
    rows = [[1, 2], [3, None], [2**53 + 1], []] * 6
    table = numbers(tmp_path, v=pa.array(rows, pa.list_(pa.int64())))

    @geneva.udf
    def kind(v: np.ndarray) -> str:
        return f"{v.dtype} {len(v)}"

    table.add_columns({"kind": kind})
    run(table, "kind", "local")
    assert column(table, "kind") == ["int64 2", "float64 2", "int64 1", "int64 0"] * 6
