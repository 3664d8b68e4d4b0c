"""A UDF -> bytes that a worker without the user's modules can read, and back."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pickle
import platform
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import cloudpickle
from cloudpickle import cloudpickle as _internals

from geneva.errors import UdfError
from geneva.udf.build import BUILDING
from geneva.udf.failures import shorten
from geneva.udf.pickler import dumps as dumps_by_value
from geneva.udf.pickler import references
from geneva.udf.project import is_importable, is_own_module

_MAGIC = b"geneva-udf/1 "
_MAX_DEPTH = 12
T = TypeVar("T")
# cloudpickle's registry is one per process.
_REGISTRY_LOCK = threading.RLock()


def dumps(udf: Any) -> bytes:
    """Pickle with the user's own modules by value, behind a line that names Python's version.

    Raises
    ------
    UdfError
        Something in it cannot be pickled, or only as a name that workers do not have.
    """
    with _by_value():
        try:
            body = _shipped(udf)
        except Exception as error:
            path, culprit = _culprit(udf, f"UDF {udf.name!r}", 0) or (f"UDF {udf.name!r}", udf)
            raise UdfError(
                f"UDF {udf.name!r} cannot be pickled because of {path}, a "
                f"{type(culprit).__module__}.{type(culprit).__qualname__} "
                f"{shorten(culprit, 80)}: {error}. Create it where it is used, or in a "
                "stateful UDF's __init__, which runs on the worker"
            ) from error
    return _MAGIC + platform.python_version().encode() + b"\n" + body


def _shipped(thing: Any) -> bytes:
    """Pickle a thing, and see that all it names is where workers find it.

    Raises
    ------
    PicklingError
        It is pickled as a name in a module of the user's own.
    """
    body = dumps_by_value(thing)
    for module, name in references(body):
        if is_own_module(module) and not is_importable(module.partition(".")[0]):
            what = f"{module}.{name}" if name else module
            raise pickle.PicklingError(
                f"Python pickles it as the name {what}, and workers do not have the module"
            )
    return body


def loads(data: bytes, expected: type[T]) -> T:
    """Read a pickle of `dumps`."""
    head, _, body = bytes(data).partition(b"\n")
    if not head.startswith(_MAGIC):
        raise UdfError("these bytes are no pickled UDF")
    theirs, ours = head[len(_MAGIC) :].decode("ascii", "replace"), platform.python_version()
    # Bytecode of another minor version may crash the interpreter, so it is not even tried.
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise UdfError(
            f"the UDF was pickled by Python {theirs} and cannot be read by Python {ours}; use "
            "that version, or bind the column anew from here"
        )
    try:
        with BUILDING:  # it imports what the UDF names
            udf = _Unpickler(io.BytesIO(body)).load()
    except Exception as error:
        missing = f"; {error.name} is not installed here" if isinstance(error, ImportError) else ""
        raise UdfError(
            f"the UDF pickled by Python {theirs} cannot be loaded by Python {ours}: "
            f"{type(error).__name__}: {error}{missing}"
        ) from error
    if not isinstance(udf, expected):
        raise UdfError(f"the pickled object is a {type(udf).__name__}, not a UDF")
    return udf


class _Unpickler(pickle.Unpickler):
    """Makes the classes of each pickle anew.

    cloudpickle would take the class of that id that this process has: the user's own, or that of
    an earlier pickle. What it was changed to since would be undone there, and used here.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        maker = name in ("_make_skeleton_class", "_make_skeleton_enum")
        known = maker and found is getattr(_internals, name, None)
        return functools.partial(_made_anew, found) if known else found


def _made_anew(make: Callable[..., type], *arguments: Any) -> type:
    """Make a class that keeps its id: pickled again, it gives the same bytes."""
    *what, tracked, extra = arguments
    made = make(*what, None, extra)
    if tracked is not None:
        # A private interface: it is the one of the pickle's own format, which names the maker.
        with _internals._DYNAMIC_CLASS_TRACKER_LOCK:  # noqa: SLF001
            _internals._DYNAMIC_CLASS_TRACKER_BY_CLASS[made] = tracked  # noqa: SLF001
    return made


def import_reference(reference: str) -> Any:
    """Import the object that ``module:qualname`` names."""
    module, _, qualname = reference.partition(":")
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


@contextmanager
def _by_value() -> Iterator[None]:
    with _REGISTRY_LOCK:
        known = cloudpickle.list_registry_pickle_by_value()
        ours = [
            module
            for name, module in list(sys.modules.items())
            if name not in known
            and name != "__main__"
            and isinstance(module, types.ModuleType)
            and module.__name__ == name
            and is_own_module(name)
        ]
        for module in ours:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in ours:
                cloudpickle.unregister_pickle_by_value(module)


def _culprit(thing: Any, path: str, depth: int) -> tuple[str, Any] | None:
    """Return where in a thing the first unpicklable object sits, and that object."""
    if _pickles(thing):
        return None
    for step, part in _parts(thing) if depth < _MAX_DEPTH else ():
        found = _culprit(part, f"{step} of {path}" if step else path, depth + 1)
        if found is not None:
            return found
    return path, thing


def _pickles(thing: Any) -> bool:
    try:
        _shipped(thing)
    except Exception:
        return False
    return True


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a thing, each with the words for its place."""
    if isinstance(thing, types.FunctionType):
        yield from _function_parts(thing)
    elif isinstance(thing, types.MethodType):
        yield from (("", thing.__self__), ("", thing.__func__))
    elif isinstance(thing, functools.partial):
        yield from (("function", thing.func), ("arguments", (thing.args, thing.keywords)))
    elif isinstance(thing, type):
        members = vars(thing).items()
        yield from ((f"attribute {n!r}", getattr(m, "__func__", m)) for n, m in members)
    elif isinstance(thing, Mapping):
        yield from ((f"item {shorten(key, 40)}", value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"element {i}", value) for i, value in enumerate(thing))
    elif hasattr(thing, "__dict__"):
        word = "global" if isinstance(thing, types.ModuleType) else "attribute"
        yield from ((f"{word} {name!r}", value) for name, value in vars(thing).items())


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    seen = inspect.getclosurevars(function)
    yield from ((f"closure variable {name!r}", value) for name, value in seen.nonlocals.items())
    yield from ((f"global {name!r}", value) for name, value in seen.globals.items())
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            yield f"default of parameter {name!r}", parameter.default
