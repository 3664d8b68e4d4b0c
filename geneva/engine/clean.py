"""Remove the traces of abandoned work under a table: checkpoints, column files, torn writes.

Nothing that a reader can see is touched. What a running job may still need is told by its age, and
by what its driver says: of a column that is being filled, everything stays, whatever age is asked
for. What is recorded of a column, and its UDF, stays as long
as any version has the column: it may be restored.

A job may commit while this runs, also a file that an abandoned one left, so the order counts:

1. list the old files, and read every version's manifest;
2. delete the old checkpoints, but those of columns that are being filled by now: who has not read
   them yet adopts no file that they name;
3. look again which columns are being filled: who has read them before is among those, or has ended;
4. read the manifests of the versions that came since;
5. delete what is listed, not named, and of no such column.

A half-written data file does not tell its column: all of them stay while any column is being
filled. Small files are written within moments, so half of one counts as torn after an hour.

A UDF is stored before the version that names it is made, without a claim: one that was written
within the hour stays, whatever is asked for, and its age is looked at again right before its end.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geneva.column.binding import PICKLES, bindings_of
from geneva.column.file import ColumnFileName
from geneva.engine.claims import FOLDER
from geneva.engine.presence import FOLDER as PRESENCES
from geneva.engine.presence import being_filled, columns_of
from geneva.errors import TableChangedError
from geneva.storage.lance import PROBES, TableStorage
from geneva.storage.local import check_all_manifests
from geneva.storage.objects import storage_errors

WEEK_S = 7 * 24 * 3600.0
_BINDING_S = 3600.0  # at most between the writing of a UDF and the version that names it
_WRITING_S = 3600.0  # at most for a small file
_TEMPORARY = ".tmp"
_TAIL_BYTES = 64 << 10  # the frame that names a finished column file is a log's last
_NAME = re.compile(rb"gv\.[0-9a-f]{8}\.[0-9a-f]{16}\.[am]\.\d+\.[0-9a-f]{32}\.lance")
_RECORD = re.compile(rf"(?:ledger|force)/([0-9a-f]{{8}})\..*json|{PICKLES}/([0-9a-f]{{64}})")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The files that were removed, or would be.

    Attributes
    ----------
    logs, log_bytes
        Checkpoint logs; their rows are computed again if the work is taken up after all.
    files, file_bytes
        Column files that no version of the table names.
    leftovers, leftover_bytes
        Files that a killed process was in the middle of writing, and its claims.
    records, record_bytes
        What was recorded of columns that no version has any more, and UDFs that none names.
    kept
        Checkpoint logs that are too young to be called abandoned, or of a column that is being
        filled.
    dry_run
        Whether everything is still there.
    """

    logs: int = 0
    log_bytes: int = 0
    files: int = 0
    file_bytes: int = 0
    leftovers: int = 0
    leftover_bytes: int = 0
    records: int = 0
    record_bytes: int = 0
    kept: int = 0
    dry_run: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes of all that was removed; object stores do not tell, so 0 there."""
        return self.log_bytes + self.file_bytes + self.leftover_bytes + self.record_bytes

    def __str__(self) -> str:
        done = "would remove" if self.dry_run else "removed"
        text = (
            f"{done} {self.logs:,} checkpoint logs, {self.files:,} column files of no version, "
            f"{self.leftovers:,} torn writes and {self.records:,} records of columns that no "
            f"version has: {self.total_bytes / 1e6:,.1f} MB"
        )
        return text + (f"; {self.kept:,} younger logs stay" if self.kept else "")


@dataclass(frozen=True, slots=True)
class _File:
    """A listed file; its owner deletes it by ``name``."""

    name: str
    size_bytes: int
    modified_s: float

    @property
    def column(self) -> str:
        """Incarnation of the column that it belongs to."""
        name = ColumnFileName.parse(self.name)
        record = _RECORD.fullmatch(self.name)
        if record is not None:
            return record[1] or ""
        return name.incarnation if name else self.name.partition("/")[2].partition("/")[0]

    @property
    def is_udf(self) -> bool:
        """Whether it is a pickled UDF."""
        return self.name.startswith(f"{PICKLES}/")


@dataclass(frozen=True, slots=True)
class _Named:
    """The files and columns that the versions of a table name, as far as they were read.

    Attributes
    ----------
    files
        Data files.
    owners
        Incarnations of computed columns, and the hashes of their pickled UDFs.
    """

    files: set[str] = field(default_factory=set)
    owners: set[str] = field(default_factory=set)
    seen: set[tuple[str | None, int]] = field(default_factory=set)

    def look(self, storage: TableStorage) -> None:
        """Take in every version that can be opened and was not seen, by branch."""
        latest = storage.open().dataset
        for branch in [None, *latest.branches.list()]:
            head = latest if branch is None else latest.checkout_version((branch, None))
            for number in {v["version"] for v in _versions(storage, head)}:
                if (branch, number) in self.seen:
                    continue
                try:
                    self._take(latest.checkout_version((branch, number)))
                    self.seen.add((branch, number))
                except (TableChangedError, ValueError, OSError) as error:
                    if "not found" not in str(error).lower():
                        raise
                    # Cleaned up since it was listed: nobody can read it any more.

    def _take(self, dataset: Any) -> None:
        self.files.update(f.path for p in dataset.get_fragments() for f in p.metadata.files)
        for binding in bindings_of(dataset.schema).values():
            self.owners.update((binding.incarnation, binding.pickle))

    def has(self, record: _File) -> bool:
        """Return True if a version names the column or UDF of a record, or it is no record."""
        found = _RECORD.fullmatch(record.name)
        return found is None or (found[1] or found[2]) in self.owners


def clean(storage: TableStorage, older_than_s: float = WEEK_S, *, dry_run: bool = False) -> Cleaned:
    """Remove checkpoints and files that no job has touched for some time.

    Parameters
    ----------
    older_than_s
        Seconds since a file was last written; on an object store, since the writing of a column
        file began. 0 takes everything but what belongs to columns on which a backfill is at
        work, paused ones included, and UDFs and torn small files of the last hour.
    dry_run
        Only count.

    Returns
    -------
    Cleaned
        Counts and bytes.
    """
    before = time.time() - older_than_s if older_than_s else math.inf
    with storage_errors(storage.uri):
        return _clean(storage, before, dry_run=dry_run)


def _clean(storage: TableStorage, before: float, *, dry_run: bool) -> Cleaned:
    all_logs, all_data, all_torn = _logs(storage), _data(storage), _torn(storage)
    busy = being_filled(storage.objects)
    logs, young = _split(all_logs, before, busy)
    data, _ = _split(all_data, before)
    leftovers = [f for f in data if f.name.startswith(_TEMPORARY) and not busy]
    files = [f for f in data if ColumnFileName.parse(f.name) is not None]
    records, named = _old_records(storage, before, busy), _Named()
    kept = _finished_files(storage, young) if files else set()
    if files or records:
        named.look(storage)
    old_torn, _ = _split(all_torn, min(before, time.time() - _WRITING_S))
    claims, _ = _split(_claims(storage), before)
    claims = [c for c in claims if not columns_of(storage.objects, c.name)]
    if not dry_run:
        busy |= being_filled(storage.objects)
        logs, begun = _split(logs, before, busy)
        young += begun
        for small in [*logs, *claims]:
            storage.objects.delete(small.name)
    if files or records:
        busy |= being_filled(storage.objects)
        named.look(storage)
        files = [f for f in files if f.name not in kept | named.files and f.column not in busy]
        records = [r for r in records if not named.has(r) and r.column not in busy]
    if not dry_run:
        for file in [*files, *leftovers]:
            storage.delete_file(file.name)
        for file in old_torn:
            storage.objects.delete(file.name)
        records = [r for r in records if _removed(storage, r, before)]
    torn = [*leftovers, *old_torn, *claims]
    return Cleaned(*_sum(logs), *_sum(files), *_sum(torn), *_sum(records), len(young), dry_run)


def _removed(storage: TableStorage, record: _File, before: float) -> bool:
    """Remove a record, unless it was written again meanwhile; return whether it was removed."""
    if not storage.local or _old_records(storage, before, (), [record.name]):
        storage.objects.delete(record.name)
        return True
    return False


def _split(
    files: Iterable[_File], before_s: float, busy: Collection[str] = ()
) -> tuple[list[_File], list[_File]]:
    """Return the old files, and those that are young or of a column that is being filled."""
    old: list[_File] = []
    young: list[_File] = []
    for file in files:
        kept = file.modified_s > before_s or file.column in busy
        (young if kept else old).append(file)
    return old, young


def _sum(files: Iterable[_File]) -> tuple[int, int]:
    sizes = [f.size_bytes for f in files]
    return len(sizes), sum(sizes)


# --- what is there ---------------------------------------------------------------------------


def _logs(storage: TableStorage) -> list[_File]:
    return _small(storage, "work")


def _claims(storage: TableStorage) -> list[_File]:
    return [*_small(storage, FOLDER), *_small(storage, PRESENCES)]


def _old_records(
    storage: TableStorage, before: float, busy: Collection[str], names: Sequence[str] | None = None
) -> list[_File]:
    """Return the old records of columns and UDFs, or those of some names."""
    if names is not None:
        found = list(_stat(storage.path, "_backfill", names))
    else:
        found = [f for folder in ("ledger", "force", PICKLES) for f in _small(storage, folder)]
    udfs = [f for f in found if f.is_udf]
    others, _ = _split([f for f in found if not f.is_udf], before, busy)
    return [*others, *_split(udfs, min(before, time.time() - _BINDING_S))[0]]


def _small(storage: TableStorage, folder: str) -> list[_File]:
    if storage.local:
        return list(_stat(storage.path, "_backfill", storage.objects.list(folder)))
    return [_File(n, 0, at) for n, at in storage.written(folder).items()]


def _data(storage: TableStorage) -> list[_File]:
    """Return the files under ``data/``; on object stores ours, as old as their names say."""
    names = storage.list_files()
    if storage.local:
        return list(_stat(storage.path, "data", names))
    parsed = ((n, ColumnFileName.parse(n)) for n in names)
    return [_File(n, 0, name.begun_s) for n, name in parsed if name is not None]


def _torn(storage: TableStorage) -> list[_File]:
    """Return half-written small files of the engine, and files that a probe left on a store."""
    if not storage.local:
        probes = storage.objects.list(PROBES)
        return [_File(n, 0, float(n.split("/")[1].partition("-")[0])) for n in probes]
    root = storage.path / "_backfill"
    found = [
        os.path.relpath(os.path.join(folder, n), root)
        for folder, _, names in os.walk(root)
        for n in names
        if n.startswith(".tmp-")
    ]
    return list(_stat(storage.path, "_backfill", found))


def _stat(table: Path, folder: str, names: Iterable[str]) -> Iterator[_File]:
    root = table.resolve()
    inside: dict[Path, bool] = {}
    for name in names:
        path = table / folder / name
        if path.parent not in inside:
            inside[path.parent] = path.parent.resolve().is_relative_to(root)
        if not inside[path.parent]:
            continue  # behind a link: nothing outside the table is ever deleted
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # its job committed and removed it meanwhile
        yield _File(name, status.st_size, status.st_mtime)


# --- what is needed --------------------------------------------------------------------------


def _finished_files(storage: TableStorage, logs: Iterable[_File]) -> set[str]:
    """Return the column files that wait for a commit, as the logs that stay name them."""
    found: set[str] = set()
    for log in logs:
        try:
            content = storage.objects.read_log(log.name)
        except FileNotFoundError:
            continue
        found.update(m.decode() for m in _NAME.findall(content[-_TAIL_BYTES:]))
    return found


def _versions(storage: TableStorage, dataset: Any) -> list[dict[str, Any]]:
    try:
        return list(dataset.versions())
    except (OSError, RuntimeError):
        if storage.local:
            check_all_manifests(storage.path)
        raise
