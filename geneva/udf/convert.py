"""A UDF's result -> an Arrow array of its column's type, exactly or not at all.

A value is accepted when the column holds it exactly. So ``2.0`` fits an integer column and
``2.5`` does not; int32 fits int64; int64 fits int32 as long as the numbers do. Decisions:

- Rounding a float to float32 or float16 is accepted (vectors are made that way); overflow to
  infinity is not.
- NaN is a value, not a null, except in pandas columns that are not of a float type.
- ``bool`` is 0 or 1 in an integer column, and no other number; text is no bytes, and an int is no
  timestamp: those are refused even where Arrow would convert them.
- A timestamp with a zone and one without are different things: neither fits the other.
- A struct takes a dict, dataclass, NamedTuple, tuple, attrs class or Pydantic model. A field that
  it lacks is refused; a field that is left out is null.
- A member of an Enum is its value.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf.failures import BadResult, Inexact, shorten
from geneva.udf.families import family
from geneva.udf.plain_values import from_numpy, from_results, from_values
from geneva.udf.recast import recast


def to_arrow(values: Any, data_type: pa.DataType, rows: int, *, kept: bool = False) -> pa.Array:
    """Convert a UDF's result; none of its memory is the UDF's.

    Parameters
    ----------
    values
        A list or tuple, a pyarrow array, NumPy array (2-D for vectors), pandas Series, or for a
        struct a record batch or data frame; or anything that offers NumPy's or Arrow's protocol.
    rows
        How many values there must be.
    kept
        Whether it is a list of one result per row that `keeper` has made plain, or of simple ones.

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
        if kept:
            return from_values(values, data_type)
        return _convert(values, data_type, rows)
    except Inexact as bad:
        raise BadResult.at(bad.index, f"expected {data_type}, got {bad.reason}") from bad
    except (MemoryError, BadResult):
        raise
    except Exception as error:  # what a class of another library raises when it is read
        name = type(values).__name__
        problem = f"{type(error).__name__}: {error}"
        raise BadResult.at(None, f"expected {data_type}, got {name}: {problem}") from error


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
        return from_results(array, data_type)
    if isinstance(array, np.ndarray):
        return _owned(from_numpy(array, data_type), _memory(array), data_type)
    spans = [(b.address, b.address + b.size) for b in array.buffers() if b is not None]
    return _owned(recast(array, data_type), spans, data_type)


def _memory(values: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Return where an array's values lie; only of contiguous ones does Arrow use the memory."""
    start = values.__array_interface__["data"][0]
    return [(start, start + values.nbytes)]


def _owned(made: pa.Array, source: list[tuple[int, int]], data_type: pa.DataType) -> pa.Array:
    """Copy an array that lies in the memory of the result that it was made of.

    A UDF may fill the same memory in each call, whatever Arrow says of it: also what is read-only
    here may be written elsewhere.
    """
    if isinstance(data_type, pa.BaseExtensionType):
        storage = _owned(made.storage, source, data_type.storage_type)
        return pa.ExtensionArray.from_storage(data_type, storage)
    if _shares_parts(data_type):
        return _serialized(made)
    places = [b.address for b in made.buffers() if b is not None and b.size]
    shared = any(start <= place < end for place in places for start, end in source)
    return pa.concat_arrays([made]) if shared else made


@functools.lru_cache(maxsize=512)
def _shares_parts(data_type: pa.DataType) -> bool:
    """Whether `pa.concat_arrays` would share a dictionary, or the text behind views."""
    word = family(data_type).word
    if word == "extension":  # within another type
        return _shares_parts(data_type.storage_type)
    view = pa.types.is_string_view(data_type) or pa.types.is_binary_view(data_type)
    inner = [data_type.field(i).type for i in range(data_type.num_fields)]
    return view or word == "dictionary" or any(map(_shares_parts, inner))


def _serialized(array: pa.Array) -> pa.Array:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([array], names=["values"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch().column(0)


def _as_array(values: Any, data_type: pa.DataType) -> Any:
    """Return the result as a pyarrow array, NumPy array or list; ``None`` if it is no sequence."""
    module = type(values).__module__.split(".")[0]
    if isinstance(values, pa.Array | np.ndarray | list):
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
    """Take the interface of a foreign array: polars, torch and others need not be known here."""
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
