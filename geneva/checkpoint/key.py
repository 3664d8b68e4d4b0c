"""What makes two pieces of work the same, so that one may use the other's checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

VERSION = "1"  # of the journal format and of what goes into a key
_SHARED = "shared"  # no work key: those are hexadecimal


def work_key(*parts: object) -> str:
    """Return a 24-digit hash of the parts; ``repr`` of each must say all that matters."""
    text = "\x1f".join(repr(p) for p in (VERSION, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def log_folder(incarnation: str) -> str:
    """Return the folder of a column's checkpoint logs."""
    return f"work/{incarnation}"


def log_path(incarnation: str, key: str, attempt: str) -> str:
    """Return the path of one attempt's log; nobody else ever writes to it."""
    return f"{log_folder(incarnation)}/{key}.{attempt}.log"


def shared_log_path(incarnation: str, attempt: str) -> str:
    """Return the path of a log that ends the work on several fragments: its frames name them."""
    return f"{log_folder(incarnation)}/{_SHARED}.{attempt}.log"


def is_shared(path: str) -> bool:
    """Whether a log's frames, and not its name, say which work it is of."""
    return path.rsplit("/", 1)[-1].startswith(f"{_SHARED}.")


def logs_by_key(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group the checkpoint logs of single pieces of work by their key, which their names hold."""
    found: dict[str, list[str]] = {}
    for path in paths:
        if is_shared(path):
            continue
        found.setdefault(path.rsplit("/", 1)[-1].split(".", 1)[0], []).append(path)
    return {key: tuple(sorted(logs)) for key, logs in found.items()}
