"""What a UDF is, as one hash.

With an explicit `version`, that stands for the code. Else the code is written out as its syntax
tree without comments, docstrings, hints and layout, together with what it takes from outside and
that belongs to the user: functions and classes, called at any depth, constants, closure values
and defaults. Installed packages and model weights are not covered: that is what `version` is for.

Nothing here depends on the process or on Python's minor version: no `hash`, no `id`, no bytecode
(except, with a warning, where there is no source), no `repr` of text beyond ASCII.
"""

from __future__ import annotations

import ast
import datetime as dt
import enum
import functools
import hashlib
import pathlib
import re
import sys
import types
import uuid
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.udf import source
from geneva.udf.project import is_own_module

_AS_TEXT = (Decimal, Fraction, dt.date, dt.time, dt.timedelta, pathlib.PurePath, uuid.UUID, range)


def of_version(name: str, target: Any, version: str) -> str:
    """Return the hash of the version that stands for the code."""
    qualname = getattr(target, "__qualname__", name).rpartition("<locals>.")[2]
    return _sha256("version", qualname, version)


def of_code(name: str, target: Any, form: str) -> str:
    """Return the hash of the code; `form` says in what form it is given its inputs."""
    writer = _Writer()
    root = writer.value(target)
    if writer.without_source:
        names = ", ".join(sorted(writer.without_source))
        warnings.warn(
            f"UDF {name!r}: no source for {names} (or it was edited since it was imported), so its "
            "digest is that of the bytecode and changes with Python's version; import it anew, "
            "or give it @udf(version=...)",
            stacklevel=4,
        )
    return _sha256("code", form, root, *writer.lines())


def complete(
    code_digest: str, data_type: pa.DataType, columns: Sequence[str], params: Mapping[str, Any]
) -> str:
    """Return the hash of the whole UDF: code, type, inputs and parameters."""
    writer = _Writer()
    values = [f"{name}={writer.value(value)}" for name, value in sorted(params.items())]
    parts = ("udf", code_digest, str(data_type), *columns, "params", *values, *writer.lines())
    return _sha256(*parts)


def _sha256(*parts: str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        # Lengths keep ("ab", "c") and ("a", "bc") apart.
        data = part.encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(data))
        whole.update(data)
    return whole.hexdigest()


class _Writer:
    """Writes values and definitions as text; each definition once, others refer to its number."""

    def __init__(self) -> None:
        self.without_source: set[str] = set()
        self._lines: list[str] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._open: set[int] = set()
        self._constants: list[tuple[tuple[int, str], str]] = []
        self._mutated: set[tuple[int, str]] = set()

    def lines(self) -> list[str]:
        """Return all that was written; what any visited function changes is no constant."""
        constants = [
            f"constant {key[1]}={text}" for key, text in self._constants if key not in self._mutated
        ]
        return [*self._lines, *constants]

    def value(self, value: Any) -> str:
        """Write one value."""
        if value is None or value is ... or value is NotImplemented or isinstance(value, bool):
            return str(value)
        if isinstance(value, enum.Enum):
            return f"enum:{type(value).__qualname__}.{value.name}={self.value(value.value)}"
        for write in (self._simple, self._numeric, self._container, self._definition):
            text = write(value)
            if text is not None:
                return text
        return self._object(value)

    def _simple(self, value: Any) -> str | None:
        if type(value) in {int, complex}:
            return f"{type(value).__name__}:{value!r}"
        if isinstance(value, float) and not isinstance(value, np.generic):
            return f"float:{value.hex()}"
        if isinstance(value, str):
            return f"str:{str.__str__(value)!a}"
        if isinstance(value, bytes | bytearray):
            return f"bytes:{bytes(value).hex()}"
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
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return f"array:{value.shape}:{self.value(value.tolist())}"
            data = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"array:{value.dtype.str}:{value.shape}:{data}"
        if isinstance(value, pa.Scalar):
            return f"arrow:{value.type}:{self.value(value.as_py())}"
        if isinstance(value, pa.Array | pa.ChunkedArray):
            return f"arrow:{value.type}:{self.value(value.to_pylist())}"
        return None

    def _container(self, value: Any) -> str | None:
        if not isinstance(value, list | tuple | set | frozenset | Mapping):
            return None
        if id(value) in self._open:
            return "cycle"
        self._open.add(id(value))
        try:
            if isinstance(value, Mapping):
                items = sorted(f"{self.value(k)}:{self.value(v)}" for k, v in value.items())
                return "{" + ",".join(items) + "}"
            items = [self.value(item) for item in value]
            if isinstance(value, set | frozenset):
                return "set{" + ",".join(sorted(items)) + "}"
            return f"{'list' if isinstance(value, list) else 'tuple'}[{','.join(items)}]"
        finally:
            self._open.discard(id(value))

    def _definition(self, value: Any) -> str | None:
        """Write a function, class, or what wraps one."""
        if isinstance(value, types.ModuleType):
            return f"module:{value.__name__}"
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return f"partial({','.join(map(self.value, parts))})"
        if isinstance(value, types.MethodType):
            return f"method({self.value(value.__func__)},{self.value(value.__self__)})"
        if isinstance(value, types.FunctionType | type):
            return self._number(value)
        if _is_udf(value):
            if value.version is not None:
                return f"udf({value.code_digest},{self.value(value.params)})"
            return f"udf({self.value(value.target)},{self.value(value.params)})"
        if type(value).__name__ == "UdfFactory" and hasattr(value, "target"):
            return self.value(value.target)
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType) and callable(value):  # functools.cache
            return f"wrapped({type(value).__qualname__},{self.value(wrapped)})"
        return None

    def _object(self, value: Any) -> str:
        kind = type(value)
        if not is_own_module(kind.__module__) or id(value) in self._open:
            return f"object:{kind.__module__}.{kind.__qualname__}"
        self._open.add(id(value))
        try:
            state = getattr(value, "__dict__", None) or {
                name: getattr(value, name, None) for name in getattr(kind, "__slots__", ())
            }
            return f"object({self.value(kind)},{self.value(dict(state))})"
        finally:
            self._open.discard(id(value))

    def _number(self, value: types.FunctionType | type) -> str:
        if not is_own_module(value.__module__):
            return f"outside:{value.__module__}.{value.__qualname__}"
        if id(value) not in self._numbers:
            self._numbers[id(value)] = number = len(self._numbers)
            self._alive.append(value)
            text = self._class(value) if isinstance(value, type) else self._function(value)
            self._lines.append(f"#{number} {text}")
        return f"#{self._numbers[id(value)]}"

    def _function(self, function: types.FunctionType) -> str:
        node = source.function_tree(function)
        closure = _closure(function)
        defaults = [self.value(v) for v in function.__defaults__ or ()]
        defaults += [f"{k}={self.value(v)}" for k, v in (function.__kwdefaults__ or {}).items()]
        wrapped = getattr(function, "__wrapped__", None)
        inner = self.value(wrapped) if isinstance(wrapped, types.FunctionType) else ""
        if node is None:
            self.without_source.add(function.__qualname__)
            body = self._bytecode(function.__code__)
            names = source.Names(
                frozenset(_code_names(function.__code__)), frozenset(), frozenset()
            )
            used = self._outside(names, closure, function.__globals__)
        else:
            body, used = self._tree(node, closure, function.__globals__)
        return f"{body} defaults={defaults} wraps={inner} uses={used}"

    def _class(self, cls: type) -> str:
        node = source.class_tree(cls)
        functions = list(source.own_functions(cls))
        closure: dict[str, Any] = {}
        for function in functions:
            closure |= _closure(function)
        closure.pop("__class__", None)
        bases = [self.value(base) for base in cls.__bases__]
        if node is None:
            self.without_source.add(cls.__qualname__)
            # Among the members, the functions; the rest of a class without source is out of reach.
            return f"class bases={bases} {[self._function(f) for f in functions]}"
        names = functions[0].__globals__ if functions else _module_names(cls)
        body, used = self._tree(node, closure, names)
        return f"{body} bases={bases} uses={used}"

    def _tree(
        self, node: source.Node, closure: dict[str, Any], module_names: dict[str, Any]
    ) -> tuple[str, list[str]]:
        def keep(decorator: ast.expr) -> bool:
            return not _is_udf_decorator(decorator, closure, module_names)

        names = source.names_of(source.stripped(node, keep))
        used = self._outside(names, closure, module_names)
        return source.text_of(node, self.value, keep), used

    def _outside(
        self, names: source.Names, closure: dict[str, Any], module_names: dict[str, Any]
    ) -> list[str]:
        """Write what each outside name stands for; constants are kept apart until the end."""
        used = []
        self._mutated |= {(_space(n, closure, module_names), n) for n in names.mutated}
        for name in sorted(names.plain):
            if name in closure:
                found = closure[name]
            elif name in module_names:
                found = module_names[name]
            else:
                continue
            if isinstance(found, types.ModuleType):
                used.append(f"{name}={self.value(found)}")
                used += self._attributes(found, name, names)
            elif _is_constant(found):
                key = (_space(name, closure, module_names), name)
                self._constants.append((key, self.value(found)))
            else:
                used.append(f"{name}={self.value(found)}")
        return used

    def _attributes(self, module: types.ModuleType, name: str, names: source.Names) -> list[str]:
        used = set()
        for chain in sorted(names.chains):
            found: Any = module
            for part in chain[1:] if chain[0] == name else ():
                if not (isinstance(found, types.ModuleType) and is_own_module(found.__name__)):
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


def _is_udf(value: Any) -> bool:
    # By name, because the module that defines it imports this one.
    return type(value).__name__ == "UDF" and type(value).__module__.startswith("geneva.")


def _is_constant(value: Any) -> bool:
    return not (
        isinstance(value, types.FunctionType | types.MethodType | type | functools.partial)
        or callable(value)
    )


def _space(name: str, closure: dict[str, Any], module_names: dict[str, Any]) -> int:
    return 0 if name in closure else id(module_names)


def _closure(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    return found


def _module_names(cls: type) -> dict[str, Any]:
    module = sys.modules.get(cls.__module__)
    return vars(module) if module else {}


def _code_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names) | set(code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _code_names(constant)
    return names


def _is_udf_decorator(
    decorator: ast.expr, closure: dict[str, Any], module_names: dict[str, Any]
) -> bool:
    """Whether it is Geneva's own: its settings say how to run the code, not what it does."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    found = closure.get(name, module_names.get(name))
    return name == "udf" or (
        getattr(found, "__name__", "") == "udf"
        and str(getattr(found, "__module__", "")).startswith("geneva.")
    )
