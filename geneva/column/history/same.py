"""Tell which rows of two arrays hold the same value, bit for bit.

Arrow's own equality takes 0.0 and -0.0 for one value and a NaN for none; a UDF can tell the first
two apart, and a NaN that nobody touched has not changed.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva.model.rows import BoolArray
from geneva.storage.values import flags, integers

NULL = b"N"
DIGEST_BYTES = 16


def same_rows(a: pa.Array, b: pa.Array) -> BoolArray:
    """Return which rows of two arrays of one length are the same; two nulls are."""
    if a.type != b.type:
        return np.array([x == y for x, y in zip(digests(a), digests(b), strict=True)], np.bool_)
    if not a.null_count and not b.null_count:
        return _same_values(a, b)
    null_a, null_b = flags(a.is_null()), flags(b.is_null())
    same, both = null_a & null_b, ~(null_a | null_b)
    if both.any():
        kept = pa.array(both)
        same[both] = _same_values(a.filter(kept), b.filter(kept))
    return same


def digests(array: pa.Array) -> list[bytes]:
    """Return digests that are equal exactly when the values are."""
    return [NULL if v is None else _digest(pickle.dumps(v, 5)) for v in _bits(array).to_pylist()]


def fold(first: bytes, others: Sequence[bytes]) -> bytes:
    """Return one digest of several, which are equal exactly when all of them are."""
    if not first and len(others) == 1:
        return others[0]
    padded = (d.ljust(DIGEST_BYTES, b"\0") for d in (first, *others))
    return _digest(b"".join(padded)) if others else first


def _digest(data: bytes) -> bytes:
    # numpy takes zeros at the end of a text of fixed size away.
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES - 1).digest() + b"\1"


def _same_values(a: pa.Array, b: pa.Array) -> BoolArray:
    """Compare rows of which none is null; values below a null are in neither array."""
    kind = a.type
    if isinstance(kind, pa.BaseExtensionType):
        return _same_values(a.storage, b.storage)
    if pa.types.is_struct(kind):
        same = np.ones(len(a), np.bool_)
        for i in range(kind.num_fields):
            same &= same_rows(a.field(i), b.field(i))
        return same
    if pa.types.is_fixed_size_list(kind):
        inner = same_rows(a.flatten(), b.flatten()).reshape(len(a), kind.list_size)
        return np.asarray(inner.all(axis=1))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _same_lists(a, b)
    if pa.types.is_map(kind):
        pairs = pa.list_(pa.struct([kind.key_field, kind.item_field]))
        return _same_lists(a.cast(pairs), b.cast(pairs))
    if pa.types.is_floating(kind):
        a, b = _bits(a), _bits(b)
    try:
        return flags(pc.equal(a, b))
    except pa.ArrowNotImplementedError:
        return np.array([x == y for x, y in zip(digests(a), digests(b), strict=True)], np.bool_)


def _same_lists(a: pa.Array, b: pa.Array) -> BoolArray:
    rows_a, rows_b = np.diff(integers(a.offsets)), np.diff(integers(b.offsets))
    same: BoolArray = rows_a == rows_b
    if not same.all():
        kept = pa.array(same)
        a, b = a.filter(kept), b.filter(kept)
    differing = np.concatenate([[0], np.cumsum(~same_rows(a.flatten(), b.flatten()))])
    ends = np.cumsum(rows_a[same])
    same[same] = differing[ends] == differing[ends - rows_a[same]]
    return same


def _bits(array: pa.Array) -> pa.Array:
    """Return values that are equal when all their bits are.

    0.0 and -0.0 are two values, and a NaN is one. Python would lose the nanoseconds of a time of
    day, and has no date after the year 9999.
    """
    return array.view(_whole_numbers(array.type))


def _whole_numbers(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same layout, with whole numbers for floats, dates and times."""
    if isinstance(kind, pa.BaseExtensionType):
        return _whole_numbers(kind.storage_type)
    if pa.types.is_floating(kind) or pa.types.is_temporal(kind):
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(kind.bit_width, kind)
    if pa.types.is_map(kind):
        key, item = (_with_whole_numbers(f) for f in (kind.key_field, kind.item_field))
        return pa.map_(key, item, keys_sorted=kind.keys_sorted)
    fields = [_with_whole_numbers(kind.field(i)) for i in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(fields[0])
    return pa.large_list(fields[0]) if pa.types.is_large_list(kind) else kind


def _with_whole_numbers(field: pa.Field) -> pa.Field:
    return field.with_type(_whole_numbers(field.type))
