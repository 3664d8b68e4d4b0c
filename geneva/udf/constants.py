"""Values as text that is the same in every process and version of Python."""

from __future__ import annotations

import copyreg
import datetime as dt
import enum
import functools
import hashlib
import os
import pathlib
import re
import sys
import types
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf import source
from geneva.udf.project import is_own_module

_AS_TEXT = (Decimal, Fraction, dt.date, dt.time, dt.timedelta, pathlib.PurePath, uuid.UUID, range)
# Whose objects are written as pickle would take them apart.
_READ = {"numpy", "pandas", "pyarrow", "dateutil", "pytz", "geneva"} | sys.stdlib_module_names
# Not these: they differ from process to process or as soon as they are used, or hold credentials.
_VOLATILE = (
    "_io.", "difflib.", "io.", "itertools.", "numpy.random.", "os.", "pyarrow._azurefs.",
    "pyarrow._fs.", "pyarrow._gcsfs.", "pyarrow._hdfs.", "pyarrow._s3fs.", "random.", "tempfile.",
    "threading.", "unittest.", "weakref.",
)  # fmt: skip
# Of other packages: written as they show themselves, and what nobody needs to be warned of.
_SHOWN = {"torch.device", "torch.dtype"}
_SERVICES = ("Logger", "Session", "Client")
_NAMED = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_MAX_DEPTH = 50  # of what pickle would take apart
_LONG = 10_000  # bits; Python writes no longer integers in decimal (`sys.set_int_max_str_digits`)


class Constants(ABC):
    """Writes values; what defines behaviour is left to `definition`.

    Attributes
    ----------
    unread
        Kinds of objects of other packages, whose content is not written.
    """

    def __init__(self, *, ordered: bool) -> None:
        """Say whether the order of a dictionary's items counts."""
        self.unread: set[str] = set()
        self._ordered = ordered
        self._owns: dict[type, bool] = {}
        self._behaves: dict[type, bool] = {}
        self._open: set[int] = set()
        self._seen: dict[int, tuple[int, Any]] = {}
        self._depth = 0

    @abstractmethod
    def definition(self, value: Any) -> str | None:
        """Write a function, class, or what wraps one; ``None`` for all else."""

    def value(self, value: Any) -> str:
        """Write one value."""
        if value is None or value is ... or value is NotImplemented or isinstance(value, bool):
            return str(value)
        if isinstance(value, enum.Enum):
            kind = type(value)
            if kind not in self._behaves:
                self._behaves[kind] = any(source.own_functions(kind))
            behaviour = self.value(kind) if self._behaves[kind] else ""
            return f"enum{behaviour}:{kind.__qualname__}.{value.name}={self.value(value.value)}"
        if self.is_own_object(value):
            return self._once(value, self._own_object)
        text = self._plain(value) or self.definition(value)
        return text or self._once(value, self._foreign)

    def _once(self, value: Any, write: Callable[[Any], str]) -> str:
        """Write an object that one value holds twice only once, as pickle would."""
        if not self._open:
            self._seen = {}
        if id(value) in self._seen:
            return f"again:{self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value  # kept, so that its id is not used again
        return write(value)

    def _plain(self, value: Any) -> str | None:
        return self._simple(value) or self._numeric(value) or self._container(value)

    def _simple(self, value: Any) -> str | None:
        if isinstance(value, int):
            return f"int:{value:#x}" if value.bit_length() > _LONG else f"int:{int.__repr__(value)}"
        if isinstance(value, complex) and not isinstance(value, np.generic):
            return f"complex:{complex.__repr__(value)}"
        if isinstance(value, float) and not isinstance(value, np.generic):
            return f"float:{value.hex()}"
        if isinstance(value, str):
            return f"str:{str.__str__(value)!a}"
        if isinstance(value, bytes | bytearray):
            return f"bytes:{bytes(value).hex()}"
        if isinstance(value, dt.datetime | dt.time) and value.tzinfo is not None:
            return f"{type(value).__name__}:{value}:{value.fold}:{self.value(value.tzinfo)}"
        if isinstance(value, _AS_TEXT):
            return f"{type(value).__name__}:{value}"
        if isinstance(value, re.Pattern):
            return f"pattern:{value.flags}:{self.value(value.pattern)}"
        return None

    def _numeric(self, value: Any) -> str | None:
        if isinstance(value, np.dtype | pa.DataType | pa.Schema | pa.Field):
            return f"type:{value}"
        if isinstance(value, np.generic):
            return f"numpy:{value.dtype.str}:{self.value(value.item())}"
        masked = sys.modules.get("numpy.ma")  # whose import takes as long as a small UDF's digest
        if masked is not None and isinstance(value, masked.MaskedArray):
            parts = (np.asarray(value.data), masked.getmaskarray(value), value.fill_value)
            return f"masked({','.join(map(self.value, parts))})"
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return f"array:{value.shape}:{self.value(value.tolist())}"
            data = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"array:{value.dtype.str}:{value.shape}:{data}"
        if isinstance(value, pa.Scalar):
            return f"arrow:{value.type}:{self.value(value.as_py())}"
        if isinstance(value, pa.Array | pa.ChunkedArray):
            if pa.types.is_primitive(value.type) and not value.null_count:
                return f"arrow:{value.type}:{self.value(np.asarray(value))}"
            return f"arrow:{value.type}:{self.value(value.to_pylist())}"
        return None

    def _container(self, value: Any) -> str | None:
        if not isinstance(value, list | tuple | set | frozenset | Mapping):
            return None
        if id(value) in self._open:
            return "cycle"
        if isinstance(value, os._Environ):  # noqa: SLF001
            return "environment"
        self._open.add(id(value))
        try:
            if isinstance(value, Mapping):
                pairs = [(self.value(k), self.value(v)) for k, v in value.items()]
                items = [f"{key}:{item}" for key, item in pairs]
                factory = getattr(value, "default_factory", None)
                missing = "" if factory is None else self.value(factory)
                # What has one value for all keys is a set, and may have been made of one.
                ordered = self._ordered and len({item for _, item in pairs}) > 1
                return missing + "{" + ",".join(items if ordered else sorted(items)) + "}"
            if isinstance(value, set | frozenset):
                # Numbers of definitions must not follow the order of a set.
                items = [self.value(item) for item in sorted(value, key=_rank)]
                return "set{" + ",".join(sorted(items)) + "}"
            items = [self.value(item) for item in value]
            return f"{'list' if isinstance(value, list) else 'tuple'}[{','.join(items)}]"
        finally:
            self._open.discard(id(value))

    def is_own_object(self, value: Any) -> bool:
        """Whether it is an instance of a class of the user's."""
        kind = type(value)
        if kind not in self._owns:
            self._owns[kind] = not issubclass(kind, type) and is_own_module(kind.__module__)
        return self._owns[kind]

    def _own_object(self, value: Any) -> str:
        """Write class, attributes, and what it is as a number, text, array or container."""
        kind = type(value)
        plain = self._plain(value) or ""
        self._open.add(id(value))
        try:
            slots = [n for base in kind.__mro__ for n in _slots(base) if hasattr(value, n)]
            state = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
            for name in [n for n in state if _is_cached(kind, n)]:
                del state[name]
            written = [f"{name}={self.value(item)}" for name, item in sorted(state.items())]
            return f"object({self.value(kind)},{plain},{written})"
        finally:
            self._open.discard(id(value))

    def _foreign(self, value: Any) -> str:
        """Write an object of Python or of a package, as pickle would take it apart."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(value, _NAMED):
            owner = getattr(value, "__self__", None)
            bound = (
                "" if owner is None or isinstance(owner, types.ModuleType) else self.value(owner)
            )
            home = getattr(value, "__objclass__", value)
            return f"named:{getattr(home, '__module__', None)}.{value.__qualname__}({bound})"
        if isinstance(value, Iterator) or f"{kind.__module__}.".startswith(_VOLATILE):
            return f"object:{name}"
        if kind.__module__.partition(".")[0] not in _READ:
            known = getattr(value, "__qualname__", None) if callable(value) else None
            if isinstance(known, str):
                return f"named:{getattr(value, '__module__', None)}.{known}"
            if name in _SHOWN:
                return f"object:{name}:{value!a}"
            self.unread |= set() if name.endswith(_SERVICES) else {name}
            return f"object:{name}"
        if self._depth > _MAX_DEPTH:
            self.unread.add(name)
            return f"object:{name}"
        self._open.add(id(value))
        self._depth += 1
        try:
            parts = _taken_apart(value)
            return f"object:{name}({','.join(map(self.value, parts))})"
        except Exception:  # mostly, it cannot be pickled, and so neither can the UDF
            self.unread.add(name)
            return f"object:{name}"
        finally:
            self._depth -= 1
            self._open.discard(id(value))


def _taken_apart(value: Any) -> list[Any]:
    """Return what an object is made of."""
    kind = type(value)
    if kind.__module__.partition(".")[0] == "pandas":  # whose pickles change as soon as it is used
        if hasattr(value, "columns") and hasattr(value, "items"):
            return [value.index, value.columns, *(column.array for _, column in value.items())]
        if hasattr(value, "array") and hasattr(value, "name"):
            index = value.index if hasattr(value, "index") else None
            return [str(value.dtype), value.name, index, value.to_numpy()]
        if hasattr(value, "dtype") and hasattr(value, "to_numpy"):
            return [str(value.dtype), value.to_numpy()]
    reducer: Any = copyreg.dispatch_table.get(kind)
    reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return [str(getattr(value, "__module__", None)), reduced]
    parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
    return [_without_cache(part) for part in parts]


def _without_cache(state: Any) -> Any:
    if type(state) is not dict:
        return state
    return {name: item for name, item in state.items() if name != "_cache"}


def _rank(item: Any) -> str:
    thing = item if isinstance(item, types.FunctionType | type) else type(item)
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_cached(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), functools.cached_property)


def _slots(cls: type) -> Sequence[str]:
    slots = vars(cls).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else [n for n in slots if isinstance(n, str)]
    hidden = f"_{cls.__name__.lstrip('_')}"
    return [
        hidden + n if n.startswith("__") and not n.endswith("__") else n
        for n in names
        if n not in ("__dict__", "__weakref__")
    ]
