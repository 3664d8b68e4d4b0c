"""Tables that a service may open, with the storage options that this host has for where they lie.

Requests and the database of jobs name a table by its URI alone. The options of object stores are in
a file of the host, TOML, by the beginning of the URIs that they are for::

    ["s3://bucket/db"]
    aws_access_key_id = "..."
    aws_secret_access_key = "..."

It is read whenever a table is opened, so credentials can be exchanged while jobs run.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from geneva.connection import Connection, connect_existing
from geneva.errors import NotServedError, SettingError
from geneva.table import Table

STORAGE_OPTIONS = "GENEVA_STORAGE_OPTIONS"  # the path of that file; drivers inherit it


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True, slots=True)
class Databases:
    """The databases that a service opens: those that it was started for, and their tables.

    Every door opens tables through here, and so does a driver: whoever may look, or submit, reaches
    no other folder and no other bucket of the host, however it is spelled.

    Parameters
    ----------
    allowed
        Folders and URIs.
    """

    allowed: tuple[str, ...]

    def admit(self, db: str) -> str:
        """Return the one name of a database that may be opened.

        Raises
        ------
        NotServedError
            It may not.
        SettingError
            ``db`` is no absolute path and no URI.
        """
        place = place_of(db)
        if not any(_within(place, prefix) for prefix in self.allowed):
            raise NotServedError(
                f"this service was not started for {db!r}: `geneva serve --allow-db PREFIX` (and "
                "`geneva scheduler`) says which databases it opens beside its own"
            )
        return place

    def table(self, db: str, name: str, ray: Mapping[str, Any] | None = None) -> Table:
        """Open a table of a database.

        Raises
        ------
        SettingError, NotServedError, TableError
            As `open`; or there is no such table.
        """
        connection = self.open(db, ray)
        if "://" not in connection.uri:  # a link within a database must not lead out of it
            self.admit(f"{connection.uri}/{name}.lance")
        return connection.open_table(name)

    def open(self, db: str, ray: Mapping[str, Any] | None = None) -> Connection:
        """Open a database.

        Raises
        ------
        SettingError
            ``db`` is no absolute path and no URI, or the file of storage options cannot be used.
        NotServedError
            It may not be opened.
        TableError
            There is no such database: a look must not make one.
        """
        place = self.admit(db)
        options = storage_options(place)
        try:
            return connect_existing(place, storage_options=options, ray=ray)
        except ValueError as error:
            raise SettingError(f"db {db!r} cannot be opened: {error}") from error


def place_of(db: str) -> str:
    """Return the one name of a place, whatever spelling, path or link led to it.

    Raises
    ------
    SettingError
        It is no absolute path and no URI, or a URI that one reader might take for another place
        than the next does.
    """
    match = _SCHEME.match(db)
    scheme = match[1].lower() if match else "file"
    if scheme == "file":
        return _folder_of(db, is_uri=match is not None)
    if not db[len(scheme) :].startswith("://") or re.search(r"[\\\s\0-\x1f]", db):
        raise SettingError(f"db {db!r} must be an absolute path, or a URI such as s3://...")
    rest = db[len(scheme) + 3 :]
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    parts = [p for p in path.split("/") if p]
    if not parts or path.startswith("/") or any(_leads_elsewhere(p) for p in parts):
        raise SettingError(f"db {db!r}: a URI names a bucket, and holds no '.' or '..' as a part")
    return f"{scheme}://{'/'.join(parts)}{rest[len(path) :]}"


def _folder_of(db: str, *, is_uri: bool) -> str:
    path = db
    if is_uri:
        uri = urlsplit(db)
        if uri.netloc not in ("", "localhost") or uri.query or uri.fragment:
            raise SettingError(f"db {db!r} must be file:///an/absolute/path")
        path = unquote(uri.path)
    if not path.startswith("/"):
        raise SettingError(f"db {db!r} must be an absolute path, or a URI such as s3://...")
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as error:  # it holds a NUL, or links that lead in a circle
        raise SettingError(f"db {db!r} is no path: {error}") from None


def _leads_elsewhere(part: str) -> bool:
    """Whether a part of a URI is a step up, or more than one part, however often it is encoded."""
    while (decoded := unquote(part)) != part:
        part = decoded
    return part in (".", "..") or bool(re.search(r"[/\\\0-\x1f]", part))


def _within(place: str, prefix: str) -> bool:
    """Whether a place is a prefix or lies in it, as a whole part and not by a like beginning."""
    root = place_of(prefix)
    if re.search(r"[?#]", place):
        return place == root  # what such an ending does to a URI, its readers decide
    return place == root or place.startswith(f"{root.rstrip('/')}/")


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
        by_uri = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingError(f"{STORAGE_OPTIONS}={path} cannot be read: {error}") from error
    except ValueError as error:
        raise SettingError(f"{STORAGE_OPTIONS}={path} is no TOML: {error}") from None
    for uri, options in by_uri.items():
        if not isinstance(options, dict) or not all(isinstance(v, str) for v in options.values()):
            raise SettingError(f'{path}: {uri!r} must be a table of texts, NAME = "VALUE"')
    return by_uri
