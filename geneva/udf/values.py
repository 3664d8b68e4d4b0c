"""Python values -> Arrow array, exactly or not at all.

`pyarrow.array` truncates silently: 1.5 to 1 for int64, microseconds to seconds, a time of day to
its date, 1e300 to infinity; and it drops struct fields it does not know. So it is used only for
types of value that it is known to convert exactly into the column's type, and all others are made
into one of these first. Finding out costs one C-level pass, ``set(map(type, values))``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf.failures import shorten
from geneva.udf.recast import (
    Inexact,
    check_finite,
    encode,
    is_listlike,
    make_lists,
    make_map,
    recast,
    row_of,
)

_t = pa.types
_NONE = type(None)
_FLOATS: set[type] = {float, np.float64, np.float32, np.float16, _NONE}
# The Python types that `pyarrow.array` converts exactly, and what makes other values into them.
_Rule = tuple[set[type], Callable[[Any], Any]]


def from_values(values: list[Any], target: pa.DataType) -> pa.Array:
    """Return Python values as an array of `target`; raise `Inexact` for one that does not fit."""
    if isinstance(target, pa.BaseExtensionType):
        storage = from_values(values, target.storage_type)
        return pa.ExtensionArray.from_storage(target, storage)
    if _t.is_dictionary(target):
        return encode(from_values(values, target.value_type), target)
    if is_listlike(target):
        return _lists(_without_na(values), target)
    if _t.is_struct(target):
        return _structs(_without_na(values), target)
    if _t.is_map(target):
        return _maps(_without_na(values), target)
    return _leaves(values, target)


def from_numpy(values: np.ndarray[Any, Any], target: pa.DataType) -> pa.Array:
    """Return a NumPy array as an array of `target`: one value per row, NaN kept, masked is null."""
    if values.ndim == 0:
        raise Inexact(None, f"a single value of {values.dtype}")
    if values.dtype.kind in "OV" or values.ndim > 2:
        # An object array may hold anything; of more dimensions the rows are taken one by one.
        return from_values(list(values), target)
    if values.ndim == 2:
        if not is_listlike(target):
            raise Inexact(None, f"a 2-D array of shape {values.shape}")
        lengths = np.full(len(values), values.shape[1], dtype=np.int64)
        child = _child(from_numpy, values.reshape(-1), target, lengths)
        return make_lists(child, lengths, None, target)
    try:
        mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        array = pa.array(np.asarray(values), mask=mask)
    except (pa.ArrowException, ValueError) as error:
        raise Inexact(None, f"an array of {values.dtype}: {error}") from error
    return recast(array, target)


def _leaves(values: list[Any], target: pa.DataType) -> pa.Array:
    exact, make = _leaf_rule(target)
    if not set(map(type, values)) <= exact:
        values = _each(values, exact, make)
    check = _TEMPORAL_CHECKS.get(target.id)
    if check is not None:
        for index, value in enumerate(values):
            if value is not None and (problem := check(value, target)):
                raise Inexact(index, f"{shorten(value, 80)}{problem}")
    try:
        array = pa.array(values, type=target)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if _t.is_floating(target) and int in set(map(type, values)):
            # Arrow refuses every integer beyond 2**53; some of them are floats all the same.
            return _leaves(_each(values, _FLOATS, make), target)
        raise _culprit(values, target, error) from error
    if _t.is_float32(target) or _t.is_float16(target):
        check_finite(values, array)
    return array


def _each(values: list[Any], exact: set[type], make: Callable[[Any], Any]) -> list[Any]:
    """Turn each value into one of the exact types; what `make` refuses raises."""
    made = []
    for index, value in enumerate(values):
        if type(value) in exact:
            made.append(value)
            continue
        try:
            made.append(_plain(value, exact, make))
        except Inexact as bad:
            raise Inexact(index, bad.reason) from bad
        except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
            raise Inexact(index, f"{type(value).__name__} {shorten(value, 80)}") from error
    return made


def _plain(value: Any, exact: set[type], make: Callable[[Any], Any]) -> Any:
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    elif isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if type(value) in exact or _is_na(value):
        return None if _is_na(value) else value
    made = make(value)
    if made is NotImplemented:
        raise Inexact(None, f"{type(value).__name__} {shorten(value, 80)}")
    return made


def _is_na(value: Any) -> bool:
    """Whether it is pandas' NA or NaT; pandas itself is not imported for that."""
    return value is None or type(value).__name__ in {"NAType", "NaTType"}


def _culprit(values: list[Any], target: pa.DataType, error: Exception) -> Inexact:
    for index, value in enumerate(values):
        try:
            pa.array([value], type=target)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as one:
            return Inexact(index, f"{type(value).__name__} {shorten(value, 80)} ({one})")
    return Inexact(None, str(error))


# -- which Python types hold a leaf type exactly, and how others are made into them -------------


def _leaf_rule(target: pa.DataType) -> _Rule:
    if _t.is_floating(target):
        return (_FLOATS if _t.is_float16(target) else _FLOATS | {int}), _to_float(target)
    if _t.is_timestamp(target):
        return {dt.datetime, _NONE}, lambda v: _to_timestamp(v, target)
    if _t.is_duration(target):
        return {dt.timedelta, _NONE}, lambda v: _from_numpy_time(v, np.timedelta64, target)
    return next((rule for belongs, rule in _RULES if belongs(target)), _BYTES_RULE)


def _refuse(_: Any) -> Any:
    return NotImplemented


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _to_int(value: Any) -> Any:
    if _is_int(value):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return NotImplemented


def _to_float(target: pa.DataType) -> Callable[[Any], Any]:
    def to_float(value: Any) -> Any:
        if isinstance(value, float | np.floating):
            return float(value)
        if not _is_int(value):
            return NotImplemented
        narrow = np.float16(int(value)) if _t.is_float16(target) else float(value)
        if int(narrow) != int(value):
            raise Inexact(None, f"{value!r}, which it cannot hold exactly")
        return float(narrow)

    return to_float


def _to_bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else NotImplemented


def _to_date(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        if value.tzinfo is None and value.time() == dt.time() and not _nanoseconds(value):
            return value.date()
        return NotImplemented
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            return None
        instant = _from_numpy_time(value, np.datetime64, pa.timestamp("us"))
        return recast(pa.array(np.array([instant])), pa.date32())[0].as_py()
    return NotImplemented


def _to_timestamp(value: Any, target: pa.DataType) -> Any:
    if isinstance(value, dt.datetime):  # pandas.Timestamp is one, with nanoseconds besides
        if not _nanoseconds(value):
            return dt.datetime.combine(value.date(), value.timetz()).replace(fold=value.fold)
        if target.unit != "ns":
            raise Inexact(None, f"{value!r}, which is finer than {target.unit}")
        return value
    if type(value) is dt.date and target.tz is None:
        return dt.datetime(value.year, value.month, value.day)
    return _from_numpy_time(value, np.datetime64, target)


def _from_numpy_time(value: Any, kind: type, target: pa.DataType) -> Any:
    if isinstance(value, np.datetime64 | np.timedelta64) and isinstance(value, kind):
        if np.isnat(value):
            return None
        # Of just this unit `pyarrow.array` takes NumPy's value as it is, nanoseconds included.
        made = value.astype(f"{value.dtype.kind}8[{target.unit}]")
        # There and back: NumPy's own comparison overflows as the conversion does.
        if made.astype(value.dtype) != value:
            raise Inexact(None, f"{value!r}, which is finer than {target.unit} or out of its range")
        return made
    nanoseconds = getattr(value, "nanoseconds", None)
    if isinstance(value, dt.timedelta) and nanoseconds is not None and target.unit != "ns":
        if nanoseconds:
            raise Inexact(None, f"{value!r}, which is finer than {target.unit}")
        return dt.timedelta(value.days, value.seconds, value.microseconds)
    return value if isinstance(value, dt.timedelta) else NotImplemented


def _nanoseconds(value: Any) -> int:
    return int(getattr(value, "nanosecond", 0))


def _to_text(value: Any) -> Any:
    return str.__str__(value) if isinstance(value, str) else NotImplemented


def _to_decimal(value: Any) -> Any:
    return int(value) if _is_int(value) else NotImplemented


_BYTES_RULE: _Rule = ({bytes, _NONE}, _to_bytes)
_RULES: tuple[tuple[Callable[[pa.DataType], bool], _Rule], ...] = (
    (_t.is_integer, ({int, _NONE}, _to_int)),
    (_t.is_boolean, ({bool, np.bool_, _NONE}, _refuse)),
    (_t.is_string, ({str, _NONE}, _to_text)),
    (_t.is_large_string, ({str, _NONE}, _to_text)),
    (_t.is_string_view, ({str, _NONE}, _to_text)),
    (_t.is_decimal, ({Decimal, int, _NONE}, _to_decimal)),
    (_t.is_date, ({dt.date, _NONE}, _to_date)),
    (_t.is_time, ({dt.time, _NONE}, _refuse)),
    (_t.is_null, ({_NONE}, _refuse)),
)
_STEP_US = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}


def _check_timestamp(value: dt.datetime | np.datetime64, target: pa.DataType) -> str:
    zone = None if isinstance(value, np.datetime64) else value.tzinfo
    if (zone is None) != (target.tz is None):
        return ", which has no time zone" if zone is None else ", which has a time zone"
    return "" if isinstance(value, np.datetime64) else _too_fine(value.microsecond, target)


def _check_time(value: dt.time, target: pa.DataType) -> str:
    return ", which has a time zone" if value.tzinfo else _too_fine(value.microsecond, target)


def _check_duration(value: dt.timedelta | np.timedelta64, target: pa.DataType) -> str:
    if isinstance(value, np.timedelta64):
        return ""
    return _too_fine(value.microseconds, target)


def _too_fine(microseconds: int, target: pa.DataType) -> str:
    fits = microseconds % _STEP_US[target.unit] == 0
    return "" if fits else f", which is finer than {target.unit}"


_TEMPORAL_CHECKS: dict[int, Callable[[Any, pa.DataType], str]] = {
    pa.timestamp("us").id: _check_timestamp,
    pa.time32("s").id: _check_time,
    pa.time64("us").id: _check_time,
    pa.duration("us").id: _check_duration,
}


# -- nested ------------------------------------------------------------------------------------


def _without_na(values: list[Any]) -> list[Any]:
    """Make pandas' NA and Arrow's scalars plain; the usual list is returned as it is."""
    kinds = set(map(type, values))
    if not any(issubclass(k, pa.Scalar) or k.__name__ in {"NAType", "NaTType"} for k in kinds):
        return values
    plain = (value.as_py() if isinstance(value, pa.Scalar) else value for value in values)
    return [None if _is_na(value) else value for value in plain]


def _valid(values: list[Any]) -> np.ndarray[Any, Any] | None:
    if _NONE not in set(map(type, values)):
        return None
    return np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))


def _child(
    build: Callable[[Any, pa.DataType], pa.Array],
    flat: Any,
    target: pa.DataType,
    lengths: np.ndarray[Any, Any],
) -> pa.Array:
    try:
        return build(flat, target.value_type)
    except Inexact as bad:
        raise Inexact(row_of(lengths, bad.index), f"a list with {bad.reason}") from bad


def _lists(values: list[Any], target: pa.DataType) -> pa.Array:
    kinds = set(map(type, values))
    valid = _valid(values)
    rows = values
    if not kinds <= {list, np.ndarray}:
        rows = [_row(index, value) for index, value in enumerate(values)]
        kinds = set(map(type, rows)) - {tuple}
    vectors = _vectors(rows, values) if kinds == {np.ndarray} else None
    try:
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    except TypeError:  # a NumPy array without dimensions, which `_row` refuses by its position
        lengths = np.array([len(_row(index, value)) for index, value in enumerate(values)])
    if vectors is not None:
        child = _child(from_numpy, vectors, target, lengths)
    else:
        child = _child(from_values, list(chain.from_iterable(rows)), target, lengths)
    return make_lists(child, lengths, valid, target)


def _vectors(rows: list[Any], values: list[Any]) -> np.ndarray[Any, Any] | None:
    """Join rows of one dtype and one dimension; of several, NumPy would promote and lose."""
    present = [row for row, value in zip(rows, values, strict=True) if value is not None]
    if len({row.dtype for row in present}) != 1 or {row.ndim for row in present} != {1}:
        return None
    return np.concatenate(present)


def _row(index: int, value: Any) -> Any:
    """Return one row's elements as something with a length; text and mappings are no lists."""
    if type(value) is list:
        return value
    if value is None:
        return ()
    if isinstance(value, np.ndarray) and value.ndim:
        return value
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value.to_pylist()
    if isinstance(value, str | bytes | bytearray | Mapping | np.ndarray):
        raise Inexact(index, f"{type(value).__name__} {shorten(value, 80)}")
    if isinstance(value, Sequence | set | frozenset):
        return list(value)
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        row = np.asarray(value)
        if row.ndim:
            return row
    raise Inexact(index, f"{type(value).__name__} {shorten(value, 80)}")


def _structs(values: list[Any], target: pa.DataType) -> pa.Array:
    fields = [target.field(i) for i in range(target.num_fields)]
    names = [field.name for field in fields]
    valid = _valid(values)
    records = [_record(index, value, names) for index, value in enumerate(values)]
    parts = []
    for field in fields:
        column = [record.get(field.name) for record in records]
        try:
            parts.append(from_values(column, field.type))
        except Inexact as bad:
            raise Inexact(bad.index, f"{bad.reason} in field {field.name!r}") from bad
    if not fields:
        return pa.array([None if value is None else {} for value in values], type=target)
    mask = None if valid is None else pa.array(~valid)
    return pa.StructArray.from_arrays(parts, fields=fields, mask=mask)


def _record(index: int, value: Any, names: list[str]) -> Mapping[str, Any]:
    if value is None:
        return {}
    record: Mapping[str, Any]
    if isinstance(value, Mapping):
        record = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        record = dict(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple) and len(value) == len(names):
        return dict(zip(names, value, strict=True))
    else:
        raise Inexact(index, f"{type(value).__name__} {shorten(value, 80)}")
    extra = [key for key in record if key not in names]
    if extra:
        raise Inexact(index, f"the unknown field {extra[0]!r} in {shorten(value, 80)}")
    return record


def _maps(values: list[Any], target: pa.DataType) -> pa.Array:
    valid = _valid(values)
    pairs = [_pairs(index, value) for index, value in enumerate(values)]
    lengths = np.fromiter(map(len, pairs), dtype=np.int64, count=len(pairs))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    try:
        keys = from_values([key for row in pairs for key, _ in row], target.key_type)
        items = from_values([item for row in pairs for _, item in row], target.item_type)
    except Inexact as bad:
        raise Inexact(row_of(lengths, bad.index), f"a map with {bad.reason}") from bad
    if keys.null_count:
        row = row_of(lengths, keys.is_null().to_pylist().index(True))
        raise Inexact(row, "a map with a null key")
    mask = None if valid is None else pa.array(~valid)
    return make_map(offsets, keys, items, mask, target)


def _pairs(index: int, value: Any) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    try:
        return [(key, item) for key, item in value]
    except (TypeError, ValueError) as error:
        raise Inexact(index, f"{type(value).__name__} {shorten(value, 80)}") from error
