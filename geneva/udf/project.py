"""Which modules are the user's own."""

from __future__ import annotations

import functools
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from types import ModuleType

_INSTALLED = {"site-packages", "dist-packages"}


def is_own_module(name: str | None) -> bool:
    """Whether a module is the user's: not Python's own, not installed, and not Geneva."""
    if not name:
        return False
    top = name.partition(".")[0]
    if name == "__main__":
        return True
    if top == "geneva" or top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    module = sys.modules.get(name)
    return module is not None and _is_own(module)


def _is_own(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        # No file and no spec: made by hand, as notebooks do. Namespace packages have a spec and
        # no code of their own.
        return getattr(module, "__spec__", None) is None
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
    path = Path(file)
    if _INSTALLED & set(path.parts):
        return False
    stdlib = Path(sysconfig.get_path("stdlib"))
    return not path.is_relative_to(stdlib)
