"""The families of Arrow types, one table: which Python values a column of each takes.

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
    """

    word: str
    belongs: Callable[[pa.DataType], bool]
    exact: frozenset[type] = frozenset()
    make: Callable[[Any, pa.DataType], Any] = lambda value, target: NotImplemented
    check: Callable[[Any, pa.DataType], str] | None = None

    @property
    def nested(self) -> bool:
        """Whether values consist of other types' values."""
        return not self.exact


@functools.lru_cache(maxsize=512)
def family(kind: pa.DataType) -> Family:
    """Return the family of a type."""
    return next((f for f in FAMILIES if f.belongs(kind)), Family(str(kind.id), lambda _: True))


def is_listlike(kind: pa.DataType) -> bool:
    """Whether the type is a list of any layout (a map is not)."""
    return bool(
        _t.is_list(kind)
        or _t.is_large_list(kind)
        or _t.is_fixed_size_list(kind)
        or _t.is_list_view(kind)
        or _t.is_large_list_view(kind)
    )


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
FAMILIES: tuple[Family, ...] = (
    Family("extension", _is_extension),
    Family("null", _t.is_null, _types()),
    Family("bool", _t.is_boolean, _types(bool, np.bool_)),
    Family("int", _t.is_integer, _types(int), _to_int),
    # Of float16 `pyarrow.array` does not check that an integer is exact.
    Family("float", _t.is_float16, _FLOATS, _to_float),
    Family("float", _t.is_floating, _FLOATS | {int}, _to_float),
    Family("decimal", _t.is_decimal, _types(Decimal, int), _to_decimal),
    Family("text", _is_text, _types(str), _to_text),
    Family("bytes", _is_bytes, _types(bytes), _to_bytes),
    Family("date", _t.is_date, _types(dt.date), _to_date),
    Family("time", _t.is_time, _types(dt.time), check=_check_time),
    Family("duration", _t.is_duration, _types(dt.timedelta), _to_duration, _check_duration),
    Family("instant", _is_instant, _STAMPS, _to_timestamp, _check_timestamp),
    Family("timestamp", _t.is_timestamp, _STAMPS, _to_timestamp, _check_timestamp),
    Family("dictionary", _t.is_dictionary),
    Family("list", is_listlike),
    Family("struct", _t.is_struct),
    Family("map", _t.is_map),
)
