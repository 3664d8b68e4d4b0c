"""Ship the user's modules by value, which Python pickles by name: workers lack them.

Functions and classes of the user's own modules go by value, because cloudpickle is told so. Other
objects that are named in a module, and that Python pickles as that name, are taken apart here. The
functions that put them together again are named in stored pickles: they keep their names and
arguments for ever.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import threading
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle

from geneva.udf.project import is_own_module

_DISPATCHER = vars(functools)["singledispatch"](lambda value: value).__code__
_DISPATCHERS_OWN = ("register", "dispatch", "registry", "_clear_cache", "__wrapped__")
_Reduced = str | tuple[Any, ...]


class _Late:
    """Stands for a function that is read after its wrapper: it may name the wrapper itself."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def new_cache(maxsize: int | None, typed: bool) -> Any:
    """Return an empty cache of `functools.lru_cache`, without its function."""
    return functools.lru_cache(maxsize, typed)(_Late())


def fill_cache(cache: Any, state: tuple[Callable[..., Any], Mapping[str, Any]]) -> None:
    """Give a cache its function and attributes."""
    function, attributes = state
    cache.__wrapped__.function = function
    vars(cache).update(attributes, __wrapped__=function)


def new_dispatcher() -> Any:
    """Return a dispatcher of `functools.singledispatch`, without functions."""
    return functools.singledispatch(_Late())


def fill_dispatcher(
    dispatcher: Any, state: tuple[Mapping[type, Callable[..., Any]], Mapping[str, Any]]
) -> None:
    """Give a dispatcher its functions and attributes."""
    functions, attributes = state
    for kind, function in functions.items():
        dispatcher.register(kind, function)
    functools.update_wrapper(dispatcher, functions[object], updated=())
    vars(dispatcher).update(attributes)


def fill_property(made: Any, attributes: Mapping[str, Any]) -> None:
    """Give a `functools.cached_property` its attributes, and a lock where it has one."""
    vars(made).update(attributes)
    if sys.version_info < (3, 12):
        made.lock = threading.RLock()


def _cache(cache: Any) -> _Reduced:
    if _has_its_name(cache):
        return str(cache.__qualname__)
    how = cache.cache_parameters()
    state = cache.__wrapped__, _without(vars(cache), ("__wrapped__", "cache_parameters"))
    return new_cache, (how["maxsize"], how["typed"]), state, None, None, fill_cache


def _dispatcher(dispatcher: Any) -> tuple[Any, ...]:
    state = dict(dispatcher.registry), _without(vars(dispatcher), _DISPATCHERS_OWN)
    return new_dispatcher, (), state, None, None, fill_dispatcher


def _property(made: functools.cached_property[Any]) -> tuple[Any, ...]:
    state = _without(vars(made), ("lock",))
    kind = functools.cached_property
    return kind.__new__, (kind,), state, None, None, fill_property


def _new_type(made: Any) -> _Reduced:
    if _has_its_name(made):
        return str(made.__qualname__)
    state = {"__module__": made.__module__, "__qualname__": made.__qualname__}
    return typing.NewType, (made.__name__, made.__supertype__), state


def _variable(made: Any) -> _Reduced:
    return str(made.__name__) if _has_its_name(made) else (type(made), (made.__name__,))


def _module(module: types.ModuleType) -> tuple[Any, ...]:
    name = module.__name__
    if name == "__main__" or (name in sys.modules and not is_own_module(name)):
        return cloudpickle.Pickler.dispatch_table[types.ModuleType](module)  # type: ignore[no-any-return]
    # As state and not as an argument: modules of a package name each other.
    state = _without(vars(module), ("__builtins__", "__path__", "__spec__", "__loader__"))
    return types.ModuleType, (name,), state


def _environment(environment: Any) -> Any:
    """Pickle the environment as the worker's own: this process's holds secrets."""
    for name in ("environ", "environb"):
        if environment is getattr(os, name, None):
            return getattr, (os, name)
    return environment.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _stream(stream: io.TextIOWrapper) -> Any:
    """Refuse an open file: cloudpickle would store its content."""
    if stream is sys.stdout or stream is sys.stderr:
        return cloudpickle.Pickler.dispatch_table[io.TextIOWrapper](stream)
    raise pickle.PicklingError("cannot pickle an open file")


def _has_its_name(thing: Any) -> bool:
    """Whether it is what its name says, in a module that workers have too."""
    module = sys.modules.get(thing.__module__)
    if module is None or is_own_module(thing.__module__):
        return False
    found: Any = module
    for part in getattr(thing, "__qualname__", thing.__name__).split("."):
        found = getattr(found, part, None)
    return found is thing


def _without(mapping: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """cloudpickle's, for modules of the user's own that workers lack."""

    dispatch_table: typing.ClassVar[Any] = ChainMap(
        {
            type(functools.lru_cache(new_dispatcher)): _cache,
            functools.cached_property: _property,
            typing.NewType: _new_type,
            typing.ParamSpec: _variable,
            typing.TypeVarTuple: _variable,
            types.ModuleType: _module,
            type(os.environ): _environment,
            io.TextIOWrapper: _stream,
        },
        cloudpickle.Pickler.dispatch_table,
    )

    def reducer_override(self, thing: Any) -> Any:
        """Take apart a dispatcher, which is a function like others to its type."""
        if (
            isinstance(thing, types.FunctionType)
            and thing.__code__ is _DISPATCHER
            and not _has_its_name(thing)
        ):
            return _dispatcher(thing)
        return super().reducer_override(thing)


def dumps(thing: Any) -> bytes:
    """Pickle; modules that cloudpickle has been told of go by value."""
    file = io.BytesIO()
    Pickler(file).dump(thing)
    return file.getvalue()


class _Inert(type):
    """Makes the one stand-in for all that a pickle would load, build or call."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls

    def nothing(cls, *args: Any) -> None:
        """Take anything."""

    __setstate__ = append = extend = add = update = __setitem__ = nothing


class _Nothing(metaclass=_Inert):
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls


class _References(pickle.Unpickler):
    """Reads a pickle without building anything, and notes the imports in it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.found: dict[tuple[str, str], None] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("cloudpickle.cloudpickle", "subimport"):
            return self._import
        self.found[module, name] = None
        return _Nothing

    def _import(self, module: str) -> Any:
        self.found[module, ""] = None
        return _Nothing


def references(data: bytes) -> list[tuple[str, str]]:
    """Return the modules that a pickle imports, each with the name that it takes from it."""
    reader = _References(data)
    reader.load()
    return list(reader.found)
