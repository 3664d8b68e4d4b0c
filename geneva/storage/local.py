"""The files of a table on a local disk: made durable, and told when they are damaged.

Lance syncs nothing. It writes a manifest, then links it to its name, so after a power failure
the newest version can have a name and no content, and then nobody can open the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlparse

from geneva.errors import CorruptFileError, TableChangedError
from geneva.storage.objects import sync_directory, sync_file
from geneva.storage.snapshot import DataFileInfo

_FOLDER = "_versions"
SUFFIX = ".manifest"
_MAGIC = b"LANC"
_LAST = 2**64 - 1  # Lance names manifests by what is left to it, so that the newest sorts first
_DIGITS = len(str(_LAST))


@lru_cache(maxsize=1024)
def directory(uri: str) -> Path | None:
    """Return where a table on a disk lies, if it does; asked many times for each fragment."""
    local = urlparse(uri).scheme in ("", "file") or uri[1:3] in (":\\", ":/")
    return Path(uri.removeprefix("file://")) if local else None


def sync_version(table: Path, version: int) -> None:
    """Make a version survive a power failure, and the names of those before it."""
    folder = table / _FOLDER
    for name in (f"{_LAST - version:0{_DIGITS}}", str(version)):
        with suppress(FileNotFoundError):  # of the other naming, or cleaned up meanwhile
            sync_file(folder / f"{name}{SUFFIX}")
    sync_directory(folder)


def check_there(table: Path | None, name: str) -> None:
    """Remove the folders that Lance makes when a data file is written into a vanished table.

    Parameters
    ----------
    table
        ``None`` on an object store, which has no folders that could come back.

    Raises
    ------
    FileNotFoundError
        It did.
    """
    if table is not None and not (table / _FOLDER).is_dir():
        delete_data(table, name)
        raise FileNotFoundError(f"table {table} is gone")


def data_files(table: Path) -> list[str]:
    """Return the names of all data files; a table that never had a row has no folder for them."""
    folder = table / "data"
    if not folder.is_dir() and (table / _FOLDER).is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_file())


class DataFolder:
    """The data files of a table on a disk."""

    def __init__(self, table: Path) -> None:
        self._prefix = f"{table / 'data'}{os.sep}"

    def look(self) -> None:
        """List the folder, before many files are asked for one by one.

        Of a disk behind a network, the list brings what is asked of each file as well.
        """
        with suppress(FileNotFoundError):
            os.listdir(self._prefix)

    def has(self, file: DataFileInfo) -> bool:
        """Whether a file of its size is there; of any size but none, if it is not known."""
        try:
            size = os.stat(self._prefix + file.path).st_size
        except FileNotFoundError:
            return False
        return size == file.size_bytes if file.size_bytes else size > 0


def delete_data(table: Path, name: str) -> None:
    """Remove a data file, and the folders if they are all that is left of a table."""
    (table / "data" / name).unlink(missing_ok=True)
    if not (table / _FOLDER).is_dir():
        for folder in (table / "data", table):
            with suppress(OSError):  # not empty: somebody else's, or gone
                folder.rmdir()


def check_manifests(table: Path, version: int | None = None) -> None:
    """Tell whether a power failure is why a version cannot be opened.

    Raises
    ------
    CorruptFileError
        The newest version is torn; somebody must move it away.
    TableChangedError
        The version asked for is torn, and newer ones are whole.
    """
    found = _manifests(table)
    newest = max(found, default=None)
    if newest is not None and _torn(found[newest]):
        raise CorruptFileError(_what_to_do(table, newest, found[newest]))
    if version in found and _torn(found[version]):
        raise TableChangedError(
            f"version {version} of table {table} is gone: a power failure tore {found[version]}"
        )


def check_all_manifests(table: Path) -> None:
    """Look for a torn version where Lance could not list them.

    Raises
    ------
    CorruptFileError
        There is one.
    """
    for version, path in _manifests(table).items():
        if _torn(path):
            raise CorruptFileError(_what_to_do(table, version, path))


def check_sizes(table: Path, sizes: Mapping[str, int]) -> None:
    """Tell whether a damaged file is why a fragment cannot be read.

    Parameters
    ----------
    sizes
        By name, in bytes, as the manifest has them; 0 where it has none.

    Raises
    ------
    CorruptFileError
        A data file has another size.
    """
    for name, size in sizes.items():
        path = table / "data" / name
        if size and path.exists() and (found := path.stat().st_size) != size:
            raise CorruptFileError(
                f"data file {path} holds {found:,} bytes, but its table expects {size:,}: restore "
                "it, or if a UDF computed its values, compute them again with force=True"
            )


def _what_to_do(table: Path, version: int, path: Path) -> str:
    return (
        f"version {version} of {table} was torn by a power failure: {path} is incomplete. Move "
        "that file away while nobody writes to the table: all other versions are whole, and the "
        "same backfill continues where they leave off"
    )


def has_manifests(table: Path) -> bool:
    """Whether a table has a version."""
    return bool(_manifests(table))


def _torn(path: Path) -> bool:
    try:
        return not path.read_bytes().endswith(_MAGIC)
    except FileNotFoundError:
        return False  # cleaned up meanwhile


def _manifests(table: Path) -> dict[int, Path]:
    """Return manifests by version; names that are not Lance's are left out."""
    found = {}
    for path in (table / _FOLDER).glob(f"*{SUFFIX}"):
        name = path.name.removesuffix(SUFFIX)
        if name.isdecimal():
            found[_LAST - int(name) if len(name) == _DIGITS else int(name)] = path
    return found
