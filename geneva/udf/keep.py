"""A UDF's result for a row -> a value that no later call can change.

A UDF may return one object for all rows and fill it anew for each, and rows are converted many at a
time. So each result is taken apart before the next call: whatever a column accepts is made into
plain values here, and `values` builds arrays of these only. There is no list of what must be copied
beside the list of what is accepted.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf.failures import shorten
from geneva.udf.families import IMMUTABLE, family, is_na
from geneva.udf.recast import scalar_to_python, to_python

Keep = Callable[[Any], Any]
_FIXED = (*(k for k in IMMUTABLE if k not in {bool, type(None)}), pa.Scalar)


@dataclass(frozen=True, slots=True)
class Unfit:
    """Stands for a result that its column does not take; it is refused with its row."""

    reason: str

    @classmethod
    def of(cls, value: Any) -> Unfit:
        """Return the name of a value's type."""
        return cls(f"{type(value).__name__} {shorten(value, 80)}")


def keeper(target: pa.DataType) -> Keep:
    """Return the function that makes a row's result plain.

    Plain are ``None``, and

    - of a simple type: an immutable value;
    - of a list: a list of plain values, or a NumPy array of numbers of its own;
    - of a struct: a dict of plain values by field;
    - of a map: a list of pairs of plain values.

    What cannot be that becomes `Unfit`.
    """
    match family(target).word:
        case "extension":
            return keeper(target.storage_type)
        case "dictionary":
            return keeper(target.value_type)
        case "list":
            return _list_keeper(target)
        case "struct":
            return _struct_keeper(target)
        case "map":
            return _map_keeper(target)
        case _:
            return keep_leaf


def is_fixed(kind: type) -> bool:
    """Whether the values of a class stay what they are."""
    if issubclass(kind, enum.Enum):
        return all(type(member.value) in IMMUTABLE for member in kind)
    return kind in IMMUTABLE or issubclass(kind, _FIXED)


def has_own_memory(value: Any) -> bool:
    """Whether nothing but the object itself can reach what it holds."""
    own = isinstance(value, np.ndarray) and value.base is None and value.dtype.kind != "O"
    return own or type(value) is bytearray


def keep_leaf(value: Any) -> Any:
    """Make a value plain that may be of a simple type."""
    kind = type(value)
    if kind in IMMUTABLE:
        return value
    if is_na(value):
        return None
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, pa.Scalar):
        return scalar_to_python(value)
    if isinstance(value, enum.Enum):
        return keep_leaf(value.value)
    if isinstance(value, np.ndarray) or _offers_array(value):
        one = np.asarray(value)
        return Unfit.of(value) if one.ndim else keep_leaf(one[()])
    return value  # of a class of the user's; what is made of it, its family says


def _offers_array(value: Any) -> bool:
    """Whether it is an array of another library, such as a tensor."""
    return hasattr(value, "__array__") and not isinstance(value, np.generic | type)


def is_masked(value: Any) -> bool:
    """Whether it is one of NumPy's masked arrays; their module, which is slow, is not imported."""
    module = sys.modules.get("numpy.ma")
    return module is not None and isinstance(value, module.MaskedArray)


def _list_keeper(target: pa.DataType) -> Keep:
    child = keeper(target.value_type)
    simple = child is keep_leaf and family(target.value_type).word != "bytes"

    def keep(value: Any) -> Any:
        # Lists of numbers are long. One that begins with a number is taken to hold numbers only:
        # what else it holds is refused when the array is built.
        if type(value) is list and simple and (not value or type(value[0]) in IMMUTABLE):
            return value[:]
        if type(value) is np.ndarray and value.ndim and value.dtype.kind not in "OV":
            return value.copy()
        row = _elements(value)
        return [child(element) for element in row] if type(row) is list else row

    return keep


def _elements(value: Any) -> Any:
    """Return one row's elements as a list or an own array of numbers; text is no list."""
    if type(value) is list or is_na(value):
        return None if is_na(value) else value
    if isinstance(value, pa.Scalar):
        return _elements(scalar_to_python(value))
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return to_python(value)
    if isinstance(value, memoryview):
        return value.tolist()
    if isinstance(value, str | bytes | bytearray | Mapping):
        return Unfit.of(value)
    if isinstance(value, Sequence | set | frozenset):
        return list(value)
    if not _offers_array(value):
        return Unfit.of(value)
    if is_masked(value):
        return value.tolist()  # what is masked is ``None``
    row = np.asarray(value)
    if not row.ndim:
        return Unfit.of(value)
    # Copied in any case: that `__array__` was asked for a copy does not make it one.
    return list(row) if row.dtype.kind in "OV" else row.copy()


def _struct_keeper(target: pa.DataType) -> Keep:
    fields = [target.field(i) for i in range(target.num_fields)]
    keepers = {field.name: keeper(field.type) for field in fields}

    def keep(value: Any) -> Any:
        record = value if type(value) is dict else _record(value, keepers)
        if record is None or isinstance(record, Unfit):
            return record
        kept = {}
        for name, item in record.items():
            keep_field = keepers.get(name)
            if keep_field is None:
                return Unfit(f"the unknown field {name!r} in {shorten(value, 80)}")
            kept[name] = keep_field(item)
        return kept

    return keep


def _record(value: Any, fields: Mapping[str, Keep]) -> Any:
    """Return a row's values by field, in whatever form it came."""
    if is_na(value):
        return None
    if isinstance(value, pa.Scalar):
        return _record(scalar_to_python(value), fields)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple):
        names = tuple(getattr(value, "_fields", fields))
        return dict(zip(names, value, strict=True)) if len(names) == len(value) else Unfit.of(value)
    known = field_names(type(value))
    if known is None:
        return Unfit.of(value)
    # Of a Pydantic model, a field that the struct lacks is refused only if somebody set it.
    given = getattr(value, "__pydantic_fields_set__", known)
    record = {name: getattr(value, name) for name in known if name in fields or name in given}
    return record | (getattr(value, "__pydantic_extra__", None) or {})


def field_names(kind: type) -> tuple[str, ...] | None:
    """Return the fields of a dataclass, an attrs class or a Pydantic model; of others ``None``.

    Known by what they carry: neither library is imported.
    """
    if dataclasses.is_dataclass(kind):
        return tuple(f.name for f in dataclasses.fields(kind))
    if isinstance(attributes := getattr(kind, "__attrs_attrs__", None), tuple):
        return tuple(a.name for a in attributes)
    for marker in ("__pydantic_fields__", "__fields__"):
        if isinstance(fields := getattr(kind, marker, None), Mapping):
            return tuple(fields)
    return None


def _map_keeper(target: pa.DataType) -> Keep:
    keep_key, keep_item = keeper(target.key_type), keeper(target.item_type)

    def keep(value: Any) -> Any:
        if is_na(value):
            return None
        if isinstance(value, pa.Scalar):
            return keep(scalar_to_python(value))
        pairs = value.items() if isinstance(value, Mapping) else value
        try:
            return [(keep_key(key), keep_item(item)) for key, item in pairs]
        except (TypeError, ValueError):
            return Unfit.of(value)

    return keep
