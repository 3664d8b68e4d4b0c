"""Tell whether a worker sees the driver's directory, or another one at the same path."""

from __future__ import annotations

from uuid import uuid4

from geneva.storage.lance import TableStorage

_FOLDER = "seen"


def ensure_probe(storage: TableStorage) -> str:
    """Return the path of a file below a local table that only this directory holds.

    Drivers that begin at once may make one each; none is ever written again or removed.
    """
    if not storage.local:
        return ""
    for path in storage.objects.list(_FOLDER):
        return path
    path = f"{_FOLDER}/{uuid4().hex}"
    storage.objects.put(path, b"")
    return path


def sees_probe(storage: TableStorage, path: str) -> bool:
    """Whether a process finds the file that the driver did."""
    try:
        storage.objects.get(path)
    except FileNotFoundError:
        return False
    return True
