"""Results become Arrow arrays exactly or not at all."""

from __future__ import annotations

import datetime as dt
import math
import pickle
from collections import namedtuple
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geneva.udf import BadResult, to_arrow

DAY = dt.datetime(2024, 5, 6)
NOON = dt.datetime(2024, 5, 6, 12, 0, 0, 5)
UTC = NOON.replace(tzinfo=dt.UTC)
POINT = pa.struct([("x", pa.int64()), ("y", pa.string())])
VECTOR = pa.list_(pa.float32(), 2)

LOSSY = [
    ([1.5], pa.int64()),
    (np.array([1.5]), pa.int64()),
    (pa.array([1.5]), pa.int64()),
    ([float("nan")], pa.int64()),
    ([Decimal("1.5")], pa.int64()),
    ([2**40], pa.int32()),
    (np.array([2**40]), pa.int32()),
    (pa.array([2**40]), pa.int32()),
    ([-1], pa.uint8()),
    ([2**53 + 1], pa.float64()),
    (pa.array([2**53 + 1]), pa.float64()),
    ([2049], pa.float16()),
    (pa.array([2049]), pa.float16()),
    ([1e300], pa.float32()),
    (np.array([1e300]), pa.float32()),
    ([1e6], pa.float16()),
    ([True], pa.float64()),
    ([np.bool_(True)], pa.decimal128(5, 2)),
    ([1], pa.bool_()),
    (["1"], pa.int64()),
    (pa.array(["1"]), pa.int64()),
    ([1], pa.string()),
    (pa.array([1]), pa.string()),
    (["a"], pa.binary()),
    ([b"a"], pa.string()),
    ([float("nan")], pa.string()),
    (["\ud800"], pa.string()),
    ([b"ab"], pa.binary(3)),
    ([Decimal("1.234")], pa.decimal128(5, 2)),
    ([1.5], pa.decimal128(5, 2)),
    ([NOON], pa.date32()),
    (pa.array([NOON]), pa.date32()),
    ([NOON], pa.timestamp("s")),
    (pa.array([NOON]), pa.timestamp("ms")),
    ([UTC], pa.timestamp("us")),
    (pa.array([UTC]), pa.timestamp("us")),
    ([NOON], pa.timestamp("us", "UTC")),
    (pa.array([NOON]), pa.timestamp("us", "UTC")),
    ([5], pa.timestamp("us")),
    (pa.array([5]), pa.timestamp("us")),
    ([5], pa.date32()),
    ([dt.time(1, 2, 3, 4)], pa.time32("s")),
    ([dt.timedelta(microseconds=5)], pa.duration("ms")),
    ([np.datetime64("2024-01-01T00:00:00.000000005")], pa.timestamp("us")),
    ([np.datetime64("3000-01-01")], pa.timestamp("ns")),
    ([np.timedelta64(10**6, "D")], pa.duration("ns")),
    (pa.array([2**40], pa.timestamp("s")), pa.timestamp("ns")),
    ([[1.0, 2.0, 3.0]], VECTOR),
    (np.ones((1, 3)), VECTOR),
    (pa.array([[1.0, 2.0, 3.0]]), VECTOR),
    (np.ones((1, 3)), pa.float32()),
    ([[1.0, 1e300]], VECTOR),
    ([[1.5]], pa.list_(pa.int64())),
    ([np.array([1.5])], pa.list_(pa.int32())),
    (["ab"], pa.list_(pa.string())),
    ([b"ab"], pa.list_(pa.uint8())),
    ([{"x": 1, "z": 2}], POINT),
    (pa.array([{"x": 1, "z": 2}]), POINT),
    ([{"x": 1.5}], POINT),
    ([(1,)], POINT),
    ([{"a": 1.5}], pa.map_(pa.string(), pa.int64())),
    ([5], pa.map_(pa.string(), pa.int64())),
    ([np.array([1.0]), np.array(1.0)], pa.list_(pa.float32())),
    ([np.array([2**53 + 1]), np.array([0.5])], pa.list_(pa.float64())),
    ([np.ones((2, 2))], VECTOR),
    ([str(i) for i in range(200)], pa.dictionary(pa.int8(), pa.string())),
    (5, pa.int64()),
    ("abc", pa.string()),
    ({"a": 1}, pa.int64()),
    (None, pa.int64()),
]


@pytest.mark.parametrize(("values", "kind"), LOSSY, ids=str)
def test_lossy_result_is_refused(values: Any, kind: pa.DataType) -> None:
    rows = len(values) if hasattr(values, "__len__") else 1
    with pytest.raises(BadResult, match="expected"):
        to_arrow(values, kind, rows)


@dataclass
class Pt:
    x: int
    y: str


Named = namedtuple("Named", ["x", "y"])

EXACT = [
    ([1.0, None], pa.int64(), [1, None]),
    ([np.int8(3), 4], pa.int64(), [3, 4]),
    (np.array([1, 2], dtype=np.int32), pa.int64(), [1, 2]),
    (pa.array([1, None], pa.int32()), pa.int64(), [1, None]),
    ([True, np.bool_(False), None], pa.int8(), [1, 0, None]),
    (np.array([True]), pa.int32(), [1]),
    (pa.array([True, None]), pa.uint64(), [1, None]),
    ([3, None, 0.5], pa.float64(), [3.0, None, 0.5]),
    ([2**60], pa.float64(), [float(2**60)]),
    (pa.array([2**60]), pa.float64(), [float(2**60)]),
    ([7], pa.float16(), [7.0]),
    (pa.array([7]), pa.float16(), [7.0]),
    ([math.inf], pa.float32(), [math.inf]),
    (np.array([0.5, math.inf]), pa.float32(), [0.5, math.inf]),
    (["a", None], pa.large_string(), ["a", None]),
    (["a"], pa.string_view(), ["a"]),
    ([b"a", bytearray(b"b")], pa.large_binary(), [b"a", b"b"]),
    ([b"abc"], pa.binary(3), [b"abc"]),
    ([True, np.bool_(False), None], pa.bool_(), [True, False, None]),
    ([Decimal("1.20"), 3], pa.decimal128(5, 2), [Decimal("1.20"), Decimal("3.00")]),
    (pa.array([3]), pa.decimal128(5, 2), [Decimal("3.00")]),
    ([DAY, DAY.date()], pa.date32(), [DAY.date(), DAY.date()]),
    ([DAY.date()], pa.timestamp("us"), [DAY]),
    ([NOON], pa.timestamp("us"), [NOON]),
    ([UTC], pa.timestamp("us", "UTC"), [UTC]),
    ([np.datetime64("2024-05-06")], pa.timestamp("us"), [DAY]),
    ([dt.time(1, 2)], pa.time32("s"), [dt.time(1, 2)]),
    ([dt.timedelta(seconds=2)], pa.duration("s"), [dt.timedelta(seconds=2)]),
    ([[1, 2], None, (3.0, 4.0)], VECTOR, [[1, 2], None, [3, 4]]),
    ([np.array([1.0, 2.0]), None], VECTOR, [[1, 2], None]),
    ([np.array([1.0, 2.0]), [3.0, 4.0]], VECTOR, [[1, 2], [3, 4]]),
    ([np.array([1, 2]), np.array([0.5, 1.5])], VECTOR, [[1, 2], [0.5, 1.5]]),
    ([np.ones((1, 2))], pa.list_(VECTOR), [[[1, 1]]]),
    ([np.ones((1, 2)), None], pa.list_(VECTOR), [[[1, 1]], None]),
    (np.ones((1, 1, 2)), pa.list_(VECTOR), [[[1, 1]]]),
    (np.ones((2, 2)), VECTOR, [[1, 1], [1, 1]]),
    (np.ones((2, 3)), pa.list_(pa.float32()), [[1, 1, 1], [1, 1, 1]]),
    (pa.array([[1.0, 2.0], None]), VECTOR, [[1, 2], None]),
    (pa.array([[1.0], None, []]).slice(1), pa.large_list(pa.float64()), [None, []]),
    ([[[1], []], None], pa.list_(pa.list_(pa.int8())), [[[1], []], None]),
    ([{"x": 1}, None, Pt(2, "b")], POINT, [{"x": 1, "y": None}, None, {"x": 2, "y": "b"}]),
    ([Named(1, "a"), (2, "b")], POINT, [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]),
    (pa.array([{"y": "a"}, None]), POINT, [{"x": None, "y": "a"}, None]),
    ([[Pt(1, "a")], []], pa.list_(POINT), [[{"x": 1, "y": "a"}], []]),
    ([{"a": 1}, None, [("b", 2)]], pa.map_(pa.string(), pa.int8()), [[("a", 1)], None, [("b", 2)]]),
    (
        pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())).slice(1),
        pa.map_(pa.string(), pa.int32()),
        [[("b", 2)]],
    ),
    (["a", "b", "a", None], pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a", None]),
    (pa.array(["a", "a"]).dictionary_encode(), pa.string(), ["a", "a"]),
    (pa.chunked_array([[1], [2]]), pa.int64(), [1, 2]),
    ((1, 2), pa.int64(), [1, 2]),
    ([pa.scalar(1), pa.scalar(None, pa.int8())], pa.int64(), [1, None]),
    (np.ma.masked_array([1, 2], [False, True]), pa.int64(), [1, None]),
    (np.array(["a", None], dtype=object), pa.string(), ["a", None]),
    ([None, None], VECTOR, [None, None]),
    (pa.nulls(2), POINT, [None, None]),
]


@pytest.mark.parametrize(("values", "kind", "expected"), EXACT, ids=str)
def test_exact_result_is_not_refused_or_altered(
    values: Any, kind: pa.DataType, expected: list[Any]
) -> None:
    array = to_arrow(values, kind, len(expected))
    array.validate(full=True)
    assert array.type == kind
    assert array.to_pylist() == expected


@pytest.mark.parametrize("came", [0, 1, 3])
@pytest.mark.parametrize("make", [list, np.array, pa.array, tuple])
def test_result_of_wrong_length_never_shifts_rows(came: int, make: Any) -> None:
    with pytest.raises(BadResult, match=rf"expected 2 values, one per row, got {came}"):
        to_arrow(make([1] * came), pa.int64(), 2)


def test_array_without_dimensions_is_no_result() -> None:
    with pytest.raises(BadResult, match="one value per row"):
        to_arrow(np.array(5.0), pa.float64(), 1)


def test_lossy_value_deep_in_a_list_is_blamed_on_its_row() -> None:
    values = [[{"x": 1}], None, [], [{"x": 2}, {"x": 2.5}]]
    with pytest.raises(BadResult) as caught:
        to_arrow(values, pa.list_(POINT), 4)
    assert caught.value.failure.row == 3
    assert "2.5" in str(caught.value)
    assert "'x'" in str(caught.value)


@pytest.mark.parametrize("values", [[math.nan, None], np.array([math.nan, 1.0])])
def test_nan_does_not_become_null(values: Any) -> None:
    array = to_arrow(values, pa.float32(), 2)
    assert math.isnan(array[0].as_py())
    assert array.null_count == sum(value is None for value in values)


def test_bad_result_survives_its_way_between_processes() -> None:
    with pytest.raises(BadResult) as caught:
        to_arrow([1, 1.5], pa.int64(), 2)
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value)
    assert back.failure.row == 1
    assert back.of_row


def test_sorted_series_does_not_shift_rows() -> None:
    pd = pytest.importorskip("pandas")
    series = pd.Series([3, 1, 2])
    assert to_arrow(series, pa.int64(), 3).to_pylist() == [3, 1, 2]
    with pytest.raises(BadResult, match="reordered index"):
        to_arrow(series.sort_values(), pa.int64(), 3)


def test_memory_that_is_filled_again_changes_no_value() -> None:
    memory = np.arange(4.0)
    results: list[tuple[Any, pa.DataType, list[Any]]] = [
        (memory, pa.float64(), [0, 1, 2, 3]),
        (memory.reshape(2, 2), pa.list_(pa.float64(), 2), [[0, 1], [2, 3]]),
        (pa.array(memory), pa.float64(), [0, 1, 2, 3]),
        (
            pa.FixedSizeListArray.from_arrays(pa.array(memory), 2),
            pa.list_(pa.float64(), 2),
            [[0, 1], [2, 3]],
        ),
        (
            pa.RecordBatch.from_pydict({"a": pa.array(memory[:2])}),
            pa.struct([("a", pa.float64())]),
            [{"a": 0}, {"a": 1}],
        ),
    ]
    kept = [to_arrow(values, kind, len(expected)) for values, kind, expected in results]
    memory[:] = 7
    assert [array.to_pylist() for array in kept] == [expected for *_, expected in results]


def test_days_and_months_of_numpy_are_dates() -> None:
    values = [np.datetime64("2024-05-06"), np.datetime64("2024-05"), np.datetime64("NaT")]
    assert to_arrow(values, pa.date32(), 3).to_pylist() == [DAY.date(), dt.date(2024, 5, 1), None]


def test_missing_text_of_pandas_is_null_not_nan() -> None:
    pd = pytest.importorskip("pandas")
    for series in (
        pd.Series(["a", None]),
        pd.Series(["a", None], dtype=object),
        pd.Series(["a", math.nan], dtype=object),
        pd.Series(["a", pd.NA]),
    ):
        assert to_arrow(series, pa.string(), 2).to_pylist() == ["a", None]
    stamps = pd.Series([pd.Timestamp(NOON), pd.NaT])
    assert to_arrow(stamps, pa.timestamp("us"), 2).to_pylist() == [NOON, None]
    assert to_arrow([pd.Timestamp(NOON), pd.NaT], pa.timestamp("us"), 2).to_pylist() == [NOON, None]


def test_nanoseconds_are_not_cut_off() -> None:
    pd = pytest.importorskip("pandas")
    fine = pd.Timestamp("2024-01-01T00:00:00.000000005")
    with pytest.raises(BadResult):
        to_arrow([fine], pa.timestamp("us"), 1)
    assert to_arrow([fine], pa.timestamp("ns"), 1).cast(pa.int64())[0].as_py() % 10 == 5


_leaf = st.one_of(
    st.just((pa.int64(), st.integers(-(2**63), 2**63 - 1))),
    st.just((pa.uint8(), st.integers(0, 255))),
    st.just((pa.float64(), st.floats(allow_nan=False))),
    st.just((pa.float32(), st.floats(width=32, allow_nan=False))),
    st.just((pa.float16(), st.floats(width=16, allow_nan=False))),
    st.just((pa.bool_(), st.booleans())),
    st.just((pa.string(), st.text(st.characters(codec="utf-8"), max_size=5))),
    st.just((pa.large_binary(), st.binary(max_size=5))),
    st.just((pa.date32(), st.dates())),
    st.just((pa.timestamp("us"), st.datetimes())),
    st.just((pa.time64("us"), st.times())),
    # Python's timedelta reaches further than 64-bit microseconds do.
    st.just(
        (
            pa.duration("us"),
            st.timedeltas(dt.timedelta(days=-106_751_991), dt.timedelta(days=106_751_991)),
        )
    ),
    st.just((pa.decimal128(10, 2), st.decimals(-(10**7), 10**7, places=2))),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def lists(item: Any) -> Any:
        return pa.list_(item[0]), st.lists(st.none() | item[1], max_size=3)

    def vectors(item: Any) -> Any:
        return pa.list_(item[0], 2), st.lists(st.none() | item[1], min_size=2, max_size=2)

    def structs(item: Any) -> Any:
        kind = pa.struct([("a", item[0]), ("b", pa.int8())])
        return kind, st.fixed_dictionaries({"a": st.none() | item[1], "b": st.integers(0, 9)})

    return st.one_of(inner.map(lists), inner.map(vectors), inner.map(structs))


_typed = st.recursive(_leaf, _nested, max_leaves=3).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), st.lists(st.none() | pair[1], max_size=6))
)


@settings(max_examples=150, deadline=None)
@given(_typed)
def test_values_of_any_type_come_back_unchanged(case: tuple[pa.DataType, list[Any]]) -> None:
    kind, values = case
    array = to_arrow(values, kind, len(values))
    array.validate(full=True)
    assert array.type == kind
    assert array.to_pylist() == values
    # An Arrow array passes as it is, also when it is a slice of a larger one.
    padded = pa.concat_arrays([array, array]).slice(len(values))
    assert to_arrow(padded, kind, len(values)).to_pylist() == values


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.none() | st.integers() | st.floats(), max_size=5),
    st.sampled_from([pa.int8(), pa.int64(), pa.uint32(), pa.float64()]),
)
def test_number_is_either_stored_exactly_or_refused(values: list[Any], kind: pa.DataType) -> None:
    try:
        stored = to_arrow(values, kind, len(values)).to_pylist()
    except BadResult as bad:
        with pytest.raises(BadResult):
            to_arrow([values[bad.failure.row]], kind, 1)
        return
    for value, kept in zip(values, stored, strict=True):
        assert value == kept or (value != value and kept != kept)
