"""Two values are the same exactly when no UDF can tell them apart."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geneva.column.history.same import digests, same_rows

ZEROS = [0.0, -0.0]
FLOATS = [*ZEROS, 1.5, float("nan"), float("inf"), None]
X = pa.field("x", pa.float64())


def lists(values: Any, size: int | None = None) -> Any:
    least, most = (0, 3) if size is None else (size, size)
    return st.none() | st.lists(values, min_size=least, max_size=most)


floats = st.sampled_from(FLOATS)
structs = st.none() | st.fixed_dictionaries({"x": floats, "s": st.sampled_from(["", "a", None])})
STRUCT = pa.struct([X, pa.field("s", pa.string())])
VECTORS = pa.struct([pa.field("v", pa.list_(pa.float32()))])
CASES = [
    (pa.float32(), floats),
    (pa.float64(), floats),
    (pa.int64(), st.sampled_from([0, 1, None])),
    (pa.bool_(), st.sampled_from([True, False, None])),
    (pa.string(), st.sampled_from(["", "a", None])),
    (pa.null(), st.none()),
    (pa.list_(pa.float32(), 2), lists(floats, 2)),
    (pa.list_(pa.float64(), 0), lists(floats, 0)),
    (pa.list_(pa.float64()), lists(floats)),
    (pa.large_list(pa.string()), lists(st.sampled_from(["", "a", None]))),
    (pa.list_(pa.list_(pa.float32(), 2)), lists(lists(floats, 2))),
    (STRUCT, structs),
    (pa.list_(STRUCT), lists(structs)),
    (VECTORS, st.none() | st.fixed_dictionaries({"v": lists(floats)})),
    (pa.map_(pa.string(), pa.float64()), lists(st.tuples(st.sampled_from("ab"), floats))),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["", "a", None])),
    (pa.decimal128(5, 2), st.sampled_from([0, 1, None])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), CASES, ids=[str(k) for k, _ in CASES])
@settings(max_examples=40)
@given(data=st.data())
def test_rows_that_differ_are_taken_for_the_same_or_the_same_for_different(
    kind: pa.DataType, values: Any, data: Any
) -> None:
    pairs = data.draw(st.lists(st.tuples(values, values), max_size=6))
    start = data.draw(st.integers(0, len(pairs)))
    a, b = (pa.array([p[side] for p in pairs], kind).slice(start) for side in (0, 1))
    expected = [x == y for x, y in zip(digests(a), digests(b), strict=True)]
    assert same_rows(a, b).tolist() == expected


def test_what_lies_below_a_null_counts() -> None:
    def hidden(value: float) -> pa.Array:
        inner = pa.array([value, 1.0, 2.0, 3.0], pa.float32())
        return pa.FixedSizeListArray.from_arrays(inner, 2, mask=pa.array([True, False]))

    def hidden_struct(value: float) -> pa.Array:
        return pa.StructArray.from_arrays(
            [pa.array([value, 1.0])], names=["x"], mask=pa.array([True, False])
        )

    for make in (hidden, hidden_struct):
        assert same_rows(make(0.0), make(7.0)).tolist() == [True, True]


@pytest.mark.parametrize("nested", [False, True])
def test_nan_of_other_bits_is_taken_for_the_same(nested: bool) -> None:
    bits = [0x7FF8000000000000, 0x7FF8000000000001]
    nans = [struct.unpack("<d", struct.pack("<Q", b))[0] for b in bits]

    def array(*values: float) -> pa.Array:
        flat = pa.array(np.array(values))
        return pa.FixedSizeListArray.from_arrays(flat, 1) if nested else flat

    assert same_rows(array(nans[0], nans[0]), array(nans[0], nans[1])).tolist() == [True, False]
