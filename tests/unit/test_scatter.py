"""Laying out values among a fragment's rows: the quick way gives what Arrow's own take gives."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from geneva.column.file import _scatter

TYPES: dict[pa.DataType, st.SearchStrategy[object]] = {
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.date32(): st.dates(date(1, 1, 1)),
    pa.timestamp("us"): st.integers(0, 2**57),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=4),
    pa.list_(pa.int16()): st.lists(st.integers(0, 9), max_size=2),
    pa.decimal128(5, 1): st.integers(0, 999),
}


@st.composite
def layouts(
    draw: st.DrawFn,
) -> tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.int64]], int, pa.Array | None]:
    """Values, their rows, how many rows there are, and what these hold."""
    data_type = draw(st.sampled_from(list(TYPES)))
    values = st.none() | TYPES[data_type]
    count = draw(st.integers(1, 30))
    rows = sorted(draw(st.sets(st.integers(0, count - 1), min_size=1)))
    cut = draw(st.integers(0, 3))  # arrays arrive as slices
    new = draw(st.lists(values, min_size=len(rows) + cut, max_size=len(rows) + cut))
    old = draw(st.none() | st.lists(values, min_size=count + cut, max_size=count + cut))
    present = None if old is None else pa.array(old, data_type).slice(cut)
    return pa.array(new, data_type).slice(cut), np.array(rows, np.int64), count, present


@given(layouts())
def test_values_lie_in_their_rows_and_the_others_keep_what_they_hold(
    layout: tuple[pa.Array, np.ndarray[tuple[int], np.dtype[np.int64]], int, pa.Array | None],
) -> None:
    values, rows, count, present = layout
    held = [None] * count if present is None else present.to_pylist()
    for row, value in zip(rows.tolist(), values.to_pylist(), strict=True):
        held[row] = value
    (found,) = _scatter([values], rows, count, [] if present is None else [present])
    found.validate(full=True)
    assert found.to_pylist() == held
    assert found.type == values.type
