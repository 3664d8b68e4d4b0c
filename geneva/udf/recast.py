"""Arrow array -> Arrow array of another type, exactly or not at all."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva.udf.failures import Inexact, shorten_cell
from geneva.udf.families import family, is_listlike

_t = pa.types


def recast(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Return the array as `target`; raise `Inexact` unless every value stays the same."""
    source = array.type
    if source == target:
        return array
    if _t.is_null(source):
        return pa.nulls(len(array), target)
    if isinstance(target, pa.BaseExtensionType) or isinstance(array, pa.ExtensionArray):
        return _recast_extension(array, target)
    if _t.is_dictionary(source):
        return recast(array.dictionary_decode(), target)
    if _t.is_dictionary(target):
        return encode(recast(array, target.value_type), target)
    if is_listlike(source) and is_listlike(target):
        return _recast_lists(array, target)
    if _t.is_struct(source) and _t.is_struct(target):
        return _recast_struct(array, target)
    if _t.is_map(source) and _t.is_map(target):
        return _recast_map(array, target)
    same = family(source).word == family(target).word
    return _recast_leaf(array, target) if same else _recast_across(array, target)


def to_python(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return an array's values as Python's.

    Raises
    ------
    ValueError, OverflowError
        Python cannot hold one of them.
    """
    coarse = _in_microseconds(array.type)
    if coarse != array.type:
        # Of a time of day, at whatever depth, `to_pylist` would drop the nanoseconds.
        chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        try:
            return [value for c in chunks for value in recast(c, coarse).to_pylist()]
        except Inexact as bad:
            raise ValueError(bad.reason) from bad
    values: list[Any] = array.to_pylist()
    return values


def scalar_to_python(value: pa.Scalar) -> Any:
    """Return the value as Python's; raises as `to_python` does."""
    exact = _in_microseconds(value.type) == value.type
    return value.as_py() if exact else to_python(pa.array([value], value.type))[0]


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """Return a type with times of day in microseconds, at whatever depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind
    return _coarser(kind)


@functools.lru_cache(maxsize=512)
def _coarser(kind: pa.DataType) -> pa.DataType:
    if kind == pa.time64("ns"):
        return pa.time64("us")
    fields = [kind.field(i) for i in range(kind.num_fields)]
    inner = [f.with_type(_in_microseconds(f.type)) for f in fields]
    if inner == fields:
        return kind
    if _t.is_struct(kind):
        return pa.struct(inner)
    if _t.is_map(kind):
        return pa.map_(inner[0].type.field(0), inner[0].type.field(1))
    if _t.is_fixed_size_list(kind):
        return pa.list_(inner[0], kind.list_size)
    return pa.large_list(inner[0]) if _t.is_large_list(kind) else pa.list_(inner[0])


def make_lists(
    child: pa.Array,
    lengths: np.ndarray[Any, Any],
    valid: np.ndarray[Any, Any] | None,
    target: pa.DataType,
) -> pa.Array:
    """Assemble lists from their concatenated elements; a null row has length 0.

    Parameters
    ----------
    valid
        Which rows are not null; ``None`` if all are.
    """
    if _t.is_fixed_size_list(target):
        return _make_vectors(child, lengths, valid, target)
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    mask = None if valid is None else pa.array(~valid)
    if _t.is_large_list(target) or _t.is_large_list_view(target):
        plain = pa.LargeListArray.from_arrays(
            pa.array(ends), child, type=pa.large_list(target.value_field), mask=mask
        )
    else:
        if ends[-1] > np.iinfo(np.int32).max:
            raise Inexact(None, f"{ends[-1]} elements in one batch; use pa.large_list")
        plain = pa.ListArray.from_arrays(
            pa.array(ends.astype(np.int32)), child, type=pa.list_(target.value_field), mask=mask
        )
    return plain if plain.type == target else pc.cast(plain, target)


def _make_vectors(
    child: pa.Array,
    lengths: np.ndarray[Any, Any],
    valid: np.ndarray[Any, Any] | None,
    target: pa.DataType,
) -> pa.Array:
    size = target.list_size
    wrong = lengths != size if valid is None else (lengths != size) & valid
    if wrong.any():
        row = int(np.argmax(wrong))
        raise Inexact(row, f"a list of length {lengths[row]}")
    if valid is None:
        return pa.FixedSizeListArray.from_arrays(child, type=target)
    # A null vector takes up its full length all the same; its elements are null if they may be.
    if not valid.any():
        return pa.nulls(len(lengths), target)
    at = np.zeros((len(lengths), size), dtype=np.int64)
    at[valid] = np.arange(len(child)).reshape(-1, size)
    holes = np.repeat(~valid, size) if target.value_field.nullable else None
    child = child.take(pa.array(at.reshape(-1), mask=holes))
    return pa.FixedSizeListArray.from_arrays(child, type=target, mask=pa.array(~valid))


def encode(values: pa.Array, target: pa.DataType) -> pa.Array:
    """Return values as a dictionary array; raise `Inexact` if its index type is too narrow."""
    encoded = values.dictionary_encode()
    try:
        indices = pc.cast(encoded.indices, target.index_type)
    except pa.ArrowInvalid as error:
        raise Inexact(None, f"{len(encoded.dictionary)} different values") from error
    return pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=target.ordered)


def row_of(lengths: np.ndarray[Any, Any], index: int | None) -> int | None:
    """Return the row that holds an element of the concatenated lists."""
    if index is None:
        return None
    return int(np.searchsorted(np.cumsum(lengths), index, side="right"))


def check_finite(before: Any, after: pa.Array) -> None:
    """Refuse numbers that became infinite; `before` holds the originals, by position."""
    infinite = np.isinf(after.to_numpy(zero_copy_only=False).astype(np.float64))
    for index in np.flatnonzero(infinite):
        value = before[int(index)]
        value = value.as_py() if isinstance(value, pa.Scalar) else value
        if not np.isinf(float(value)):
            raise Inexact(int(index), f"{value!r}, which is out of its range")


def _recast_extension(array: pa.Array, target: pa.DataType) -> pa.Array:
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    if not isinstance(target, pa.BaseExtensionType):
        return recast(storage, target)
    return pa.ExtensionArray.from_storage(target, recast(storage, target.storage_type))


def _recast_lists(array: pa.Array, target: pa.DataType) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    valid = None if not array.null_count else array.is_valid().to_numpy(zero_copy_only=False)
    # `flatten` leaves out what lies under null rows, so elements and lengths agree.
    try:
        child = recast(array.flatten(), target.value_type)
    except Inexact as bad:
        raise Inexact(row_of(lengths, bad.index), f"a list with {bad.reason}") from bad
    return make_lists(child, lengths.astype(np.int64), valid, target)


def _recast_struct(array: pa.Array, target: pa.DataType) -> pa.Array:
    source = array.type
    names = [source.field(i).name for i in range(source.num_fields)]
    wanted = [target.field(i).name for i in range(target.num_fields)]
    extra = [name for name in names if name not in wanted]
    if extra:
        raise Inexact(None, f"a struct with the fields {names}")
    children = dict(zip(names, array.flatten(), strict=True))
    parts = []
    for i in range(target.num_fields):
        field = target.field(i)
        child = children.get(field.name, pa.nulls(len(array)))
        try:
            parts.append(recast(child, field.type))
        except Inexact as bad:
            raise Inexact(bad.index, f"{bad.reason} in field {field.name!r}") from bad
    return pa.StructArray.from_arrays(parts, fields=list(target), mask=array.is_null())


def _recast_map(array: pa.Array, target: pa.DataType) -> pa.Array:
    # Through slices of the children, because `keys` and `items` ignore the array's own offset.
    offsets = array.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    keys = recast(array.keys.slice(first, last - first), target.key_type)
    items = recast(array.items.slice(first, last - first), target.item_type)
    mask = array.is_null() if array.null_count else None
    return make_map(offsets - first, keys, items, mask, target)


def make_map(
    offsets: Any, keys: pa.Array, items: pa.Array, mask: pa.Array | None, target: pa.DataType
) -> pa.Array:
    """Assemble a map array of just this type."""
    ends = pa.array(np.asarray(offsets, dtype=np.int32))
    return pa.MapArray.from_arrays(ends, keys, items, type=target, mask=mask)


def _recast_across(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Convert between families where a value can be the same in both."""
    match family(array.type).word, family(target).word:
        case ("bool", "int"):
            return _cast(array, target)
        case ("int", "float"):
            return _there_and_back(array, target)
        case ("float", "int"):
            return _cast(array, target)
        case ("int", "decimal"):
            return _cast(pc.cast(array, pa.decimal256(76, max(target.scale, 0))), target)
        case ("date", "timestamp"):
            return _cast(array, target)
        case ("timestamp", "date"):
            return _there_and_back(array, target)
    raise Inexact(None, f"{array.type}")


def _recast_leaf(array: pa.Array, target: pa.DataType) -> pa.Array:
    out = _cast(array, target)
    if _t.is_floating(target) and target.bit_width < array.type.bit_width:
        check_finite(array, out)
    return out


def _there_and_back(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Convert and compare, where Arrow's own check is missing or too narrow."""
    out = pc.cast(array, target, safe=False)
    try:
        if _t.is_float16(target):
            # Arrow has no checked way to float16, but every float16 is an exact float64.
            same = pc.equal(pc.cast(out, pa.float64()), pc.cast(array, pa.float64()))
        elif _t.is_date(target):
            same = pc.equal(pc.cast(out, array.type), array)
        else:
            return pc.cast(array, target)
    except pa.ArrowInvalid:
        # Beyond 2**53 some integers still are floats; Python compares them exactly.
        pairs = zip(array.to_pylist(), out.to_pylist(), strict=True)
        same = pa.array([None if value is None else value == made for value, made in pairs])
    _require(array, same)
    return out


def _require(array: pa.Array, same: pa.Array) -> None:
    index = pc.index(same, False).as_py()
    if index >= 0:
        raise Inexact(index, f"{shorten_cell(array, index, 80)}, which it cannot hold exactly")


def _cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    try:
        return pc.cast(array, target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        for index in range(len(array)):
            try:
                pc.cast(array.slice(index, 1), target)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as one:
                reason = f"{shorten_cell(array, index, 80)} ({array.type}): {one}"
                raise Inexact(index, reason) from error
        raise Inexact(None, f"{array.type}: {error}") from error
