"""What a UDF is, as one hash.

The rule, which docs/guides/writing-udfs.md gives to users:

- With `version`, that stands for the code. Else the source of the function or class counts,
  without comments, docstrings, layout and the hints of functions;
- so do the functions and classes of the user's own project that it names, at any depth;
- and the values of globals, closures and defaults that these name, if they are plain (None,
  booleans, numbers, text, bytes, dates, enums, dataclasses, and containers of these), or an array,
  Series, frame or table of at most `LARGEST` bytes. What the code itself assigns to is no constant;
- parameters count the same way, whatever the order of a dictionary's keys;
- what belongs to another package counts by its qualified name.

Anything else has a state that is not seen: it is named once in a warning, and wants `version=`.
A digest is taken when a UDF is bound, and stored; what is stored is never computed again.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import datetime as dt
import enum
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
import types
import typing
import uuid
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf import source
from geneva.udf.project import is_namespace, is_own, is_own_import, is_own_module

LARGEST = 64 * 1024 * 1024  # bytes of an array or table; hashing them takes about 0.2 s
_TEXTS = (
    *(Decimal, Fraction, pathlib.PurePath, uuid.UUID, range, slice),
    *(dt.date, dt.timedelta, dt.tzinfo),
    *(pa.DataType, pa.Field, pa.Schema, np.dtype, types.UnionType, typing.TypeVar),
)
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_LONG = 10_000  # bits; Python writes no longer integers in decimal (`sys.set_int_max_str_digits`)


def of_version(name: str, target: Any, version: str) -> str:
    """Return the hash of the version that stands for the code."""
    qualname = getattr(target, "__qualname__", name).rpartition("<locals>.")[2]
    return _sha256("version", qualname, version)


def of_code(name: str, target: Any, form: str) -> str:
    """Return the hash of the code; `form` says in what form it is given its inputs."""
    writer = _DigestWriter()
    root = writer.value(target)
    if writer.without_source:
        names = ", ".join(sorted(writer.without_source))
        _warn(
            f"UDF {name!r}: no source for {names} (or it was edited since it was imported), so its "
            "digest is that of the bytecode and changes with Python's version; import it anew, "
            "or give it @udf(version=...)"
        )
    lines = writer.lines()
    _warn_of_unseen(name, writer.unseen)
    return _sha256("code", form, root, *lines)


def complete(
    name: str,
    code_digest: str,
    data_type: pa.DataType,
    columns: Sequence[str],
    params: Mapping[str, Any],
    *,
    versioned: bool,
) -> str:
    """Return the hash of the whole UDF: code, type, inputs and parameters."""
    writer = _DigestWriter(ordered=False)
    values = [f"{key}={writer.value(value)}" for key, value in sorted(params.items())]
    parts = ("udf", code_digest, str(data_type), *columns, "params", *values, *writer.lines())
    if not versioned:
        _warn_of_unseen(name, writer.unseen)
    return _sha256(*parts)


def _warn_of_unseen(name: str, unseen: set[str]) -> None:
    if unseen:
        _warn(
            f"UDF {name!r}: its digest does not see into {', '.join(sorted(unseen))}, so a change "
            "there makes nothing stale; give it @udf(version=...), and another one when it changes"
        )


def _warn(message: str) -> None:
    """Warn at the user's line."""
    level, frame = 1, sys._getframe(0)  # noqa: SLF001  # `skip_file_prefixes` is of Python 3.12
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("geneva."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _sha256(*parts: str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        # Lengths keep ("ab", "c") and ("a", "bc") apart.
        data = part.encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(data))
        whole.update(data)
    return whole.hexdigest()


# ----------------------------------------------------------------------------------------- values


def _leaf(value: Any) -> str | None:
    """Write a value that holds no other; None for all else."""
    match value:
        case None | bool() | types.EllipsisType() | types.NotImplementedType():
            return str(value)
        case np.generic():
            return f"numpy:{value.dtype.str}:{_leaf(value.item())}"
        case int() | float() | complex():
            return _number(value)
        case str():
            return f"str:{str.__str__(value)!a}"
        case bytes() | bytearray():
            return f"bytes:{bytes(value).hex()}"
        case dt.datetime() | dt.time():
            return f"{type(value).__name__}:{value.isoformat()}:{value.fold}:{value.tzinfo}"
        case re.Pattern():
            return f"pattern:{value.flags}:{_leaf(value.pattern)}"
        case _ if isinstance(value, _TEXTS) or typing.get_origin(value) is not None:
            return f"{type(value).__name__}:{value}"
        case _:
            return None


def _number(value: complex) -> str:
    if isinstance(value, int):
        return f"int:{value:#x}" if value.bit_length() > _LONG else f"int:{int.__repr__(value)}"
    if isinstance(value, float):
        return f"float:{value.hex()}"
    return f"complex:{complex.__repr__(value)}"


def _rows(value: Any) -> tuple[str, bytes] | None:
    """Return the type and the bytes of an array or table, found by the protocols that they offer.

    None for what is none, or cannot be read; an empty type for one that is too large.
    """
    if isinstance(value, type):
        return None
    try:
        if isinstance(value, pa.Array | pa.ChunkedArray):
            value = pa.table({"values": value})
        elif hasattr(value, "to_frame"):  # a Series or an index; a frame has its index as well
            value = value.to_frame()
        if hasattr(value, "__arrow_c_stream__") or isinstance(value, pa.RecordBatch):
            table = pa.table(value).combine_chunks()
            kind = str(table.schema.remove_metadata())
            return ("", b"") if table.nbytes > LARGEST else (kind, _ipc(table))
        if hasattr(value, "__array__"):
            return _numpy(np.asarray(value))
    except Exception:  # whatever another library's conversion raises
        return None
    return None


def _numpy(array: np.ndarray[Any, Any]) -> tuple[str, bytes] | None:
    if array.dtype.hasobject:
        return None
    kind = f"{array.dtype.str}{array.dtype.names or ''}{array.shape}"
    return ("", b"") if array.nbytes > LARGEST else (kind, np.ascontiguousarray(array).tobytes())


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None)
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a definition's outside names are looked up."""

    cells: Mapping[str, types.CellType]
    module: Mapping[str, Any]

    def find(self, name: str) -> tuple[int, Any] | None:
        """Return which variable a name is, and its value."""
        if name in self.cells:
            try:
                return id(self.cells[name]), self.cells[name].cell_contents
            except ValueError:  # not yet assigned
                return None
        return (id(self.module), self.module[name]) if name in self.module else None


class _DigestWriter:
    """Writes values and definitions as text; each definition once, others refer to its number."""

    def __init__(self, *, ordered: bool = True) -> None:
        self.without_source: set[str] = set()
        self.unseen: set[str] = set()
        self._ordered = ordered  # whether the order of a dictionary's items counts
        self._lines: list[str] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # what was numbered, so that no id is used again
        self._open: set[int] = set()
        self._constants: list[tuple[tuple[int, str], Any]] = []
        self._changed: set[tuple[int, str]] = set()
        self._changed_fields: set[str] = set()

    def lines(self) -> list[str]:
        """Return all that was written; what any visited function assigns to is no constant."""
        written: list[tuple[tuple[int, str], str]] = []
        while self._constants:
            # Only once all functions so far were visited: one of them may assign to it.
            waiting, self._constants = self._constants, []
            for key, found in waiting:
                if not self._assigned(key):
                    written.append((key, f"constant {key[1]}={self.value(found)}"))
        return [*self._lines, *(text for key, text in written if not self._assigned(key))]

    def _assigned(self, key: tuple[int, str]) -> bool:
        """Whether any visited function assigns to a variable, or to an attribute of a class."""
        return key in self._changed or key[1].rpartition(".")[2] in self._changed_fields

    def value(self, value: Any) -> str:
        """Write one value."""
        text = None if isinstance(value, enum.Enum) else _leaf(value)
        if text is not None and not _is_own_kind(value):
            return text
        if id(value) in self._open:
            return "cycle"
        self._open.add(id(value))
        try:
            kind = self.value(type(value)) if _is_own_kind(value) else ""
            return kind + (text or self._container(value) or self._definition(value))
        finally:
            self._open.discard(id(value))

    def _container(self, value: Any) -> str | None:
        """Write a value that is made of others."""
        match value:
            case enum.Enum():
                return f"{type(value).__qualname__}.{value.name}={self.value(value.value)}"
            case dict() | types.MappingProxyType():
                return self._mapping(value)
            case set() | frozenset():
                # The numbers of definitions must not follow the order of a set.
                items = [self.value(item) for item in sorted(value, key=_rank)]
                return "set{" + ",".join(sorted(items)) + "}"
            case list() | tuple() | deque():
                kind = "tuple" if isinstance(value, tuple) else "list"
                return f"{kind}[{','.join(map(self.value, value))}]"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
            inner = [f"{name}={self.value(getattr(value, name))}" for name in fields]
            return f"{_qualified(type(value))}({','.join(inner)})"
        return self._array(value)

    def _mapping(self, value: Mapping[Any, Any]) -> str:
        pairs = [(self.value(k), self.value(v)) for k, v in value.items()]
        items = [f"{key}:{item}" for key, item in pairs]
        factory = getattr(value, "default_factory", None)  # of a defaultdict
        missing = self.value(factory) if factory is not None else ""
        # Keys that all have one value are a set, and may have been made of one, in any order.
        ordered = self._ordered and len({item for _, item in pairs}) > 1
        return missing + "{" + ",".join(items if ordered else sorted(items)) + "}"

    def _array(self, value: Any) -> str | None:
        if isinstance(value, pa.Scalar):
            return f"arrow:{value.type}:{self.value(value.as_py())}"
        if (rows := _rows(value)) is not None:
            kind, data = rows
            if not kind:
                self.unseen.add(f"{_qualified(type(value))} of more than {LARGEST >> 20} MB")
            mask = getattr(value, "mask", None) if isinstance(value, np.ndarray) else None
            hidden = "" if mask is None else self.value(np.asarray(mask))
            return f"rows:{kind}:{hashlib.sha256(data).hexdigest()}{hidden}"
        if isinstance(value, np.ndarray):
            return f"array:{value.shape}:{self.value(value.tolist())}"
        return None

    # -- definitions ----------------------------------------------------------------------------

    def _definition(self, value: Any) -> str:
        """Write a function, class, or what wraps or names one; of all else, its type."""
        match value:
            case types.ModuleType():
                return f"module:{value.__name__}"
            case functools.partial():
                parts = (value.func, value.args, value.keywords)
                return f"partial({','.join(map(self.value, parts))})"
            case types.MethodType():
                return f"method({self.value(value.__func__)},{self.value(value.__self__)})"
            case types.FunctionType() | type():
                return self._number(value)
        if _is_udf(value):
            code = value.code_digest if value.version is not None else self.value(value.target)
            return f"udf({code},{self.value(value.params)})"
        if type(value).__name__ == "UdfFactory" and hasattr(value, "target"):
            return self.value(value.target)
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and callable(value):  # functools.cache
            return f"wrapped({type(value).__qualname__},{self.value(wrapped)})"
        if (name := self._named(value)) is not None:
            return name
        kind = _qualified(type(value))
        self.unseen.add(kind)
        return f"object:{'' if _is_own_kind(value) else kind}"  # an own class stands before it

    def _named(self, value: Any) -> str | None:
        """Write what another package names: a builtin, a ufunc, a bound method of its types."""
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        home = getattr(getattr(value, "__objclass__", value), "__module__", None)
        if not (callable(value) and isinstance(name, str)) or is_own_module(home):
            return None
        module = sys.modules.get(str(home))
        if not isinstance(value, _BUILT_IN) and getattr(module, name, None) is not value:
            return None  # an object that calls itself like what it holds
        owner = getattr(value, "__self__", None)
        bound = "" if owner is None or isinstance(owner, types.ModuleType) else self.value(owner)
        return f"named:{home}.{name}({bound})"

    def _number(self, value: types.FunctionType | type) -> str:
        if id(value) not in self._numbers:
            if not is_own(value):
                return f"outside:{_qualified(value)}"
            self._numbers[id(value)] = number = len(self._numbers)
            self._alive.append(value)
            text = self._class(value) if isinstance(value, type) else self._function(value)
            self._lines.append(f"#{number} {text}")
        return f"#{self._numbers[id(value)]}"

    def _function(self, function: types.FunctionType) -> str:
        """Write a function with all that it names."""
        code, scope = function.__code__, _Scope(_cells(function), function.__globals__)
        wrapped = getattr(function, "__wrapped__", None)
        inner = self.value(wrapped) if isinstance(wrapped, types.FunctionType) else ""
        if _is_foreign_wrapper(function):  # another package's: what it does is its own affair
            registry = getattr(function, "registry", None)  # functools.singledispatch
            known = self.value(dict(registry)) if isinstance(registry, Mapping) else ""
            return f"wrapped({code.co_qualname},{inner},{known})"
        node = source.function_tree(function)
        names = source.names_of(code, node)
        if node is None:
            self.without_source.add(function.__qualname__)
            body = self._bytecode(code)
        else:
            body = source.text_of(node, self.value, lambda d: not _is_udf_decorator(d, scope))
        defaults = [self.value(v) for v in function.__defaults__ or ()]
        defaults += [f"{k}={self.value(v)}" for k, v in (function.__kwdefaults__ or {}).items()]
        used = self._outside(names, scope)
        return f"{body} defaults={defaults} wraps={inner} uses={used}"

    def _class(self, cls: type) -> str:
        functions = list(source.own_functions(cls))
        bases = [self.value(base) for base in cls.__bases__]
        node = source.class_tree(cls)
        if not isinstance(node, ast.ClassDef):
            self.without_source |= {cls.__qualname__} if functions else set()
            written = [self._function(function) for function in functions]
            made = [] if functions else [f"{n}={self.value(v)}" for n, v in _made_of(cls)]
            return f"class bases={bases} {written} {made}"
        cells = {n: c for f in functions for n, c in _cells(f).items() if n != "__class__"}
        scope = _Scope(cells, _module_names(cls, functions))
        names = source.names_of_class(node)
        bound = _bound_in_function(cls, node, scope)
        bases += [f"{n}={self.value(v)}" for n, v in bound]
        text = source.text_of(node, self.value, lambda d: not _is_udf_decorator(d, scope))
        return f"{text} bases={bases} uses={self._outside(names, scope)}"

    def _outside(self, names: source.Names, scope: _Scope) -> list[str]:
        """Write what each outside name stands for; constants are kept apart until the end."""
        used = []
        self._changed_fields |= names.fields
        for name in sorted(names.plain | names.changed):
            variable = scope.find(name)
            if variable is None:
                continue
            space, found = variable
            if name in names.changed:
                self._changed.add((space, name))
            if isinstance(found, types.ModuleType):
                used.append(f"{name}={self.value(found)}")
                used += self._attributes(found, name, names)
            elif _is_definition(found):
                used.append(f"{name}={self.value(found)}")
                self._members(found, name, names)
            elif name in names.plain:
                self._constants.append(((space, name), found))
        for name, module, attribute in sorted(names.imports):
            used += self._imported(name, module, attribute, names, scope)
        return used

    def _members(self, found: Any, name: str, names: source.Names) -> None:
        """Note the constants that dotted names such as ``Config.RATE`` take from a class."""
        for chain in names.chains if isinstance(found, type) and is_own(found) else ():
            if chain[0] != name or len(chain) < 2:
                continue
            held = getattr(found, chain[1], None)
            if not callable(held) and not isinstance(held, property):
                self._constants.append(((id(found), f"{found.__qualname__}.{chain[1]}"), held))

    def _imported(
        self, name: str, module: str, attribute: str, names: source.Names, scope: _Scope
    ) -> list[str]:
        """Write what a function imports itself, if it is the user's."""
        try:
            full = importlib.util.resolve_name(module, scope.module.get("__package__") or "")
            if not is_own_import(full):
                return []
            found: Any = importlib.import_module(full)
            if attribute:
                if not hasattr(found, attribute):
                    importlib.import_module(f"{full}.{attribute}")
                found = getattr(found, attribute)
            elif name == full.partition(".")[0]:
                found = sys.modules[name]
        except (Exception, SystemExit):  # whatever its code does
            self.unseen.add(f"the module {module}")
            return []
        if isinstance(found, types.ModuleType):
            return self._attributes(found, name, names)
        return [f"{name}={self.value(found)}"]

    def _attributes(self, module: types.ModuleType, name: str, names: source.Names) -> list[str]:
        """Write what dotted names that begin with a module lead to."""
        used = set()
        for chain in sorted(names.chains):
            found: Any = module
            for part in chain[1:] if chain[0] == name else ():
                if not (isinstance(found, types.ModuleType) and _may_hold_own(found)):
                    break
                found = getattr(found, part, None)
            if not isinstance(found, types.ModuleType):
                used.add(f"{'.'.join(chain)}={self.value(found)}")
        return sorted(used)

    def _bytecode(self, code: types.CodeType) -> str:
        constants = [
            self._bytecode(c) if isinstance(c, types.CodeType) else self.value(c)
            for c in code.co_consts
        ]
        return f"bytecode({code.co_code.hex()},{constants},{code.co_names},{code.co_varnames})"


def _is_own_kind(value: Any) -> bool:
    """Whether it is an instance of a class of the user's."""
    return not isinstance(value, type) and is_own_module(type(value).__module__)


def _is_udf(value: Any) -> bool:
    # By name, because the module that defines it imports this one.
    return type(value).__name__ == "UDF" and type(value).__module__.startswith("geneva.")


def _is_definition(found: Any) -> bool:
    return isinstance(found, types.FunctionType | types.MethodType | type | functools.partial)


def _is_foreign_wrapper(function: types.FunctionType) -> bool:
    """Whether another package made a function of the user's into this one."""
    home = function.__globals__.get("__name__")
    return home != function.__module__ and not is_own_module(home)


def _may_hold_own(module: types.ModuleType) -> bool:
    return is_namespace(module) or is_own_module(module.__name__)


def _cells(function: types.FunctionType) -> dict[str, types.CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _made_of(cls: type) -> Iterable[tuple[str, Any]]:
    """Return the content of a class without source: its members, or the names of its fields."""
    if issubclass(cls, enum.Enum):
        return [(name, member.value) for name, member in cls.__members__.items()]
    return [(name, getattr(cls, name)) for name in ("_fields", "__slots__") if hasattr(cls, name)]


def _bound_in_function(cls: type, node: ast.ClassDef, scope: _Scope) -> Iterable[tuple[str, Any]]:
    """Return attributes made of variables of the function around a class, which nothing else tells.

    Those variables are in no closure: the body of the class has run, and holds none.
    """
    for part in node.body if "<locals>" in cls.__qualname__ else ():
        targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
        read = [n.id for n in ast.walk(part) if isinstance(n, ast.Name)]
        if not isinstance(part, ast.Assign | ast.AnnAssign) or part.value is None:
            continue
        if any(
            scope.find(n) is None and not hasattr(builtins, n) for n in read if n not in vars(cls)
        ):
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            yield from ((n, vars(cls)[n]) for n in names if n in vars(cls))


def _module_names(cls: type, functions: Sequence[types.FunctionType]) -> Mapping[str, Any]:
    """Return the globals of a class; a decorator's wrapper has those of another module."""
    for function in functions:
        if function.__globals__.get("__name__") == cls.__module__:
            return function.__globals__
    module = sys.modules.get(cls.__module__)
    return vars(module) if module else {}


def _is_udf_decorator(decorator: ast.expr, scope: _Scope) -> bool:
    """Whether it is Geneva's own: its settings say how to run the code, not what it does."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    _, found = scope.find(name) or (0, None)
    return name == "udf" or (
        getattr(found, "__name__", "") == "udf"
        and str(getattr(found, "__module__", "")).startswith("geneva.")
    )


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _rank(item: Any) -> str:
    return _qualified(item if isinstance(item, types.FunctionType | type) else type(item))
