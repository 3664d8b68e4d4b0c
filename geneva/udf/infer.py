"""Type hints -> Arrow types.

``int`` is int64 and ``float`` is float64, because that is what Python's own values hold; a
narrower column is asked for with ``np.float32`` and the like, or with ``data_type=``.
"""

from __future__ import annotations

import collections.abc
import datetime
import decimal
import enum
import types
import typing
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pyarrow as pa

from geneva.errors import UdfError
from geneva.udf.families import family
from geneva.udf.keep import field_names

_SCALARS: dict[Any, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    bytearray: pa.binary(),
    datetime.datetime: pa.timestamp("us"),
    datetime.date: pa.date32(),
    datetime.time: pa.time64("us"),
    datetime.timedelta: pa.duration("us"),
}
_SEQUENCES = {list, tuple, collections.abc.Sequence, collections.abc.MutableSequence}
_MAPPINGS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


def arrow_type(hint: Any) -> pa.DataType:
    """Return the Arrow type that a type hint stands for.

    Raises
    ------
    UdfError
        If the hint says too little or too much; the message says what to write instead.

    Examples
    --------
    >>> arrow_type(list[float])
    ListType(list<item: double>)
    >>> arrow_type(int | None)
    DataType(int64)
    """
    hint = _unwrap(hint)
    if isinstance(hint, pa.DataType):
        return hint
    if isinstance(hint, collections.abc.Hashable) and hint in _SCALARS:
        return _SCALARS[hint]
    if get_origin(hint) is Literal:
        return _literal(hint)
    if get_origin(hint) in {typing.Union, types.UnionType}:
        return _optional(hint)
    if get_origin(hint) is not None:
        return _generic(hint)
    if isinstance(hint, type):
        return _class(hint)
    raise _refused(hint, "it says nothing about the values")


def element_type(hint: Any) -> pa.DataType | None:
    """Return the type of the values in an ``NDArray[np.float32]`` hint, else ``None``."""
    if get_origin(hint) is not np.ndarray:
        return None
    match get_args(get_args(hint)[-1]):
        case (scalar,) if isinstance(scalar, type) and issubclass(scalar, np.generic):
            return _numpy_scalar(scalar)
    return None


def _unwrap(hint: Any) -> Any:
    """Strip ``Annotated``, ``NewType`` and type aliases; an Arrow type inside them wins."""
    while True:
        metadata = getattr(hint, "__metadata__", ())
        for extra in metadata:
            if isinstance(extra, pa.DataType):
                return extra
        if metadata:
            hint = hint.__origin__
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def _optional(hint: Any) -> pa.DataType:
    rest = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(rest) == 1:
        return arrow_type(rest[0])
    raise _refused(hint, "a column has one type, and this names several")


def _literal(hint: Any) -> pa.DataType:
    values = [value for value in get_args(hint) if value is not None]
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and (kind := kinds.pop()) in _SCALARS:
        return _SCALARS[kind]
    raise _refused(hint, "the literals are not all of one simple type")


def _generic(hint: Any) -> pa.DataType:
    origin, args = get_origin(hint), get_args(hint)
    if origin in _MAPPINGS and len(args) == 2:
        return pa.map_(arrow_type(args[0]), arrow_type(args[1]))
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        return _tuple(hint, args)
    if origin in _SEQUENCES and args:
        return pa.list_(arrow_type(args[0]))
    if isinstance(origin, type) and _fields(origin) is not None:
        return _class(origin)
    raise _refused(hint, "no Arrow type follows from it")


def _tuple(hint: Any, args: tuple[Any, ...]) -> pa.DataType:
    kinds = [arrow_type(arg) for arg in args if arg != ()]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        raise _refused(
            hint, "a tuple of several types has no names for them; return a NamedTuple or dataclass"
        )
    # Vectors hold what is of one size.
    return pa.list_(kinds[0], len(kinds)) if family(kinds[0]).fixed else pa.list_(kinds[0])


def _enum(hint: type[enum.Enum]) -> pa.DataType:
    kinds = {type(member.value) for member in hint}
    if len(kinds) == 1 and (kind := kinds.pop()) in _SCALARS:
        return _SCALARS[kind]
    raise _refused(hint, "a member is stored as its value, and these are not of one simple type")


def _class(hint: type) -> pa.DataType:
    if hint is type(None):
        raise _refused(hint, "a column of nothing but nulls has no use")
    if issubclass(hint, enum.Enum):
        return _enum(hint)
    if issubclass(hint, decimal.Decimal):
        raise _refused(hint, "precision and scale must be said, as in pa.decimal128(18, 2)")
    if issubclass(hint, np.generic):
        return _numpy_scalar(hint)
    if hasattr(hint, "value_arrow_type") and hasattr(hint, "dim"):  # LanceDB's Vector(dim)
        return pa.list_(hint.value_arrow_type(), hint.dim())
    fields = _fields(hint)
    if fields is not None:
        return pa.struct([pa.field(name, arrow_type(kind)) for name, kind in fields.items()])
    if hint in _SEQUENCES or hint in _MAPPINGS:
        raise _refused(hint, "the type of the elements must be said, as in list[float]")
    if issubclass(hint, np.ndarray):
        raise _refused(
            hint, "element type and length must be said, as in pa.list_(pa.float32(), 384)"
        )
    raise _refused(hint, "no Arrow type follows from it")


def _fields(hint: type) -> dict[str, Any] | None:
    """Return names and hints of a record's fields; ``None`` for a class that is no record.

    Records are dataclasses, NamedTuples, TypedDicts, attrs classes and Pydantic models.
    """
    known = field_names(hint)
    if known is not None:
        names = list(known)
    elif issubclass(hint, tuple) and hasattr(hint, "_fields"):
        names = list(hint._fields)
    elif typing.is_typeddict(hint):
        names = list(hint.__annotations__)
    else:
        return None
    try:
        hints = typing.get_type_hints(hint, include_extras=True)
    except NameError as error:
        raise UdfError(f"the hints of {hint.__qualname__} do not evaluate: {error}") from error
    for name, field in (getattr(hint, "__pydantic_fields__", None) or {}).items():
        hints[name] = field.annotation  # of a generic model: what it was made with
    missing = [name for name in names if name not in hints]
    if missing:
        raise _refused(hint, f"its fields {', '.join(missing)} have no type hint")
    if not names:
        raise _refused(hint, "it has no fields")
    return {name: _required(hints[name]) for name in names}


def _required(hint: Any) -> Any:
    """Strip ``Required[...]`` and ``NotRequired[...]`` of a TypedDict's field."""
    if get_origin(hint) in {typing.Required, typing.NotRequired}:
        return get_args(hint)[0]
    return hint


def _numpy_scalar(hint: type[np.generic]) -> pa.DataType:
    if issubclass(hint, np.str_):
        return pa.string()
    if issubclass(hint, np.bytes_):
        return pa.binary()
    try:
        return pa.from_numpy_dtype(np.dtype(hint))
    except (TypeError, NotImplementedError, pa.ArrowException) as error:
        raise _refused(hint, "Arrow has no such type") from error


def _refused(hint: Any, why: str) -> UdfError:
    text = hint.__qualname__ if isinstance(hint, type) else str(hint)
    return UdfError(
        f"no column type can be derived from the hint {text!r}: {why}. "
        "Say it with @udf(data_type=pa.float32()) or another pyarrow type"
    )
