"""A UDF's result -> an Arrow array of its column's type, exactly or not at all.

A value is accepted when the column holds it exactly. So ``2.0`` fits an integer column and
``2.5`` does not; int32 fits int64; int64 fits int32 as long as the numbers do. Decisions:

- Rounding a float to float32 or float16 is accepted (vectors are made that way); overflow to
  infinity is not.
- NaN is a value, not a null, except in pandas columns that are not of a float type.
- ``bool`` is no number, text is no bytes, and an int is no timestamp: those are refused even
  where Arrow would convert them.
- A timestamp with a zone and one without are different things: neither fits the other.
- A struct takes a dict, dataclass, NamedTuple or tuple. A field that it lacks is refused; a
  field that is left out is null.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf.failures import BadResult, shorten
from geneva.udf.recast import Inexact, recast
from geneva.udf.values import from_numpy, from_values


def to_arrow(values: Any, data_type: pa.DataType, rows: int) -> pa.Array:
    """Convert a UDF's result.

    Parameters
    ----------
    values
        A list or tuple, a pyarrow array, NumPy array (2-D for vectors), pandas Series, or for a
        struct a record batch or data frame; or anything that offers NumPy's or Arrow's protocol.
    rows
        How many values there must be.

    Returns
    -------
    pyarrow.Array
        Of type `data_type` and length `rows`.

    Raises
    ------
    BadResult
        If the length differs, or a value does not fit; the message says what was expected and
        what came.

    Examples
    --------
    >>> to_arrow([1, None], pa.float32(), 2).to_pylist()
    [1.0, None]
    """
    try:
        if type(values) is list:
            _check_length(len(values), rows)
            return from_values(values, data_type)
        return _convert(values, data_type, rows)
    except Inexact as bad:
        raise BadResult.at(bad.index, f"expected {data_type}, got {bad.reason}") from bad


def _convert(values: Any, data_type: pa.DataType, rows: int) -> pa.Array:
    array = _as_array(values, data_type)
    if array is None or getattr(array, "ndim", 1) == 0:
        raise BadResult.at(
            None,
            f"expected {rows} values of {data_type}, got {type(values).__name__} "
            f"{shorten(values, 80)}; return an array or a list with one value per row",
        )
    _check_length(len(array), rows)
    if isinstance(array, list):
        return from_values(array, data_type)
    # The UDF may fill the same memory in each call; of NumPy a view that is read-only, too.
    if isinstance(array, np.ndarray):
        return pa.concat_arrays([from_numpy(array, data_type)])
    found = recast(array, data_type)
    shared = any(b is not None and b.is_mutable for b in found.buffers())
    return pa.concat_arrays([found]) if shared else found


def _as_array(values: Any, data_type: pa.DataType) -> Any:
    """Return the result as a pyarrow array, NumPy array or list; ``None`` if it is no sequence."""
    module = type(values).__module__.split(".")[0]
    if isinstance(values, pa.Array | np.ndarray):
        return values
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Scalar):
        return [values]
    if isinstance(values, pa.RecordBatch | pa.Table) and pa.types.is_struct(data_type):
        return pa.table(values).to_struct_array().combine_chunks()
    if module == "pandas":
        return _from_pandas(values, data_type)
    if isinstance(values, tuple | range) and not hasattr(values, "_fields"):
        return list(values)
    return _through_protocol(values)


def _through_protocol(values: Any) -> Any:
    """Take what a foreign array offers: polars, torch and others need not be known here."""
    if hasattr(values, "__arrow_c_stream__"):
        return pa.chunked_array(values).combine_chunks()
    if hasattr(values, "__arrow_c_array__"):
        return pa.array(values)
    if hasattr(values, "__array__") and not isinstance(values, np.generic):
        return np.asarray(values)
    return None


def _from_pandas(values: Any, data_type: pa.DataType) -> Any:
    if hasattr(values, "columns"):
        if not pa.types.is_struct(data_type):
            return None
        return pa.RecordBatch.from_pandas(values, preserve_index=False).to_struct_array()
    if not hasattr(values, "dtype"):
        return None
    _check_order(values)
    dtype = values.dtype
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        cells = values.tolist()
        if pa.types.is_floating(data_type):
            return cells
        return [None if isinstance(c, float) and math.isnan(c) else c for c in cells]
    if isinstance(dtype, np.dtype):
        return pa.array(values.to_numpy(), from_pandas=dtype.kind not in "f")
    array = pa.array(values, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _check_order(series: Any) -> None:
    """Refuse a Series that was sorted or shuffled: by position its values would be shifted."""
    index = series.index.to_numpy() if hasattr(series, "index") else None
    if index is None or index.dtype.kind != "i":
        return
    order = np.arange(len(index))
    if not np.array_equal(index, order) and np.array_equal(np.sort(index), order):
        raise BadResult.at(
            None, "expected the rows in the order of the batch, got a Series with a reordered index"
        )


def _check_length(length: int, rows: int) -> None:
    if length != rows:
        raise BadResult.at(None, f"expected {rows} values, one per row, got {length}")
