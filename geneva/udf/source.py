"""The syntax tree of a function or class, in a form that no Python version changes."""

from __future__ import annotations

import ast
import contextlib
import copy
import dis
import functools
import linecache
import math
import symtable
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
_MUTATORS = {
    "append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert",
    "remove", "discard", "move_to_end", "appendleft", "popleft", "__setitem__",
}  # fmt: skip
_CONTAINERS = {"Counter", "OrderedDict", "defaultdict", "deque", "dict", "list", "set"}


# Threads that parse at the same time may disturb each other: where one is interrupted by the
# garbage collector, "AST constructor recursion depth mismatch" (Python 3.11.7, its gh-106905).
_ATTEMPTS = 50


@dataclass(frozen=True, slots=True)
class Names:
    """Names that a tree takes from outside itself.

    `chains` are the dotted ones, such as ``("config", "RATE")``; `mutated` are those that the
    tree changes, and which are therefore no constants, `touched` those with a method that changes
    containers, and `fields` the attributes that it changes, of whatever. `imports` are what it
    imports itself: its name for it, the module, and which name of the module, if any.
    """

    plain: frozenset[str]
    chains: frozenset[tuple[str, ...]]
    mutated: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()
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


def caches(node: Node | None) -> set[str]:
    """Return attributes that a class sets to an empty list, dict or set.

    What is in them later was put there by code.
    """
    found = set()
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, ast.Assign | ast.AnnAssign) and _makes_empty(part.value):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _makes_empty(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        fills = value.func.id == "defaultdict"  # its argument is no content
        return value.func.id in _CONTAINERS and (fills or not (value.args or value.keywords))
    if isinstance(value, ast.List):
        return not value.elts
    return isinstance(value, ast.Dict) and not value.values


def names_of(node: Node) -> Names:
    """Return the names that a tree takes from outside."""
    loose = _outside(node)
    imports = frozenset(_imports(node))
    heads = loose | {name for name, _, _ in imports}
    chains = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and (chain := _chain(part)) and chain[0] in heads:
            chains.add(chain)
    mutated, touched, fields = _changes(node)
    plain, changed = frozenset(loose), frozenset(fields)
    return Names(plain, frozenset(chains), plain & mutated, plain & touched, changed, imports)


def names_of_code(code: types.CodeType) -> Names:
    """Return the names that bytecode takes from outside; what it changes cannot be told."""
    plain, chains = set(code.co_names) | set(code.co_freevars), set()
    chain: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")):
            chain = (step.argval,)
        elif chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, step.argval)
            chains.add(chain)
        elif step.opname not in ("CACHE", "PUSH_NULL"):
            chain = ()
    for inner in filter(lambda constant: isinstance(constant, types.CodeType), code.co_consts):
        names = names_of_code(inner)
        plain, chains = plain | names.plain, chains | names.chains
    return Names(frozenset(plain), frozenset(chains))


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


def stripped(node: Node, keep: Callable[[ast.expr], bool]) -> Node:
    """Return a copy of the tree without hints, docstrings and unwanted decorators."""
    again = _tree(ast.unparse(node))
    found = next(n for n in ast.walk(again) if type(n) is type(node))
    if not isinstance(found, ast.Lambda):
        found.decorator_list = [d for d in found.decorator_list if keep(d)]
    cleaned = _Strip().visit(found)
    return ast.fix_missing_locations(cleaned)  # type: ignore[no-any-return]


class _Strip(ast.NodeTransformer):
    """Drop what is not behaviour, so that no name is read from it."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        return node


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


def _outside(node: Node) -> set[str]:
    text = ast.unparse(node)
    try:
        table = symtable.symtable(text, "<udf>", "exec")
    except SyntaxError:
        # A `nonlocal` whose function was left out. Every name then counts.
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    own = getattr(node, "name", None)
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    pending = list(table.get_children())
    while pending:
        scope = pending.pop()
        found |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
        pending += scope.get_children()
    # A recursive function names itself; what it is, is being written already.
    return found - {own}


def _chain(node: ast.Attribute) -> tuple[str, ...]:
    parts: list[str] = []
    part: ast.expr = node
    while isinstance(part, ast.Attribute):
        parts.append(part.attr)
        part = part.value
    return (part.id, *reversed(parts)) if isinstance(part, ast.Name) else ()


def _changes(node: Node) -> tuple[set[str], set[str], set[str]]:
    """Return names that are rebound or changed in place, names whose methods do, and attributes.

    These are caches and counters, not constants.
    """
    mutated: set[str] = set()
    touched: set[str] = set()
    fields: set[str] = set()
    for part in ast.walk(node):
        names, holder = mutated, part
        if isinstance(part, ast.Global | ast.Nonlocal):
            mutated |= set(part.names)
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            names, holder = touched, part.func.value
            if part.func.attr not in _MUTATORS:
                continue
        elif isinstance(part, ast.Subscript | ast.Attribute) and not isinstance(part.ctx, ast.Load):
            fields |= {part.attr} if isinstance(part, ast.Attribute) else set()
            holder = part.value
        else:
            continue
        if isinstance(holder, ast.Name):
            names.add(holder.id)
        elif isinstance(holder, ast.Attribute):
            fields.add(holder.attr)
    return mutated, touched, fields


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
