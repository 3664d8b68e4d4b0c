"""Booleans of Arrow as NumPy has them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from geneva.storage.values import flags


@given(st.lists(st.none() | st.booleans(), max_size=40), st.integers(0, 20), st.integers(0, 40))
def test_flags_are_true_where_a_value_is(
    values: list[bool | None], start: int, length: int
) -> None:
    found = flags(pa.array(values, pa.bool_()).slice(start, length))
    assert found.tolist() == [v is True for v in values[start : start + length]]
    assert found.dtype == np.bool_


def test_what_lies_beneath_a_null_is_not_true() -> None:
    bits = pa.py_buffer(b"\xff")
    null_at_two = pa.py_buffer(b"\xfb")
    array = pa.Array.from_buffers(pa.bool_(), 4, [null_at_two, bits])
    assert flags(array).tolist() == [True, True, False, True]
