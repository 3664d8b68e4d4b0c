"""Work keys: two pieces of work with one key may use each other's checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from uuid import uuid4

VERSION = "1"  # of the journal format and of what goes into a key
_SHARED = "shared"  # no work key: those are hexadecimal
_OF_FAMILY = 8  # leading digits of a key that say which family's work it is


def work_key(*parts: object) -> str:
    """Return a 24-digit hash of the parts; ``repr`` of each must say all that matters."""
    text = "\x1f".join(repr(p) for p in (VERSION, *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fragment_key(family: str, *fragment: object) -> str:
    """Return the key of a family's work on one fragment, given by all that matters of it."""
    return family[:_OF_FAMILY] + work_key(family, *fragment)[_OF_FAMILY:]


def is_of_family(key: str, family: str) -> bool:
    """Whether a key is most probably that of a family's work."""
    return key[:_OF_FAMILY] == family[:_OF_FAMILY]


def new_attempt(version: int) -> str:
    """Return a name for an attempt at work that was planned on a table version."""
    return f"{version}-{uuid4().hex}"


def planned_on(path: str) -> int:
    """Return the table version on which the work of a log was planned; 0 if it does not say."""
    version, _, _ = path.rsplit(".", 2)[-2].partition("-")
    return int(version) if version.isdecimal() else 0


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
