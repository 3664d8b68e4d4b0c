"""Tell whether a worker sees the driver's directory, or another one at the same path."""

from __future__ import annotations

from uuid import uuid4

from geneva.storage.lance import TableStorage

_PROBE = "probe"


def ensure_probe(storage: TableStorage) -> bytes:
    """Return the content of a file below a local table that only this directory holds."""
    if not storage.local:
        return b""
    try:
        return storage.objects.get(_PROBE)
    except FileNotFoundError:
        storage.objects.put(_PROBE, uuid4().hex.encode())
        return storage.objects.get(_PROBE)


def read_probe(storage: TableStorage) -> bytes:
    """Return what a process finds in the probe file of a table; empty if there is none."""
    try:
        return storage.objects.get(_PROBE)
    except FileNotFoundError:
        return b""
