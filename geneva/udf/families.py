"""The families of Arrow types, one table: which Python values a column takes, which files hold it.

`pyarrow.array` truncates silently: 1.5 to 1 for int64, microseconds to seconds, a time of day to
its date. So a family names the Python types that `pyarrow.array` converts exactly, and says how any
other value that a UDF may return is made into one of these.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.model.types import is_blob_v2
from geneva.udf.failures import Inexact

_t = pa.types
_NONE = type(None)
_STEP_US = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}

# What nobody can change any more. A UDF may return the same object for every row; one of these
# says the same for ever, and any other value is copied before the next call.
IMMUTABLE: frozenset[type] = frozenset(
    {
        *(_NONE, bool, int, float, str, bytes, Decimal),
        *(dt.datetime, dt.date, dt.time, dt.timedelta),
        *(np.bool_, np.str_, np.bytes_, np.datetime64, np.timedelta64),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64),
    }
)


@dataclass(frozen=True, slots=True)
class Family:
    """Types that hold the same sort of value.

    Attributes
    ----------
    exact
        Python types that `pyarrow.array` converts exactly; empty for nested types.
    make
        Makes another value into one of these, or returns ``NotImplemented``.
    check
        What is wrong with a value of such a type all the same; empty if nothing is.
    since
        The first data storage version of Lance whose files hold such values, nulls included;
        ``None`` if none does.
    instead
        What to return where they do not.
    fixed
        Whether values are all of one size, so that a vector may consist of them.
    """

    word: str
    belongs: Callable[[pa.DataType], bool]
    exact: frozenset[type] = frozenset()
    make: Callable[[Any, pa.DataType], Any] = lambda value, target: NotImplemented
    check: Callable[[Any, pa.DataType], str] | None = None
    since: str | None = "2.0"
    instead: str = ""
    fixed: bool = True

    @property
    def nested(self) -> bool:
        """Whether values consist of other types' values."""
        return not self.exact


def family(kind: pa.DataType) -> Family:
    """Return the family of a type."""
    # Extension types of other libraries need not be hashable.
    return EXTENSION if isinstance(kind, pa.BaseExtensionType) else _family(kind)


@functools.lru_cache(maxsize=512)
def _family(kind: pa.DataType) -> Family:
    return next(
        (f for f in FAMILIES if f.belongs(kind)), Family(str(kind), lambda _: True, since=None)
    )


def is_listlike(kind: pa.DataType) -> bool:
    """Whether the type is a list of any layout (a map is not)."""
    return bool(
        _t.is_list(kind)
        or _t.is_large_list(kind)
        or _t.is_fixed_size_list(kind)
        or _t.is_list_view(kind)
        or _t.is_large_list_view(kind)
    )


def held_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a UDF's results have until they are written: a blob is its bytes."""
    if is_blob_v2(kind):
        return pa.large_binary()
    if not _t.is_struct(kind):
        return kind
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return pa.struct([f.with_type(held_type(f.type)) for f in fields])


def holds_lists(kind: pa.DataType) -> bool:
    """Whether values are lists or vectors, under whatever name."""
    return is_listlike(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes or blobs."""
    return is_blob_v2(kind) or _is_bytes(kind)


def is_na(value: Any) -> bool:
    """Whether it is pandas' NA or NaT; pandas itself is not imported for that."""
    return value is None or type(value).__name__ in {"NAType", "NaTType"}


def _is_extension(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


def _is_text(kind: pa.DataType) -> bool:
    return bool(_t.is_string(kind) or _t.is_large_string(kind) or _t.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        _t.is_binary(kind)
        or _t.is_large_binary(kind)
        or _t.is_binary_view(kind)
        or _t.is_fixed_size_binary(kind)
    )


def _is_instant(kind: pa.DataType) -> bool:
    return bool(_t.is_timestamp(kind) and kind.tz is not None)


# -- how other values are made into exact ones ---------------------------------------------------


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer | np.bool_)


def _to_int(value: Any, _: pa.DataType) -> Any:
    if _is_int(value):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    return NotImplemented


def _to_float(value: Any, target: pa.DataType) -> Any:
    if isinstance(value, float | np.floating):
        return float(value)
    if not _is_int(value) or isinstance(value, bool | np.bool_):
        return NotImplemented
    narrow = np.float16(int(value)) if _t.is_float16(target) else float(value)
    if int(narrow) != int(value):
        raise Inexact(None, f"{value!r}, which it cannot hold exactly")
    return float(narrow)


def _to_bytes(value: Any, _: pa.DataType) -> Any:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else NotImplemented


def _to_text(value: Any, _: pa.DataType) -> Any:
    return str.__str__(value) if isinstance(value, str) else NotImplemented


def _to_decimal(value: Any, _: pa.DataType) -> Any:
    whole = _is_int(value) and not isinstance(value, bool | np.bool_)
    return int(value) if whole else NotImplemented


def _to_date(value: Any, _: pa.DataType) -> Any:
    if isinstance(value, dt.datetime):
        if value.tzinfo is None and value.time() == dt.time() and not _nanoseconds(value):
            return value.date()
        return NotImplemented
    if isinstance(value, np.datetime64):
        day = _in_unit(value, "D", "a date")
        made = None if day is None else day.item()
        return made if made is None or isinstance(made, dt.date) else NotImplemented
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
    # Of just this unit `pyarrow.array` takes NumPy's value as it is, nanoseconds included.
    is_instant = isinstance(value, np.datetime64)
    return _in_unit(value, target.unit, target.unit) if is_instant else NotImplemented


def _to_duration(value: Any, target: pa.DataType) -> Any:
    if isinstance(value, np.timedelta64):
        return _in_unit(value, target.unit, target.unit)
    nanoseconds = getattr(value, "nanoseconds", None)
    if isinstance(value, dt.timedelta) and nanoseconds is not None and target.unit != "ns":
        if nanoseconds:
            raise Inexact(None, f"{value!r}, which is finer than {target.unit}")
        return dt.timedelta(value.days, value.seconds, value.microseconds)
    return value if isinstance(value, dt.timedelta) else NotImplemented


def _in_unit(value: Any, unit: str, word: str) -> Any:
    if np.isnat(value):
        return None
    made = value.astype(f"{value.dtype.kind}8[{unit}]")
    # There and back: NumPy's own comparison overflows as the conversion does.
    if made.astype(value.dtype) != value:
        raise Inexact(None, f"{value!r}, which is finer than {word} or out of its range")
    return made


def _nanoseconds(value: Any) -> int:
    return int(getattr(value, "nanosecond", 0))


# -- what is wrong with values of an exact type --------------------------------------------------


def _check_timestamp(value: Any, target: pa.DataType) -> str:
    zone = None if isinstance(value, np.datetime64) else value.tzinfo
    if (zone is None) != (target.tz is None):
        return ", which has no time zone" if zone is None else ", which has a time zone"
    return "" if isinstance(value, np.datetime64) else _too_fine(value.microsecond, target)


def _check_time(value: Any, target: pa.DataType) -> str:
    return ", which has a time zone" if value.tzinfo else _too_fine(value.microsecond, target)


def _check_duration(value: Any, target: pa.DataType) -> str:
    return "" if isinstance(value, np.timedelta64) else _too_fine(value.microseconds, target)


def _too_fine(microseconds: int, target: pa.DataType) -> str:
    fits = microseconds % _STEP_US[target.unit] == 0
    return "" if fits else f", which is finer than {target.unit}"


def _types(*kinds: type) -> frozenset[type]:
    return frozenset({*kinds, _NONE})


_FLOATS = _types(float, np.float64, np.float32, np.float16)
_STAMPS = _types(dt.datetime)
# The first that a type belongs to is its family.
EXTENSION = Family("extension", _is_extension)
# The first that a type belongs to is its family. What files hold was found by writing and reading
# each type in each version, with nulls at all depths and beside other columns (see the tests).
FAMILIES: tuple[Family, ...] = (
    EXTENSION,
    Family("null", _t.is_null, frozenset({_NONE})),
    Family("bool", _t.is_boolean, _types(bool, np.bool_)),
    Family("int", _t.is_integer, _types(int), _to_int),
    # Of float16 `pyarrow.array` does not check that an integer is exact.
    Family("float", _t.is_float16, _FLOATS, _to_float),
    Family("float", _t.is_floating, _FLOATS | {int}, _to_float),
    Family(
        "decimal",
        lambda t: _t.is_decimal32(t) or _t.is_decimal64(t),
        _types(Decimal, int),
        _to_decimal,
        since=None,
        instead="a decimal128",
    ),
    Family("decimal", _t.is_decimal, _types(Decimal, int), _to_decimal),
    Family("text", _is_text, _types(str), _to_text, fixed=False),
    Family("bytes", _t.is_fixed_size_binary, _types(bytes), _to_bytes),
    Family("bytes", _is_bytes, _types(bytes), _to_bytes, fixed=False),
    Family("date", _t.is_date, _types(dt.date), _to_date),
    Family("time", _t.is_time, _types(dt.time), check=_check_time),
    Family("duration", _t.is_duration, _types(dt.timedelta), _to_duration, _check_duration),
    Family("instant", _is_instant, _STAMPS, _to_timestamp, _check_timestamp),
    Family("timestamp", _t.is_timestamp, _STAMPS, _to_timestamp, _check_timestamp),
    Family("dictionary", _t.is_dictionary, fixed=False),
    Family("list", _t.is_fixed_size_list),
    Family(
        "list",
        lambda t: _t.is_list_view(t) or _t.is_large_list_view(t),
        since=None,
        instead="a list",
        fixed=False,
    ),
    Family("list", is_listlike, fixed=False),
    # 2.0 has no null structs, and a row that is not computed yet, or deleted, is null.
    Family("struct", _t.is_struct, since="2.1", instead="its fields as columns", fixed=False),
    Family("map", _t.is_map, since="2.2", instead="a list of structs", fixed=False),
)


# -- which files hold a type ---------------------------------------------------------------------


_V1 = 'use pa.large_binary() with field_metadata={"lance-encoding:blob": "true"}'


def unstorable(kind: pa.DataType, version: str) -> str:
    """Return why no column of a type can be filled in a table; empty if it can.

    Parameters
    ----------
    version
        The table's data storage version.
    """
    if is_blob_v2(kind):
        older = _number(version) < (2, 2)
        return (
            f"needs data storage version 2.2, and this table has {version}; {_V1}" if older else ""
        )
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return "JSON cannot be checkpointed; return it as text"
        return unstorable(kind.storage_type, version)
    if _t.is_dictionary(kind):
        return unstorable(kind.value_type, version)
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    own = _unstorable_itself(kind, version)
    return own or next((why for t in inner if (why := _unstorable_within(t, version))), "")


def _unstorable_within(kind: pa.DataType, version: str) -> str:
    if _t.is_dictionary(kind):
        return "a dictionary within another type cannot be checkpointed; return plain values"
    if _t.is_null(kind):  # some of these cannot be read beside deleted rows
        return "Lance cannot keep what holds nothing but nulls within another type; leave it out"
    if is_blob_v2(kind):
        return "Lance has no blobs within another type; use a column of its own"
    view = _t.is_string_view(kind) or _t.is_binary_view(kind)
    if view and _number(version) < (2, 1):
        return f"{kind} within another type needs data storage version 2.1; use one without view"
    return unstorable(kind, version)


def _unstorable_itself(kind: pa.DataType, version: str) -> str:
    rule = family(kind)
    instead = f"; use {rule.instead}" if rule.instead else ""
    if rule.since is None:
        return f"Lance has no {kind}{instead}"
    if _number(version) < _number(rule.since):
        return (
            f"a {rule.word}{' that may be null' if rule.word == 'struct' else ''} needs data "
            f"storage version {rule.since}, and this table has {version}{instead}"
        )
    if _t.is_fixed_size_list(kind):
        return _unfit_vector(kind)
    if _t.is_struct(kind) and not kind.num_fields:
        return "Lance has no struct without fields that may be null; use a boolean"
    if _t.is_map(kind) and kind.keys_sorted:
        return "Lance has no map with keys_sorted; use one without"
    return ""


def _unfit_vector(kind: pa.DataType) -> str:
    if not kind.list_size:
        return "Lance has no vector of length 0"
    element = family(kind.value_type)
    if element is EXTENSION:
        return f"within a fixed-size list Lance makes {kind.value_type} its storage; use a list"
    if element.fixed:
        return ""
    if element.word == "struct":
        # Written in 2.2, it can be read alone only, and a compaction puts it beside other columns.
        return "Lance cannot keep a fixed-size list of structs beside other values; use a list"
    return f"Lance cannot write a fixed-size list of {element.word}; use a list"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
