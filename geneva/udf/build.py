"""The construction of UDFs: one at a time in a process, with its imports.

Python locks each module that it imports, not all that import each other: threads that import torch
or transformers at once can see halves of them.
"""

from __future__ import annotations

import dis
import functools
import importlib
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from geneva.udf.project import is_own

# Of a thread: building one UDF may build another.
BUILDING = threading.RLock()


def import_ahead(target: Callable[..., Any]) -> None:
    """Import the modules that the first call imports in any case."""
    todo, seen = [target], {id(target)}
    while todo:
        for found in _begins_with(_function(todo.pop())):
            if isinstance(found, tuple):
                _import(*found)
            elif callable(found) and id(found) not in seen:
                seen.add(id(found))
                todo.append(found)


def _function(thing: Any) -> types.FunctionType | None:
    """Return the user's function that a call of a thing runs."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "__wrapped__", thing)  # of a cache
    if not isinstance(thing, type | types.FunctionType | types.MethodType):
        thing = getattr(type(thing), "__call__", None)  # noqa: B004  # of the class, as Python calls it
    function = getattr(thing, "__func__", thing)
    return function if isinstance(function, types.FunctionType) and is_own(function) else None


def _begins_with(function: types.FunctionType | None) -> Iterator[Any]:
    """Yield imports and used globals up to where the code first may go two ways."""
    names: tuple[str, ...] = ()
    for step in dis.get_instructions(function) if function else ():
        if "JUMP" in step.opname or step.opname in ("FOR_ITER", "SEND"):
            return
        if step.opname == "LOAD_CONST":
            names = step.argval if isinstance(step.argval, tuple) else ()
        elif step.opname == "IMPORT_NAME":
            yield step.argval, names
        elif step.opname == "LOAD_GLOBAL" and function is not None:
            yield function.__globals__.get(step.argval)


def _import(module: str, names: tuple[str, ...]) -> None:
    # What fails here fails again in the call, whose error is the one to tell.
    with suppress(Exception, SystemExit):
        found = importlib.import_module(module)
        for name in names:
            getattr(found, str(name), None)  # of a lazy module, which imports it now
