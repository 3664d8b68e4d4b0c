"""The Lance table: the only place, with ``table.py``, that imports lance.

`TableStorage` is a small picklable value. Every read or write of the engine is one of its
methods, so that a test can hand in one that fails at the n-th call.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast
from urllib.parse import urlparse
from uuid import uuid4

import pyarrow as pa

from geneva.errors import (
    CorruptFileError,
    StorageError,
    TableChangedError,
    TableError,
    VersionGoneError,
    WhereError,
)
from geneva.model.rows import IntArray
from geneva.storage import local as disk
from geneva.storage.blobs import as_written
from geneva.storage.compat import complete
from geneva.storage.door import LanceErrors, is_fault
from geneva.storage.objects import LocalObjects, Objects, each, sync_directory, sync_file
from geneva.storage.remote import FLUSH_S, RemoteObjects, persist, with_defaults
from geneva.storage.snapshot import DataFileInfo, name_in_file
from geneva.storage.snapshot import FragmentInfo as FragmentInfo
from geneva.storage.snapshot import Snapshot as Snapshot
from geneva.storage.values import (
    IN_PLACE,
    Change,
    ColumnReader,
    ColumnWriter,
    CommitConflict,
    Footer,
    Replacement,
)

os.environ.setdefault("LANCE_LOG", "error")  # its own warnings interleave with progress bars

import lance
import lance.commit
from lance import LanceOperation
from lance.file import LanceFileReader, LanceFileSession, LanceFileWriter
from lance.fragment import DataFile

PROBES = "probes"  # tables that were made to try a bucket out
_CHECKED: set[str] = set()  # buckets of which this process knows that they keep commits apart
# For which the latest version may vanish again and again, while it is opened and worked on.
_OPEN_S, _WORK_S = 10.0, 60.0
T = TypeVar("T")
_FILTER_OF_PLAN = re.compile(r"full_filter=(.*), refine_filter=", re.DOTALL)
_NEWEST_FORMAT: Literal["2.2"] = "2.2"  # holds every type that a table may have
TOMBSTONE = -2  # Lance's mark for a field that a data file no longer supplies

complete(LanceOperation.RewrittenIndex)


class FilterPlanner:
    """Plans filters as Lance does, on an empty table in memory.

    Every method raises `ValueError` where Lance refuses.
    """

    def __init__(self, schema: pa.Schema) -> None:
        bare = pa.schema([pa.field(f.name, f.type, f.nullable) for f in schema])
        self._dataset = lance.write_dataset(
            bare.empty_table(), "memory://", data_storage_version=_NEWEST_FORMAT
        )

    def resolved(self, where: str) -> str:
        """Return the expression that Lance evaluates, in its own notation."""
        plan: str = self._planned(lambda: self._dataset.scanner(filter=where).explain_plan())
        found = _FILTER_OF_PLAN.search(plan)
        return found[1] if found else plan

    def type_of(self, where: str) -> pa.DataType:
        """Return the type of an expression's value."""
        scan = partial(self._dataset.scanner, {"m": where}, with_row_id=True)
        found: pa.Schema = self._planned(lambda: scan().projected_schema)
        return found.field("m").type

    def _planned(self, plan: Callable[[], Any]) -> Any:
        try:
            return plan()
        except (OSError, ValueError) as error:
            raise ValueError(str(error)) from None
        except BaseException as error:  # a Rust panic is none of Python's own errors
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class TableStorage:
    """Everything that the engine does to a table's files.

    Parameters
    ----------
    uri
        Of the table (ends in ``.lance``), not of the database.
    options
        Storage options as lancedb takes them; never shown.
    flush_s
        On an object store: seconds after which checkpoints are written.
    """

    uri: str
    options: Mapping[str, str] | None = field(default=None, repr=False)
    flush_s: float = FLUSH_S

    # --- reading the table -------------------------------------------------------------

    @property
    def local(self) -> bool:
        """Whether the table lies on a disk of this machine or one mounted on it."""
        return disk.directory(self.uri) is not None

    @property
    def path(self) -> Path:
        """The directory of a local table."""
        found = disk.directory(self.uri)
        assert found is not None, "it is on an object store"
        return found

    def open(self, version: int | None = None) -> Snapshot:
        """Open the latest version, or a given one.

        Raises
        ------
        VersionGoneError
            That version was cleaned up.
        TableChangedError
            It was torn, or the table vanished.
        CorruptFileError
            A power failure tore the newest version.
        """
        try:
            return self._open(version) if version else self.opened(partial(self._open, None))
        except FileNotFoundError as error:
            if version is not None:
                what = f"version {version} of table {self.uri}"
                raise VersionGoneError(f"{what} is gone: {error}") from error
            raise TableChangedError(f"table {self.uri} is gone: {error}") from error

    def opened(self, latest: Callable[[], T]) -> T:
        """Open the latest version; again, while a cleanup takes it meanwhile.

        Raises
        ------
        FileNotFoundError
            There is no version of the table.
        """
        deadline = time.monotonic() + _OPEN_S
        while True:
            try:
                with self._errors():
                    return latest()
            except FileNotFoundError:
                # It was cleaned up because a newer one was made, if there is one.
                if not self._has_versions() or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)

    def _open(self, version: int | None) -> Snapshot:
        try:
            with self._errors():
                dataset = lance.dataset(self.uri, version=version, storage_options=self._options)
        except OSError:
            self.check_manifests(version)
            raise
        if not dataset.version:  # what Lance makes of a manifest of zeros
            self.check_manifests()
        return Snapshot(dataset)

    def on_latest(self, work: Callable[[Snapshot], T]) -> T:
        """Do some work on the latest version; on the next one, if that is cleaned up meanwhile.

        Raises
        ------
        VersionGoneError
            Files of a version are gone, and nobody made another one; or each version vanished
            before the work on it was done, for a minute.
        """
        lost, deadline = 0, time.monotonic() + _WORK_S
        while True:
            snapshot = self.open()
            try:
                return work(snapshot)
            except VersionGoneError:
                # The first time, it may be a version before this one that was looked at.
                if snapshot.version == lost or time.monotonic() > deadline:
                    raise
                lost = snapshot.version

    def open_planned(self, planned: bytes) -> Snapshot:
        """Open the version of a `Snapshot.manifest`, also when it was cleaned up.

        Files that later versions name as well are still there.
        """
        with self._errors():
            dataset = lance.LanceDataset(
                self.uri, storage_options=self._options, serialized_manifest=planned
            )
        return Snapshot(dataset)

    def _has_versions(self) -> bool:
        """Whether there is a version that can be opened, or could a moment ago."""
        if self.local:
            return disk.has_manifests(self.path)
        return any(n.endswith(disk.SUFFIX) for n in self._names("_versions"))

    def origins(self) -> Iterator[TableStorage]:
        """Yield the tables of which this one is a shallow clone, as it names them."""
        for base in self.open().dataset.base_paths().values():
            if base.is_dataset_root:
                yield replace(self, uri=base.path.removeprefix("file://").rstrip("/"))

    def is_latest(self, snapshot: Snapshot) -> bool:
        """Whether nothing was committed since a snapshot was opened."""
        with self._errors():
            return int(snapshot.dataset.latest_version) == snapshot.version

    def check_manifests(self, version: int | None = None) -> None:
        """Raise if a power failure is why a version of a local table cannot be opened."""
        if self.local:
            disk.check_manifests(self.path, version)

    def scan(
        self,
        snapshot: Snapshot,
        fragment_ids: int | Sequence[int],
        columns: Mapping[str, str] | Sequence[str],
        *,
        batch_rows: int,
        start: int = 0,
        stop: int | None = None,
        live_only: bool = False,
        where: str | None = None,
        readahead: int | None = None,
        descriptors: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows, fragment by fragment, in physical order; deleted ones: null ``_rowaddr``.

        Parameters
        ----------
        columns
            Names, or name -> SQL expression.
        start, stop
            Physical rows of a single fragment, half-open; not with ``live_only``.
        live_only
            Leave deleted rows out instead.
        where
            Only live rows for which this is true; with ``live_only``.
        descriptors
            Of blob columns: what and where they are, instead of the blobs.
        """
        ids = [fragment_ids] if isinstance(fragment_ids, int) else list(fragment_ids)
        fragments = [snapshot.dataset.get_fragment(i) for i in ids]
        if None in fragments:
            raise TableChangedError(f"a fragment of {ids} is not in version {snapshot.version}")
        wanted = dict(columns) if columns and isinstance(columns, Mapping) else list(columns)
        options: dict[str, Any] = {
            "columns": wanted,
            "fragments": fragments,
            "blob_handling": "blobs_descriptions" if descriptors else "all_binary",
        }
        if not live_only:
            options |= {"include_deleted_rows": True, "with_row_id": True}
        if start or stop is not None:
            options |= {"offset": start, "limit": (stop or fragments[0].physical_rows) - start}
        if readahead is not None:
            options |= {"batch_readahead": readahead, "io_buffer_size": 64 << 20}
        if where is not None:
            options |= {"filter": where}
        try:
            with self._reading(snapshot):
                scanner = snapshot.dataset.scanner(
                    **options, with_row_address=True, batch_size=batch_rows, scan_in_order=True
                )
                yield from scanner.to_batches()
        except OSError:
            if self.local:
                files = [f for i in ids for f in snapshot.fragments[i].files]
                disk.check_sizes(self.path, {f.path: f.size_bytes for f in files})
            raise

    def read_blobs(self, snapshot: Snapshot, column: str, addresses: IntArray) -> pa.Array:
        """Return the blobs of some live rows, given by row address, in that order."""
        with self._reading(snapshot):
            found = snapshot.dataset.read_blobs(
                column, addresses=pa.array(addresses, pa.uint64()), preserve_order=True
            )
            return pa.array([value for _, value in found], pa.large_binary())

    def open_blobs(
        self, snapshot: Snapshot, column: str, addresses: pa.Array
    ) -> list[BinaryIO | None]:
        """Return files of the blobs of some live rows, given by row address, in that order.

        Nothing is read yet; a null is ``None``.
        """
        with self._reading(snapshot):
            found = snapshot.dataset.take_blobs(column, addresses=addresses)
            return [None if blob is None else cast(BinaryIO, _Blob(blob)) for blob in found]

    def column_bytes(self, snapshot: Snapshot, fragment_id: int) -> dict[int, int]:
        """Return the bytes on disk of each field of a fragment, from the footers of its files."""
        sizes: dict[int, int] = {}
        for file in snapshot.dataset.get_fragment(fragment_id).metadata.files:
            with self._reading(snapshot):
                columns = self._file(file).file_statistics().columns
            for i, c in zip(file.fields, file.column_indices, strict=True):
                if i != TOMBSTONE and c >= 0:
                    sizes[i] = sizes.get(i, 0) + columns[c].size_bytes
        return sizes

    def column_reader(
        self, snapshot: Snapshot, fragment_id: int, field_id: int
    ) -> ColumnReader | None:
        """Return a reader of a column without children by physical rows, if one file holds it."""
        metadata = snapshot.dataset.get_fragment(fragment_id).metadata
        if metadata.overlays:
            return None
        for file in metadata.files:
            if field_id in file.fields:
                with self._reading(snapshot):
                    schema = self._file(file).metadata().schema
                    name = name_in_file(schema, file.fields, field_id)
                    reader = None if name is None else self._file(file, name)
                return (
                    None
                    if reader is None
                    else ColumnReader(reader, partial(self._reading, snapshot))
                )
        return None

    def _file(self, file: Any, *columns: str) -> Any:
        uri = f"{self.uri}/data/{file.path}"
        return LanceFileReader(
            uri, storage_options=self._options, columns=list(columns) if columns else None
        )

    def check_filter(self, snapshot: Snapshot, where: str) -> None:
        """Let Lance plan a filter.

        Raises
        ------
        WhereError
            It cannot.
        """
        try:
            with self._reading(snapshot):
                snapshot.dataset.scanner(filter=where).explain_plan()
        except OSError as error:
            if is_fault(error):
                raise
            raise WhereError(str(error)) from error

    def change(self, snapshot: Snapshot, version: int) -> Change | None:
        """Return the transaction of a version, or ``None`` if it is no longer known."""
        try:
            with self._errors():
                transaction = snapshot.dataset.read_transaction(version)
        except FileNotFoundError:
            return None  # a passing fault must not become a lasting "nobody knows"
        if transaction is None:
            return None
        return Change.of(version, transaction.operation)

    # --- column files ------------------------------------------------------------------

    def create_file(self, snapshot: Snapshot, name: str, schema: pa.Schema) -> ColumnWriter:
        """Start a data file; it is invisible to everyone until it is committed."""
        check = partial(disk.check_there, self.path if self.local else None, name)
        check()
        with self._errors():
            writer = LanceFileWriter(
                f"{self.uri}/data/{name}",
                as_written(schema),
                version=snapshot.storage_version,
                storage_options=self._options,
            )
        return ColumnWriter(writer, schema, self._errors, check)

    def read_footer(self, name: str) -> Footer:
        """Read a data file's footer.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CorruptFileError
            It is not a Lance file.
        """
        try:
            with self._errors():
                reader = LanceFileReader(f"{self.uri}/data/{name}", storage_options=self._options)
                meta = reader.metadata()
        except FileNotFoundError as error:
            raise FileNotFoundError(name) from error
        except OSError as error:
            if is_fault(error) or error.errno:
                raise
            # Of an empty file Lance panics.
            raise CorruptFileError(f"data file {name} cannot be read: {error}") from error
        raw = meta.schema.metadata or {}
        return Footer(meta.num_rows, meta.schema, {k.decode(): v.decode() for k, v in raw.items()})

    def read_rows(self, name: str, rows: Sequence[int]) -> pa.Table:
        """Read some rows of a data file, ascending, whether a version refers to it or not."""
        with self._errors():
            reader = LanceFileReader(f"{self.uri}/data/{name}", storage_options=self._options)
            return reader.take_rows(list(rows)).to_table()

    def sync_files(self, names: Sequence[str]) -> None:
        """Make closed data files survive a power failure (object stores already do)."""
        if self.local and names:
            for name in names:
                sync_file(self.path / "data" / name)
            sync_directory(self.path / "data")

    def delete_file(self, name: str) -> None:
        """Remove a data file that no version refers to; missing is fine."""
        if self.local:
            disk.delete_data(self.path, name)
        else:
            RemoteObjects(self._session("data"), self.options).delete(name)

    def list_files(self) -> list[str]:
        """Return the names of all data files, referenced or not."""
        if self.local:
            return disk.data_files(self.path)
        return RemoteObjects(self._session("data"), self.options).list("")

    def unreadable(self, fields: frozenset[int]) -> Callable[[DataFileInfo], bool]:
        """List the data files; return a test for files that are gone, or there only in part.

        Asked of files that supply nothing but some fields; of any other it says no.
        """
        has = self._listed()
        only: dict[frozenset[int], bool] = {}

        def lost(file: DataFileInfo) -> bool:
            concerned = only.get(file.fields)
            if concerned is None:
                there = file.fields - {TOMBSTONE}
                concerned = only[file.fields] = bool(there) and there <= fields
            return concerned and not file.elsewhere and not has(file)

        return lost

    def _listed(self) -> Callable[[DataFileInfo], bool]:
        if self.local:
            folder = disk.DataFolder(self.path)
            folder.look()
            return folder.has
        session, names = self._session("data"), frozenset(self._names("data"))

        def has(file: DataFileInfo) -> bool:
            with self._errors():
                return file.path in names or session.contains(file.path)

        return has

    def vanished(self, files: Mapping[str, int]) -> set[str]:
        """Return those of some data files, given with their sizes, that are not there, or in part.

        Each is looked for. On an object store they are there in whole or not at all.
        """
        if self.local:
            folder = disk.DataFolder(self.path)
            named = (DataFileInfo(n, frozenset(), size) for n, size in files.items())
            return {f.path for f in named if not folder.has(f)}
        session = self._session("data")

        def there(name: str) -> bool:
            with self._errors():
                return bool(session.contains(name))

        found = each(there, [*files], self.objects.at_once)
        return {n for n, is_there in zip(files, found, strict=True) if not is_there}

    # --- changing the table ------------------------------------------------------------

    def publish(
        self,
        snapshot: Snapshot,
        replacements: Sequence[Replacement],
        columns: Sequence[str],
        properties: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Commit data files as the values of some columns, all or nothing, on ``snapshot``.

        ``snapshot`` must be the latest version: conflict detection skips versions whose
        manifest was cleaned up, so a commit on an old one can undo other people's deletes.

        Raises
        ------
        CommitConflict
            Another writer was first.
        FileNotFoundError
            One of the data files is gone, or a part of it.
        CorruptFileError
            One is not of these columns.
        """
        ids = [i for c in columns for i in snapshot.fields[c].subtree]
        with self._errors():
            like = self._data_file(snapshot, replacements[0], None) if self.local else None
            moved = partial(self._replaced, snapshot, ids, like)
            updated = each(moved, replacements, self.objects.at_once)
        return self._commit(snapshot, updated, ids, properties)

    def empty(
        self,
        snapshot: Snapshot,
        fragment_ids: Sequence[int],
        columns: Sequence[str],
        properties: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Commit that some fragments hold nothing of some columns, on the latest version.

        Raises
        ------
        CommitConflict
            Another writer was first.
        CorruptFileError
            There is nothing else in one of them.
        """
        ids = [i for c in columns for i in snapshot.fields[c].subtree]
        updated = [_without_fields(snapshot, i, ids) for i in fragment_ids]
        if alone := [m.id for m in updated if not m.files]:
            raise CorruptFileError(
                f"fragment {alone[0]} of {self.uri} holds nothing but {', '.join(columns)}, and "
                "the file is gone: restore it"
            )
        return self._commit(snapshot, updated, ids, properties)

    def _commit(
        self,
        snapshot: Snapshot,
        updated: Sequence[Any],
        ids: Sequence[int],
        properties: Mapping[str, str] | None,
    ) -> Snapshot:
        """Commit fragments in which some fields have another source, or none."""
        operation = LanceOperation.Update(
            updated_fragments=list(updated),
            fields_modified=list(ids),
            update_mode=IN_PLACE,
        )
        transaction = lance.Transaction(
            snapshot.version, operation, str(uuid4()), transaction_properties=dict(properties or {})
        )
        with self._reading(snapshot):  # Lance reads that version once more
            try:
                dataset = lance.LanceDataset.commit(
                    self.uri, transaction, storage_options=self._options, max_retries=0
                )
            except lance.commit.CommitConflictError as error:
                raise CommitConflict(
                    str(error), retryable=bool(getattr(error, "retryable", True))
                ) from error
            return Snapshot(dataset)

    def _replaced(
        self, snapshot: Snapshot, ids: Sequence[int], like: DataFile | None, new: Replacement
    ) -> Any:
        """Return the fragment's metadata with the fields moved to the new file."""
        meta = _without_fields(snapshot, new.fragment_id, ids)
        file = self._data_file(snapshot, new, like)
        if not set(file.fields) <= set(ids):
            raise CorruptFileError(f"data file {new.path} is of fields {file.fields}, not of {ids}")
        meta.files = [*meta.files, file]
        return meta

    def _data_file(self, snapshot: Snapshot, new: Replacement, like: DataFile | None) -> DataFile:
        """Return the manifest's entry of a file; ``like`` is another of the same columns."""
        # Lance would read it for that. One of the right size is what its writer validated.
        size = (self.path / "data" / new.path).stat().st_size if self.local else 0
        if like is not None and size and size == new.size_bytes:
            f = like.fields, like.column_indices, like.file_major_version
            return DataFile(new.path, *f, like.file_minor_version, size)
        if self.local and new.size_bytes and size != new.size_bytes:
            raise FileNotFoundError(f"{new.path} is not whole")
        with self._errors():
            return DataFile.create(snapshot.dataset, new.path)

    def sync_version(self, snapshot: Snapshot) -> None:
        """Make a version survive a power failure (object stores already do)."""
        if self.local:
            disk.sync_version(self.path, snapshot.version)

    def add_columns(self, fields: Sequence[pa.Field]) -> Snapshot:
        """Add columns that read as null; metadata only."""
        return self._alter(lambda dataset: dataset.add_columns(list(fields)))

    def set_field_metadata(self, metadata: Mapping[str, Mapping[str, str]]) -> Snapshot:
        """Set metadata of top-level fields by name, other keys kept."""
        known = {name: dict(values) for name, values in metadata.items()}
        return self._alter(lambda dataset: dataset.update_field_metadata(known))

    def _alter(self, change: Callable[[Any], object]) -> Snapshot:
        def attempt(latest: Snapshot) -> Snapshot:
            with self._reading(latest):
                try:
                    change(latest.dataset)
                except lance.commit.CommitConflictError as error:
                    raise CommitConflict(str(error), retryable=True) from error
                return Snapshot(latest.dataset)

        return self.on_latest(attempt)

    def check_no_wal(self, snapshot: Snapshot) -> None:
        """Refuse a table whose rows may lie in a write-ahead log.

        Raises
        ------
        TableError
            A backfill would pass over rows that readers see, and compute those that these replace.
        """
        if snapshot.has_wal:
            raise TableError(
                f"table {self.uri} has an LSM write spec: rows that merge_insert wrote lie in its "
                "write-ahead log, where no backfill sees them, until they are compacted into the "
                "table. Compact them, take the spec away (unset_lsm_write_spec), and call again"
            )

    def check_commits(self) -> None:
        """Make sure, once per bucket, that the store lets only one of two writers commit.

        A commit on an object store is a PUT that must fail if the object exists. A store that
        ignores that condition loses commits without a word. So the second version of a table
        made for this is written twice, the second time as if nobody had: Lance does not look
        first when it must not try again.

        Raises
        ------
        StorageError
            The second writer was not refused.
        """
        bucket = urlparse(self.uri).netloc
        if self.local or bucket in _CHECKED:
            return
        persist(self._probe_commits)
        if bucket not in _CHECKED:
            raise StorageError(
                f"the object store of {bucket!r} ignores `If-None-Match` when it writes an object: "
                "two writers can both believe that their commit succeeded, and one of them is "
                "lost. Nothing was computed. Use a store, or a newer version of this one, that "
                "honours conditional writes; without them no writer of this table is safe"
            )

    def _probe_commits(self) -> None:
        path = f"{PROBES}/{int(time.time())}-{uuid4().hex}.lance"
        uri, schema = f"{self.uri}/_backfill/{path}", pa.schema([("x", pa.int8())])
        replace = LanceOperation.Overwrite(schema, [])
        with self._errors():
            try:
                lance.write_dataset(schema.empty_table(), uri, storage_options=self._options)
                for _ in range(2):
                    lance.LanceDataset.commit(
                        uri, replace, read_version=1, storage_options=self._options, max_retries=0
                    )
            except lance.commit.CommitConflictError:
                _CHECKED.add(urlparse(self.uri).netloc)
            finally:
                for name in self.objects.list(path):
                    self.objects.delete(name)

    # --- the engine's own files --------------------------------------------------------

    @property
    def objects(self) -> Objects:
        """Files under ``<table>/_backfill/``."""
        if self.local:
            return LocalObjects(str(self.path / "_backfill"))
        return RemoteObjects(self._session("_backfill"), self.options, self.flush_s)

    def written(self, folder: str) -> dict[str, float]:
        """Return the engine's own files on an object store, and when each was last written."""
        return RemoteObjects(self._session("_backfill"), self.options).written(folder)

    @property
    def _options(self) -> dict[str, str] | None:
        if self.local:
            return dict(self.options) if self.options else None
        return with_defaults(self.options)

    def _names(self, folder: str) -> list[str]:
        with self._errors():
            return list(self._session(folder).list())

    def _session(self, folder: str) -> Any:
        return _session(f"{self.uri}/{folder}", tuple((self._options or {}).items()))

    def _errors(self) -> LanceErrors:
        return LanceErrors(self.options)

    @contextmanager
    def _reading(self, snapshot: Snapshot) -> Iterator[None]:
        """Tell files that a version lacks from other faults."""
        try:
            with self._errors():
                yield
        except FileNotFoundError as error:
            what = f"files of version {snapshot.version} of {self.uri}"
            raise VersionGoneError(f"{what} are gone: {error}") from error


class _Blob(lance.BlobFile):
    """A blob as a file in which, as in `io.BytesIO`, a place before the start is the start.

    Lance raises there what no library expects of a file: one looks 22 bytes before the end.
    """

    def __init__(self, blob: Any) -> None:
        super().__init__(blob.inner)
        self._blob = blob  # it closes both once nobody refers to it

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence in {os.SEEK_CUR, os.SEEK_END}:
            base = self.tell() if whence == os.SEEK_CUR else self.size()
            offset, whence = max(0, base + offset), os.SEEK_SET
        return int(super().seek(offset, whence))


def blob_type() -> pa.DataType:
    """Return the type of blobs of version 2."""
    return lance.blob_field("blob").type


def _without_fields(snapshot: Snapshot, fragment_id: int, ids: Sequence[int]) -> Any:
    """Return a fragment's metadata in which no file supplies some fields."""
    meta = snapshot.dataset.get_fragment(fragment_id).metadata
    for f in meta.files:
        f.fields = [TOMBSTONE if i in ids else i for i in f.fields]
    meta.files = [f for f in meta.files if any(i != TOMBSTONE for i in f.fields)]
    return meta


@lru_cache(maxsize=64)
def _session(uri: str, options: tuple[tuple[str, str], ...]) -> Any:
    """Return Lance's client of a prefix: each new one would connect and authenticate anew."""
    return LanceFileSession(uri, dict(options))
