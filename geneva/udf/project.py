"""Which modules, functions and classes are the user's own."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import sysconfig
import types
from contextlib import suppress
from pathlib import Path
from types import FunctionType, ModuleType

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_PYTHONS = tuple(
    os.path.join(path, "")
    for path in (
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        os.path.dirname(os.__file__),
    )
)


def is_own(thing: FunctionType | type) -> bool:
    """Whether a function or class is the user's, whether or not its module is loaded.

    What `exec` made, and a file that was loaded by its path, have none.
    """
    name = thing.__module__
    if name == "types" and getattr(types, thing.__name__, None) is not thing:
        return True  # made by `types.new_class`, as dataclasses.make_dataclass does
    if name not in (None, "builtins") and name in sys.modules:
        return is_own_module(name)
    members = [thing] if isinstance(thing, FunctionType) else vars(thing).values()
    files = {f.__code__.co_filename for f in members if isinstance(f, FunctionType)}
    return any(not file.startswith("<frozen") and _is_own_file(file) for file in files)


def is_own_module(name: str | None) -> bool:
    """Whether a module is the user's: not Python's own, not installed, and not Geneva."""
    if not name:
        return False
    top = name.partition(".")[0]
    if name == "__main__":
        return True
    module = sys.modules.get(name)
    if module is None or top == "geneva" or top in sys.builtin_module_names:
        return False
    if top in sys.stdlib_module_names:  # the user's file may have the name of one of Python's
        file = getattr(module, "__file__", None)
        return bool(file) and _is_own_file(str(file))
    return _is_own(module)


def is_own_import(name: str) -> bool:
    """Whether what ``import name`` would load is the user's; loads nothing."""
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    spec = getattr(loaded, "__spec__", None) if loaded else importlib.util.find_spec(top)
    if spec is None:
        return is_own_module(top)
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return top != "geneva" and any(
        _is_own_file(str(place)) and not _was_installed(str(place), top) for place in places
    )


@functools.cache
def is_importable(top: str) -> bool:
    """Whether another Python of this installation finds a module: not by this one's path."""
    if top == "__main__":
        return False
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({top!r}) is None)"
    found = subprocess.run([sys.executable, "-I", "-c", look], check=False, capture_output=True)
    return found.returncode == 0


def is_namespace(module: ModuleType) -> bool:
    """Whether a module is a folder without code of its own."""
    return getattr(module, "__file__", None) is None and hasattr(module, "__path__")


def _is_own(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        # No file and no spec: made by hand, as notebooks do.
        places = [os.path.join(place, "") for place in getattr(module, "__path__", ())]
        return getattr(module, "__spec__", None) is None or (
            bool(places) and all(map(_is_own_file, places))
        )
    return _is_own_file(file) and not _was_installed(file, module.__name__.partition(".")[0])


def _was_installed(file: str, top: str) -> bool:
    """Whether a package manager put a module where it is, as ``pip install --target`` does."""
    roots = (r for r in sys.path if r and Path(file).is_relative_to(Path(r) / top))
    return any(_records(root, top) for root in (*roots, str(Path(file).parent)))


@functools.lru_cache(maxsize=4096)
def _records(root: str, top: str) -> bool:
    for record in Path(root).glob("*.dist-info/RECORD"):
        with suppress(OSError), record.open(errors="replace") as lines:
            if any(line.startswith((f"{top}/", f"{top}.")) for line in lines):
                return True
    return False


@functools.lru_cache(maxsize=4096)
def _is_own_file(file: str) -> bool:
    # No Path: the first pickle of a process asks for every module that is loaded.
    return not any(part in file for part in _INSTALLED) and not file.startswith(_PYTHONS)
