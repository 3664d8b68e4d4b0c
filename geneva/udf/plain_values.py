"""Plain values -> Arrow array, exactly or not at all.

What a UDF returned was made plain before (`keep`); here, values of each family's exact types are
given to `pyarrow.array` as they are, and others are made into these. Finding out costs one C-level
pass, ``set(map(type, values))``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf.failures import Inexact, shorten
from geneva.udf.families import Family, family, is_listlike
from geneva.udf.keep import Keep, Unfit, has_own_memory, is_fixed, is_masked, keep_leaf, keeper
from geneva.udf.recast import check_finite, encode, make_lists, make_map, recast, row_of

_t = pa.types
_NONE = type(None)
_ONLY_HOLDER = 2  # references to what is in one list only, as `sys.getrefcount` counts them
_FILLED = "that the UDF may have filled again since; return a copy, or its .item()"


def from_results(values: list[Any], target: pa.DataType) -> pa.Array:
    """Return a UDF's result for many rows at once as an array of `target`."""
    keep = keeper(target)
    if family(target).nested:
        return from_values(list(map(keep, values)), target)
    return _leaves(values, target, keep)


def from_values(values: list[Any], target: pa.DataType) -> pa.Array:
    """Return plain values as an array of `target`; raise `Inexact` for one that does not fit."""
    match family(target).word:
        case "extension":
            storage = from_values(values, target.storage_type)
            return pa.ExtensionArray.from_storage(target, storage)
        case "dictionary":
            return encode(from_values(values, target.value_type), target)
        case "list":
            return _lists(values, target)
        case "struct":
            return _structs(values, target)
        case "map":
            return _maps(values, target)
        case _:
            return _leaves(values, target)


def from_numpy(values: np.ndarray[Any, Any], target: pa.DataType) -> pa.Array:
    """Return a NumPy array as an array of `target`: one value per row, NaN kept, masked is null."""
    if values.ndim == 0:
        raise Inexact(None, f"a single value of {values.dtype}")
    if values.dtype.kind in "OV" or values.ndim > 2:
        # An object array may hold anything; of more dimensions the rows are taken one by one.
        return from_results(list(values), target)
    mask = np.ma.getmaskarray(values) if is_masked(values) else None
    if values.ndim == 2:
        if not is_listlike(target):
            raise Inexact(None, f"a 2-D array of shape {values.shape}")
        lengths = np.full(len(values), values.shape[1], dtype=np.int64)
        child = _child(from_numpy, values.reshape(-1), target, lengths)
        return make_lists(child, lengths, None, target)
    try:
        array = pa.array(np.asarray(values), mask=mask)
    except (pa.ArrowException, ValueError) as error:
        raise Inexact(None, f"an array of {values.dtype}: {error}") from error
    return recast(array, target)


def _leaves(values: list[Any], target: pa.DataType, keep: Keep | None = None) -> pa.Array:
    """Build an array of a simple type; ``keep`` makes each returned value plain."""
    rule = family(target)
    if not set(map(type, values)) <= rule.exact:
        values = _each(values, rule, target, keep)
    if rule.check is not None:
        for index, value in enumerate(values):
            if value is not None and (problem := rule.check(value, target)):
                raise Inexact(index, f"{shorten(value, 80)}{problem}")
    try:
        array = pa.array(values, type=target)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if rule.word != "float" or int not in set(map(type, values)):
            raise _culprit(values, target, error) from error
        # Arrow refuses every integer beyond 2**53; some of them are floats all the same.
        values = [_made(k, v, rule, target) if type(v) is int else v for k, v in enumerate(values)]
        array = pa.array(values, type=target)
    if _t.is_float32(target) or _t.is_float16(target):
        check_finite(values, array)
    return array


def _each(values: list[Any], rule: Family, target: pa.DataType, keep: Keep | None) -> list[Any]:
    """Turn each value into one of the exact types; others raise."""
    made: list[Any] = []
    for index, kind in enumerate(map(type, values)):
        if kind in rule.exact:
            made.append(values[index])
            continue
        # Counted before anything here refers to it.
        shared = keep is None and sys.getrefcount(values[index]) > _ONLY_HOLDER
        if keep is None and not is_fixed(kind) and (shared or not has_own_memory(values[index])):
            raise Inexact(index, f"{kind.__name__} {_FILLED}")
        value = (keep or keep_leaf)(values[index])
        made.append(value if type(value) in rule.exact else _made(index, value, rule, target))
    return made


def _made(index: int, value: Any, rule: Family, target: pa.DataType) -> Any:
    if isinstance(value, Unfit):
        raise Inexact(index, value.reason)
    try:
        made = rule.make(value, target)
    except Inexact as bad:
        raise Inexact(index, bad.reason) from bad
    except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise Inexact(index, Unfit.of(value).reason) from error
    if made is NotImplemented:
        raise Inexact(index, Unfit.of(value).reason)
    return made


def _culprit(values: list[Any], target: pa.DataType, error: Exception) -> Inexact:
    for index, value in enumerate(values):
        try:
            pa.array([value], type=target)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as one:
            return Inexact(index, f"{type(value).__name__} {shorten(value, 80)} ({one})")
    return Inexact(None, str(error))


# -- nested ------------------------------------------------------------------------------------


def _check_plain(values: list[Any], kinds: set[type], plain: set[type]) -> None:
    """Refuse the first value that is not in the form of `keep`."""
    if kinds <= plain:
        return
    index = next(k for k, value in enumerate(values) if type(value) not in plain)
    unfit = values[index] if isinstance(values[index], Unfit) else Unfit.of(values[index])
    raise Inexact(index, unfit.reason)


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
    _check_plain(values, kinds, {list, np.ndarray, _NONE})
    valid = _valid(values)
    rows = values if valid is None else [() if value is None else value for value in values]
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    vectors = _vectors(values) if kinds - {_NONE} == {np.ndarray} else None
    if vectors is not None:
        child = _child(from_numpy, vectors, target, lengths)
    else:
        build = from_results if np.ndarray in kinds else from_values
        child = _child(build, list(chain.from_iterable(rows)), target, lengths)
    return make_lists(child, lengths, valid, target)


def _vectors(values: list[Any]) -> np.ndarray[Any, Any] | None:
    """Join rows of one dtype and one dimension; of several, NumPy would promote and lose."""
    present = [value for value in values if value is not None]
    if len({row.dtype for row in present}) != 1 or {row.ndim for row in present} != {1}:
        return None
    return np.concatenate(present)


def _structs(values: list[Any], target: pa.DataType) -> pa.Array:
    _check_plain(values, set(map(type, values)), {dict, _NONE})
    fields = [target.field(i) for i in range(target.num_fields)]
    valid = _valid(values)
    records = values if valid is None else [value or {} for value in values]
    parts = []
    for field in fields:
        column = [record.get(field.name) for record in records]
        try:
            parts.append(from_values(column, field.type))
        except Inexact as bad:
            raise Inexact(bad.index, f"{bad.reason} in field {field.name!r}") from bad
    if not fields:
        return pa.array(values, type=target)
    mask = None if valid is None else pa.array(~valid)
    return pa.StructArray.from_arrays(parts, fields=fields, mask=mask)


def _maps(values: list[Any], target: pa.DataType) -> pa.Array:
    _check_plain(values, set(map(type, values)), {list, _NONE})
    valid = _valid(values)
    rows = values if valid is None else [value or [] for value in values]
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    try:
        keys = from_values([key for row in rows for key, _ in row], target.key_type)
        items = from_values([item for row in rows for _, item in row], target.item_type)
    except Inexact as bad:
        raise Inexact(row_of(lengths, bad.index), f"a map with {bad.reason}") from bad
    if keys.null_count:
        row = row_of(lengths, keys.is_null().to_pylist().index(True))
        raise Inexact(row, "a map with a null key")
    mask = None if valid is None else pa.array(~valid)
    return make_map(offsets, keys, items, mask, target)
