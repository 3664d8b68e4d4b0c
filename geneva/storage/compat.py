"""The faults of other packages that are worked around when they are imported.

- pyarrow imports pandas at the first Python value that it converts, to know a Series when it sees
  one. The import of Lance converts one, so that every process would spend half a second and 40 MB
  on pandas. Here pyarrow hears that there is none, and once anybody has imported it, that there is.
- pylance 14.0 cannot read a transaction that remapped an index.

`tests/unit/test_compat.py` fails when one of them is no longer needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pyarrow as pa

_NAME = "pandas"


def complete(rewritten_index: type[Any]) -> None:
    """Give pylance's class the defaults without which it is built while a Rewrite is read."""
    create: Any = rewritten_index.__init__
    if create.__defaults__ is None:
        create.__defaults__ = ("", b"", 0)


class _Finder(MetaPathFinder):
    """Hides pandas from one thread, and lets pyarrow know when somebody imports it later."""

    def __init__(self) -> None:
        self.hidden_from: int | None = threading.get_ident()
        self._looking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _NAME or getattr(self._looking, "now", False):
            return None
        if self.hidden_from == threading.get_ident():
            raise ModuleNotFoundError(f"{_NAME} is not imported yet", name=_NAME)
        self._looking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._looking.now = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads pandas as its own loader does, which it leaves in its place, then tells pyarrow."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        _ = getattr(getattr(pa.lib, "_pandas_api", None), "pd", None)  # it asks again


def import_pandas_later() -> None:
    """Have pyarrow do without pandas until anybody imports it.

    No effect if somebody has, or if this pyarrow keeps to itself how it looks for pandas.
    """
    known: Any = getattr(pa.lib, "_pandas_api", None)
    if _NAME in sys.modules or not hasattr(type(known), "have_pandas"):
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    _ = known.have_pandas  # it asks once, and remembers
    finder.hidden_from = None
    _import_datasets()


def _import_datasets() -> None:
    """Import pyarrow.dataset without having it infer the type of ``True``.

    Inference imports pandas too, in C++, and could not be told later that pandas is there.
    """
    scalar = pa.lib.scalar

    def typed(value: Any, *args: Any, **kwargs: Any) -> Any:
        return scalar(value, pa.bool_()) if value is True else scalar(value, *args, **kwargs)

    pa.lib.scalar = typed
    try:
        importlib.import_module("pyarrow.dataset")
    finally:
        pa.lib.scalar = scalar
