"""What a UDF is, as one hash.

With an explicit `version`, that stands for the code. Else the code is written out as its syntax
tree without comments, docstrings, hints and layout, together with what it takes from outside and
that belongs to the user: functions and classes, called at any depth, constants, attributes of
classes, closure values and defaults. Objects of Python, NumPy, pandas and Arrow count by what
pickle would keep of them. Installed packages, and what their other objects hold (models, for one),
are not covered: that is what `version` is for, and a warning says so.

Nothing here depends on the process or on Python's minor version: no `hash`, no `id`, no bytecode
(except, with a warning, where there is no source), no `repr` of text beyond ASCII.
"""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from geneva.udf import source
from geneva.udf.constants import Constants
from geneva.udf.project import is_namespace, is_own, is_own_import, is_own_module


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
        _warn(
            f"UDF {name!r}: no source for {names} (or it was edited since it was imported), so its "
            "digest is that of the bytecode and changes with Python's version; import it anew, "
            "or give it @udf(version=...)"
        )
    lines = writer.lines()
    _warn_of_unread(name, writer.unread)
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
    writer = _Writer(ordered=False)
    values = [f"{key}={writer.value(value)}" for key, value in sorted(params.items())]
    parts = ("udf", code_digest, str(data_type), *columns, "params", *values, *writer.lines())
    if not versioned:
        _warn_of_unread(name, writer.unread)
    return _sha256(*parts)


def _warn_of_unread(name: str, unread: set[str]) -> None:
    if unread:
        _warn(
            f"UDF {name!r}: its digest does not see into {', '.join(sorted(unread))}, so a change "
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


class _Writer(Constants):
    """Writes values and definitions as text; each definition once, others refer to its number."""

    def __init__(self, *, ordered: bool = True) -> None:
        super().__init__(ordered=ordered)
        self.without_source: set[str] = set()
        self._members: list[tuple[str, str]] = []
        self._changed: set[str] = set()
        self._lines: list[str] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._constants: list[tuple[tuple[int, str], Any]] = []
        self._mutated: set[tuple[int, str]] = set()

    def lines(self) -> list[str]:
        """Return all that was written; what any visited function changes is no constant."""
        written: list[tuple[tuple[int, str], str]] = []
        while self._constants:
            # Not before all that was visited so far: a model that is loaded by then is none.
            waiting, self._constants = self._constants, []
            for key, found in waiting:
                if key not in self._mutated:
                    written.append((key, f"constant {key[1]}={self.value(found)}"))
        constants = [text for key, text in written if key not in self._mutated]
        members = [text for name, text in self._members if name not in self._changed]
        return [*self._lines, *constants, *members]

    def definition(self, value: Any) -> str | None:
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

    def _number(self, value: types.FunctionType | type) -> str:
        if id(value) not in self._numbers and not is_own(value):
            return f"outside:{value.__module__}.{value.__qualname__}"
        if id(value) not in self._numbers:
            self._numbers[id(value)] = number = len(self._numbers)
            self._alive.append(value)
            if isinstance(value, type):
                text = self._class(value)
                self._members += [(n, f"#{number}.{n}={v}") for n, v in self._attributes_of(value)]
            else:
                text = self._function(value)
            self._lines.append(f"#{number} {text}")
        return f"#{self._numbers[id(value)]}"

    def _function(self, function: types.FunctionType) -> str:
        scope = _Scope(_cells(function), function.__globals__)
        defaults = [self.value(v) for v in function.__defaults__ or ()]
        defaults += [f"{k}={self.value(v)}" for k, v in (function.__kwdefaults__ or {}).items()]
        wrapped = getattr(function, "__wrapped__", None)
        inner = self.value(wrapped) if isinstance(wrapped, types.FunctionType) else ""
        registry = getattr(function, "registry", None)  # functools.singledispatch
        if isinstance(registry, Mapping):
            inner += self.value(registry)
        read = self._tree(source.function_tree(function), scope)
        if read is None:
            self.without_source.add(function.__qualname__)
            body = self._bytecode(function.__code__)
            used = self._outside(source.names_of_code(function.__code__), scope)
        else:
            body, used = read
        return f"{body} defaults={defaults} wraps={inner} uses={used}"

    def _class(self, cls: type) -> str:
        functions = list(source.own_functions(cls))
        bases = [self.value(base) for base in cls.__bases__]
        cells = {n: c for f in functions for n, c in _cells(f).items() if n != "__class__"}
        read = self._tree(source.class_tree(cls), _Scope(cells, _module_names(cls, functions)))
        if read is None:
            self.without_source |= {cls.__qualname__} if functions else set()
            return f"class bases={bases} {[self._function(f) for f in functions]}"
        body, used = read
        return f"{body} bases={bases} uses={used}"

    def _attributes_of(self, cls: type) -> Iterator[tuple[str, str]]:
        """Yield what a class's attributes are now; its methods are part of its text."""
        unread, caches = set(self.unread), source.caches(source.class_tree(cls))
        if issubclass(cls, enum.Enum):
            yield "", str([(n, self.value(m.value)) for n, m in cls.__members__.items()])
        else:
            for name, member in list(vars(cls).items()):
                if (
                    name.startswith("__")
                    or name == "_abc_impl"
                    or name in caches
                    or _is_part(member, cls)
                ):
                    continue
                yield name, self.value(member)
        self.unread = unread  # how it made them is part of its text

    def _tree(self, node: source.Node | None, scope: _Scope) -> tuple[str, list[str]] | None:
        if node is None:
            return None

        def keep(decorator: ast.expr) -> bool:
            return not _is_udf_decorator(decorator, scope)

        try:
            names = source.names_of(source.stripped(node, keep))
        except ValueError:  # an f-string that `ast.unparse` of Python 3.11 cannot write
            return None
        used = self._outside(names, scope)
        return source.text_of(node, self.value, keep), used

    def _outside(self, names: source.Names, scope: _Scope) -> list[str]:
        """Write what each outside name stands for; constants are kept apart until the end."""
        used = []
        self._changed |= names.fields
        for name in sorted(names.plain):
            variable = scope.find(name)
            if variable is None:
                continue
            space, found = variable
            holds = isinstance(found, dict | list | set) or not self.is_own_object(found)
            if name in names.mutated or (name in names.touched and holds):
                self._mutated.add((space, name))
            if isinstance(found, types.ModuleType):
                used.append(f"{name}={self.value(found)}")
                used += self._attributes(found, name, names)
            elif _is_constant(found):
                self._constants.append(((space, name), found))
            else:
                used.append(f"{name}={self.value(found)}")
        for name, module, attribute in sorted(names.imports):
            used += self._imported(name, module, attribute, names, scope)
        return used

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
            self.unread.add(f"the module {module}")
            return []
        if isinstance(found, types.ModuleType):
            return self._attributes(found, name, names)
        return [f"{name}={self.value(found)}"]

    def _attributes(self, module: types.ModuleType, name: str, names: source.Names) -> list[str]:
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


def _is_udf(value: Any) -> bool:
    # By name, because the module that defines it imports this one.
    return type(value).__name__ == "UDF" and type(value).__module__.startswith("geneva.")


def _is_constant(found: Any) -> bool:
    return not isinstance(found, types.FunctionType | types.MethodType | type | functools.partial)


def _may_hold_own(module: types.ModuleType) -> bool:
    return is_namespace(module) or is_own_module(module.__name__)


def _cells(function: types.FunctionType) -> dict[str, types.CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _module_names(cls: type, functions: Sequence[types.FunctionType]) -> Mapping[str, Any]:
    """Return the globals of a class; a decorator's wrapper has those of another module."""
    for function in functions:
        if function.__globals__.get("__name__") == cls.__module__:
            return function.__globals__
    module = sys.modules.get(cls.__module__)
    return vars(module) if module else {}


def _is_part(member: Any, cls: type) -> bool:
    """Whether a member is a method, property or slot of the class itself."""
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
        return True
    for name in ("__func__", "fget", "func", "__wrapped__"):
        inner = getattr(member, name, None)
        member = inner if isinstance(inner, types.FunctionType) else member
    return isinstance(member, types.FunctionType) and member.__qualname__.startswith(
        f"{cls.__qualname__}."
    )


def _is_udf_decorator(decorator: ast.expr, scope: _Scope) -> bool:
    """Whether it is Geneva's own: its settings say how to run the code, not what it does."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    _, found = scope.find(name) or (0, None)
    return name == "udf" or (
        getattr(found, "__name__", "") == "udf"
        and str(getattr(found, "__module__", "")).startswith("geneva.")
    )
