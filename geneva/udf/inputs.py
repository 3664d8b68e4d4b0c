"""A batch's columns in the form that the UDF asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva.udf.files import closing, closing_async, opened
from geneva.udf.recast import to_python
from geneva.udf.signature import Container, UdfKind


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a value that Python cannot hold."""

    reason: str


def row_call(
    call: Callable[..., Any],
    batch: pa.RecordBatch,
    kind: UdfKind = UdfKind.SCALAR,
    arrays: Collection[str] = (),
    files: Collection[str] = (),
) -> tuple[Callable[..., Any], list[list[Any]]]:
    """Return the function to call with the values of a row, and each column as Python values.

    The columns ``arrays`` hold lists, and each comes as a NumPy array. The columns ``files`` hold
    bytes, and each comes as a file that is closed when the call ends.

    A value that Python cannot hold, as a date after the year 9999, is a failure of its row only.
    """
    names = batch.schema.names
    takes = [_form(name, arrays, files) for name in names]
    if at := [k for k, name in enumerate(names) if name in files]:
        call = closing_async(call, at) if kind is UdfKind.ASYNC else closing(call, at)
    try:
        return call, [take(column) for take, column in zip(takes, batch.columns, strict=True)]
    except (ValueError, OverflowError):
        cells = [
            [_cell(name, column.slice(k, 1), take) for k in range(batch.num_rows)]
            for name, column, take in zip(names, batch.columns, takes, strict=True)
        ]
        return _refusing(call), cells


def _form(
    name: str, arrays: Collection[str], files: Collection[str]
) -> Callable[[pa.Array], list[Any]]:
    """Return the function from a column to the values that the UDF takes."""
    if name in files:
        return opened
    return _row_arrays if name in arrays else to_python


def _cell(name: str, one: pa.Array, take: Callable[[pa.Array], list[Any]]) -> Any:
    try:
        return take(one)[0]
    except (ValueError, OverflowError) as error:
        return _Unreadable(
            f"column {name!r} holds a {one.type} that Python cannot hold ({error}); "
            "take it as a pyarrow.Array"
        )


def _refusing(call: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(*values: Any) -> Any:
        for value in values:
            if isinstance(value, _Unreadable):
                raise ValueError(value.reason)
        return call(*values)

    return refusing


def _row_arrays(column: pa.Array) -> list[np.ndarray[Any, Any] | None]:
    """Return each row's list as an array of its own; nulls within are NaN, or ``None``.

    Raises
    ------
    ValueError
        Beside a null, an integer beyond 2**53 would become another number.
    """
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    lengths = pc.fill_null(pc.list_value_length(storage), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    flat = storage.flatten()
    if not flat.null_count and pa.types.is_primitive(flat.type):
        rows = np.split(np.array(flat.to_numpy(zero_copy_only=False)), ends[:-1])
    else:  # row by row: whether a row holds a null must not change the others' type
        parts = [flat.slice(int(e - n), int(n)) for e, n in zip(ends, lengths, strict=True)]
        try:
            for part in parts:
                _check_exact(part, holes=False)
        except pa.ArrowInvalid as error:
            raise ValueError(f"integers beside nulls that are no exact floats: {error}") from error
        rows = [part.to_numpy(zero_copy_only=False) for part in parts]
    valid = storage.is_valid().to_pylist()
    return [row if there else None for row, there in zip(rows, valid, strict=True)]


def python_columns(batch: pa.RecordBatch) -> list[list[Any]]:
    """Return each column as Python values; null is ``None``.

    Raises
    ------
    ValueError, OverflowError
        Python cannot hold one of them.
    """
    return [to_python(column) for column in batch.columns]


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
