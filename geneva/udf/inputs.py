"""A batch's columns in the form that the UDF asked for."""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva.udf.signature import Container, UdfKind


def python_columns(batch: pa.RecordBatch) -> list[list[Any]]:
    """Return each column as Python values; null is ``None``."""
    return [column.to_pylist() for column in batch.columns]


def batch_arguments(batch: pa.RecordBatch, kind: UdfKind, container: Container) -> list[Any]:
    """Return the arguments of one call of a batch or record-batch UDF."""
    if kind is UdfKind.RECORD_BATCH:
        return [batch]
    match container:
        case "arrow":
            return list(batch.columns)
        case "numpy":
            return [_to_numpy(column) for column in _exact_as_floats(batch)]
        case "pandas":
            return [column.to_pandas() for column in _exact_as_floats(batch)]
        case "python":
            return python_columns(batch)
        case unknown:
            assert_never(unknown)


def _exact_as_floats(batch: pa.RecordBatch) -> list[pa.Array]:
    """Return the columns, if those that nulls turn into floats keep their values.

    Raises
    ------
    ValueError
        Beside a null, an integer beyond 2**53 would reach the UDF as another number.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            _check_exact(column, holes=False)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"column {name!r} holds nulls, which NumPy and pandas have only beside floats, "
                f"and integers that are no exact floats ({error}); take it as a pyarrow.Array"
            ) from error
    return list(batch.columns)


def _check_exact(array: pa.Array, *, holes: bool) -> None:
    """Raise `pa.ArrowInvalid` for integers that become other numbers; ``holes``: beside nulls."""
    kind = array.type
    holes = holes or bool(array.null_count)
    if pa.types.is_integer(kind):
        if holes:
            pc.cast(array, pa.float64())
    elif pa.types.is_dictionary(kind):
        _check_exact(array.dictionary, holes=holes)
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            _check_exact(child, holes=holes)
    elif pa.types.is_fixed_size_list(kind):  # what lies under a null vector is null
        _check_exact(array.flatten(), holes=holes)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        _check_exact(array.flatten(), holes=False)


def _to_numpy(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return a 1-D array, and a 2-D one for vectors without nulls: (rows, length of a vector).

    NumPy has no null: in a number column nulls become NaN (integers become float64), elsewhere
    ``None``.
    """
    kind = column.type
    if pa.types.is_fixed_size_list(kind) and not column.null_count:
        flat = column.flatten()
        if not flat.null_count and pa.types.is_primitive(flat.type):
            values: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False)
            return values.reshape(len(column), kind.list_size)
    converted: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
    return converted
