"""The syntax tree of a function or class, in a form that no Python version changes."""

from __future__ import annotations

import ast
import contextlib
import copy
import dis
import functools
import linecache
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from typing import Any

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# What is no behaviour: hints, layout, and `ctx`, which the place in the tree implies.
_SKIPPED = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "type_ignores"}
# Threads that parse at the same time may disturb each other: where one is interrupted by the
# garbage collector, "AST constructor recursion depth mismatch" (Python 3.11.7, its gh-106905).
_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Names:
    """Names that code takes from outside itself.

    `plain` are single names and `chains` dotted ones, such as ``("config", "RATE")``; `changed` are
    those that the code itself assigns to, whole or in part, and `fields` the attributes, of
    whatever, that it does. `imports` are what it imports itself: its name for it, the module, and
    which name of the module, if any.
    """

    plain: frozenset[str]
    chains: frozenset[tuple[str, ...]]
    changed: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    imports: frozenset[tuple[str, str, str]] = frozenset()


def function_tree(function: types.FunctionType) -> Node | None:
    """Return the tree of a function or lambda, or ``None`` where there is no source of it.

    That of another one, in a file that was edited since it was imported, is none.
    """
    code = function.__code__
    tree = _file_tree(code.co_filename, function.__globals__)
    if tree is None or not _is_of_file(function):
        return None
    if code.co_name == "<lambda>":
        return _lambda(tree, code)
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS) and node.name == code.co_name:
            lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
            if min(lines) == code.co_firstlineno:
                return node
    return None


def class_tree(cls: type) -> Node | None:
    """Return the tree of a class, or ``None`` where there is no source.

    Found through its methods where it has any: their code knows file and line, also in notebooks.
    """
    for method in own_functions(cls):
        tree = _file_tree(method.__code__.co_filename, method.__globals__)
        line = method.__code__.co_firstlineno
        around = [
            node
            for node in ast.walk(tree or ast.Module([], []))
            if isinstance(node, ast.ClassDef)
            and node.name == cls.__name__
            and node.lineno <= line <= (node.end_lineno or 0)
        ]
        if around:
            loaded = all(map(_is_of_file, own_functions(cls)))
            return max(around, key=lambda node: node.lineno) if loaded else None
    module = sys.modules.get(cls.__module__)
    tree = _file_tree(getattr(module, "__file__", None) or "", vars(module) if module else {})
    named = [node for path, node in _classes(tree) if path == cls.__qualname__] if tree else []
    return named[-1] if named else None


def own_functions(cls: type) -> Iterator[types.FunctionType]:
    """Yield the functions that a class defines itself, properties and the like unwrapped."""
    for member in list(vars(cls).values()):
        for part in (
            member,
            getattr(member, "__func__", None),
            getattr(member, "fget", None),
            getattr(member, "fset", None),
            getattr(member, "func", None),
        ):
            if isinstance(part, types.FunctionType) and part.__module__ == cls.__module__:
                yield part


def names_of(code: types.CodeType, node: Node | None) -> Names:
    """Return the names that a function takes from outside; ``node`` is its tree, if there is one.

    The names are those of the bytecode, where locals and globals cannot be confused; what is
    imported or assigned to, only the tree tells.
    """
    chains = set(_loads(code, frozenset(code.co_freevars)))
    return _names(chains, node)


def names_of_class(node: ast.ClassDef) -> Names:
    """Return the names that a class takes from outside, its methods' and its body's.

    By the tree, since a method that a decorator has replaced leaves no bytecode here.
    """
    return _names(set(_read(node, frozenset())), node)


def _read(node: ast.AST, local: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names that a tree reads and that are no local variables of its functions."""
    if isinstance(node, ast.Attribute | ast.Name) and (chain := _chain(node)):
        yield from () if chain[0] in local else (chain,)
        return
    if isinstance(node, (*_FUNCTIONS, ast.Lambda)):
        for outer in getattr(node, "decorator_list", []):
            yield from _read(outer, local)
        inside = list(ast.walk(node))
        made = {n.id for n in inside if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        made |= {n.arg for n in inside if isinstance(n, ast.arg)}
        local |= made - {x for n in inside if isinstance(n, ast.Global) for x in n.names}
    hint = getattr(node, "returns", None)  # hints of functions do nothing
    for inner in ast.iter_child_nodes(node):
        if inner is not hint and not isinstance(inner, ast.arg):
            yield from _read(inner, local)


def _names(chains: set[tuple[str, ...]], node: Node | None) -> Names:
    imports = frozenset(_imports(node)) if node else frozenset[tuple[str, str, str]]()
    # A module that is imported inside is a local variable there: its attributes are the tree's.
    heads = {name for name, _, _ in imports}
    for part in ast.walk(node) if node and heads else ():
        if isinstance(part, ast.Attribute) and (chain := _chain(part)) and chain[0] in heads:
            chains.add(chain)
    changed, fields = _changed(node) if node else (set[str](), set[str]())
    plain = {chain[0] for chain in chains} - heads
    return Names(
        frozenset(plain), frozenset(chains), frozenset(changed), frozenset(fields), imports
    )


def _loads(code: types.CodeType, free: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names that code, and code within it, loads from outside."""
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME")) or (
            step.opname.startswith("LOAD_DEREF") and step.argval in free
        ):
            chain = (step.argval,)
            yield chain
        elif chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, step.argval)
            yield chain
        elif step.opname not in ("CACHE", "PUSH_NULL"):
            chain = ()
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _loads(inner, free & frozenset(inner.co_freevars))


def text_of(node: Node, constant: Callable[[Any], str], keep: Callable[[ast.expr], bool]) -> str:
    """Write a tree without hints, docstrings and layout.

    Parameters
    ----------
    constant
        Writes a literal value.
    keep
        Says whether a decorator of the outermost definition is part of what it does.
    """
    return _Writer(constant).write(node, keep)


class _Writer:
    def __init__(self, constant: Callable[[Any], str]) -> None:
        self._constant = constant

    def write(self, node: Node, keep: Callable[[ast.expr], bool]) -> str:
        """Write the outermost definition; of its decorators only those to keep."""
        if isinstance(node, ast.Lambda):
            return self._node(node)
        kept = copy.copy(node)  # the tree is shared: another thread may look a function up in it
        kept.decorator_list = [d for d in node.decorator_list if keep(d)]
        return self._node(kept)

    def _node(self, node: ast.AST, in_record: bool = False) -> str:
        if isinstance(node, ast.Constant):
            return self._constant(node.value)
        if isinstance(node, ast.AnnAssign):
            return self._hinted(node, in_record)
        if isinstance(node, ast.JoinedStr):
            return f"JoinedStr({self._pieces(node)})"
        record = isinstance(node, ast.ClassDef) and bool(node.decorator_list or node.bases)
        parts = []
        for name in sorted(node._fields):
            value = getattr(node, name, None)
            if name in _SKIPPED or value is None or value == []:
                continue
            if name == "format_spec" and isinstance(value, ast.JoinedStr) and not value.values:
                continue
            parts.append(f"{name}={self._value(value, record)}")
        return f"{type(node).__name__}({','.join(parts)})"

    def _value(self, value: Any, record: bool) -> str:
        if isinstance(value, ast.AST):
            return self._node(value)
        if isinstance(value, list):
            kept = [item for item in value if not _is_idle(item)]
            return "[" + ",".join(self._item(item, record) for item in kept) + "]"
        return self._constant(value)

    def _item(self, item: Any, record: bool) -> str:
        if item is None:  # a keyword-only parameter without default, a ** in a dict
            return "-"
        return self._node(item, record) if isinstance(item, ast.AST) else self._constant(item)

    def _hinted(self, node: ast.AnnAssign, in_record: bool) -> str:
        """Write a plain assignment, except where hints make fields."""
        value = self._node(node.value) if node.value is not None else ""
        target = self._node(node.target)
        if in_record:
            return f"Field({target},{value})"
        return f"Assign(targets=[{target}],value={value})" if value else ""

    def _pieces(self, node: ast.JoinedStr) -> str:
        """Merge neighbouring texts, which Python versions split differently."""
        pieces: list[str] = []
        text = ""
        for value in node.values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                text += value.value
                continue
            pieces += [self._constant(text)] if text else []
            text = ""
            pieces.append(self._node(value))
        pieces += [self._constant(text)] if text else []
        return ",".join(pieces)


def _is_idle(item: Any) -> bool:
    """Whether a statement does nothing: a docstring, `pass`, or a bare hint in a function."""
    if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
        return True
    return isinstance(item, ast.Pass)


def _chain(node: ast.expr) -> tuple[str, ...]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else ()


def _changed(node: Node) -> tuple[set[str], set[str]]:
    """Return what code assigns to, or to a part of: variables and attributes.

    ``global x``, ``x[k] = v``, ``Config.RATE = 2``, ``self.seen[k] = v``.
    """
    changed: set[str] = set()
    fields: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Global | ast.Nonlocal):
            changed |= {*part.names}
        elif isinstance(part, ast.Subscript | ast.Attribute) and not isinstance(part.ctx, ast.Load):
            holder: ast.expr = part
            while isinstance(holder, ast.Subscript):
                holder = holder.value
            if isinstance(holder, ast.Attribute):
                fields.add(holder.attr)
            while isinstance(holder, ast.Subscript | ast.Attribute):
                holder = holder.value
            if isinstance(holder, ast.Name):
                changed.add(holder.id)
    return changed, fields


def _imports(node: Node) -> Iterator[tuple[str, str, str]]:
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            for alias in part.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name, ""
        elif isinstance(part, ast.ImportFrom):
            module = "." * part.level + (part.module or "")
            yield from ((alias.asname or alias.name, module, alias.name) for alias in part.names)


def _file_tree(file: str, module_names: dict[str, Any]) -> ast.Module | None:
    if not file:
        return None
    linecache.checkcache(file)
    lines = linecache.getlines(file, module_names)
    return _parsed("".join(lines)) if lines else None


def _is_of_file(function: types.FunctionType) -> bool:
    """Whether the file that a function was made of still holds it as it was.

    What a loader compiles in its own way (pytest's, for one) cannot be compared, and is believed;
    so is text that is no file, such as a notebook's cell: it is made once.
    """
    code, loader = function.__code__, function.__globals__.get("__loader__")
    if loader is not None and type(loader) is not SourceFileLoader:
        return True
    entry = linecache.cache.get(code.co_filename)
    if entry is None or len(entry) == 1 or entry[1] is None:
        return True
    return code in _compiled("".join(entry[2]))


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> frozenset[types.CodeType]:
    """Return all code that the text of a module holds."""
    found: set[types.CodeType] = set()
    try:
        pending = [compile(text, "<udf>", "exec", dont_inherit=True)]
    except SyntaxError:
        return frozenset()
    while pending:
        code = pending.pop()
        found.add(code)
        pending += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return frozenset(found)


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module | None:
    try:
        return _tree(text)
    except SyntaxError:
        return None


def _tree(text: str) -> ast.Module:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


def _classes(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from _classes(node, f"{prefix}{node.name}.")
        elif isinstance(node, _FUNCTIONS):
            yield from _classes(node, f"{prefix}{node.name}.<locals>.")
        else:
            yield from _classes(node, prefix)


def _lambda(tree: ast.Module, code: types.CodeType) -> ast.Lambda | None:
    """Find a lambda among several of its line by the columns that its instructions come from."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
    ]
    if len(found) < 2:
        return found[0] if found else None
    spans = [
        (line, column)
        for line, _, column, _ in code.co_positions()
        if line is not None and column is not None and (line, column) > (code.co_firstlineno, 0)
    ]
    if not spans:
        return None

    def covered(node: ast.Lambda) -> tuple[int, float]:
        body = node.body
        first, last = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
        inside = sum(first <= span <= last for span in spans)
        return inside, -math.dist((0, 0), (body.end_lineno or 0, body.end_col_offset or 0))

    return max(found, key=covered)
