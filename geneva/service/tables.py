"""Tables, opened with the storage options that this host has for where they lie.

Requests and the database of jobs name a table by its URI alone. The options of object stores are in
a file of the host, TOML, by the beginning of the URIs that they are for::

    ["s3://bucket/db"]
    aws_access_key_id = "..."
    aws_secret_access_key = "..."

It is read whenever a table is opened, so credentials can be exchanged while jobs run.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geneva.connection import Connection, connect
from geneva.errors import SettingError, TableError
from geneva.table import Table

STORAGE_OPTIONS = "GENEVA_STORAGE_OPTIONS"  # the path of that file; drivers inherit it


def open_table(db: str, name: str, ray: Mapping[str, Any] | None = None) -> Table:
    """Open a table of a database.

    Raises
    ------
    SettingError, TableError
        As `open_database`; or there is no such table.
    """
    return open_database(db, ray).open_table(name)


def open_database(db: str, ray: Mapping[str, Any] | None = None) -> Connection:
    """Open a database.

    Raises
    ------
    SettingError
        ``db`` is no absolute path and no URI, or the file of storage options cannot be used.
    TableError
        There is no such database: a look must not make one.
    """
    if "://" not in db or db.startswith("file://"):
        path = Path(db.removeprefix("file://"))
        if not path.is_absolute():
            raise SettingError(f"db {db!r} must be an absolute path, or a URI such as s3://...")
        if not _is_folder(path):
            raise TableError(f"there is no database {db!r} on the service's host")
    options = storage_options(db)
    try:
        return connect(db, storage_options=options, ray=ray)
    except ValueError as error:
        raise SettingError(f"db {db!r} cannot be opened: {error}") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no path at all: too long, or it holds a NUL
        return False


def storage_options(db: str) -> dict[str, str] | None:
    """Return the options for a database: those of the longest beginning of its URI.

    Raises
    ------
    SettingError
        There is no such file, others may read it, or it holds something else.
    """
    path = os.environ.get(STORAGE_OPTIONS)
    if not path:
        return None
    known = _read(Path(path))
    fitting = [uri for uri in known if f"{db}/".startswith(f"{uri.rstrip('/')}/")]
    return known[max(fitting, key=len)] if fitting else None


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        if path.stat().st_mode & 0o077:
            raise SettingError(f"{path} holds secrets and others may read it: chmod 600 {path}")
        found = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingError(f"{STORAGE_OPTIONS}={path} cannot be read: {error}") from error
    except ValueError as error:
        raise SettingError(f"{STORAGE_OPTIONS}={path} is no TOML: {error}") from None
    for uri, options in found.items():
        if not isinstance(options, dict) or not all(isinstance(v, str) for v in options.values()):
            raise SettingError(f'{path}: {uri!r} must be a table of texts, NAME = "VALUE"')
    return found
