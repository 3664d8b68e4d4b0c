"""The Lance table: the only place, with ``table.py``, that imports lance.

`TableStorage` is a small picklable value. Every read or write of the engine is one of its
methods, so that a test can hand in one that fails at the n-th call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from uuid import uuid4

import pyarrow as pa

from geneva.errors import CorruptFileError, SettingError, TableChangedError
from geneva.storage.objects import LocalObjects, Objects, RemoteObjects, sync_directory

os.environ.setdefault("LANCE_LOG", "error")  # its own warnings interleave with progress bars

import lance
import lance.commit
from lance import LanceOperation
from lance.file import LanceFileReader, LanceFileSession, LanceFileWriter
from lance.fragment import DataFile

TOMBSTONE = -2  # Lance's mark for a field that a data file no longer supplies

# pylance 14.0: reading a Rewrite that remapped an index builds RewrittenIndex without these.
if LanceOperation.RewrittenIndex.__init__.__defaults__ is None:
    LanceOperation.RewrittenIndex.__init__.__defaults__ = ("", b"", 0)


class CommitConflict(Exception):
    """Another writer committed first; ``retryable`` says whether a rebuild can succeed."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class DataFileInfo:
    """A data file of a fragment and the ids of the fields that it supplies."""

    path: str
    fields: tuple[int, ...]
    size_bytes: int = 0  # 0: not recorded


@dataclass(frozen=True, slots=True)
class FragmentInfo:
    """What one version's manifest says of one fragment; ``rows`` counts deleted ones too."""

    id: int
    rows: int
    deleted: int
    deletion: str
    files: tuple[DataFileInfo, ...]
    overlaid: bool

    @property
    def live_rows(self) -> int:
        """Rows that are not deleted."""
        return self.rows - self.deleted


@dataclass(frozen=True, slots=True)
class Field:
    """A top-level field: its id, and those of all its descendants, itself first."""

    name: str
    id: int
    subtree: tuple[int, ...]
    arrow: pa.Field


class Snapshot:
    """One version of the table, immutable."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.version: int = dataset.version
        self.schema: pa.Schema = dataset.schema
        self.stable_row_ids: bool = bool(getattr(dataset, "has_stable_row_ids", False))
        self._fragments: dict[int, FragmentInfo] | None = None
        self._fields: dict[str, Field] | None = None

    @property
    def fragments(self) -> Mapping[int, FragmentInfo]:
        """Fragments by id, in table order."""
        if self._fragments is None:
            self._fragments = {
                i.id: i for i in (_fragment_info(f.metadata) for f in self.dataset.get_fragments())
            }
        return self._fragments

    @property
    def fields(self) -> Mapping[str, Field]:
        """Top-level fields by name."""
        if self._fields is None:
            self._fields = {
                f.name(): Field(f.name(), f.id(), tuple(_subtree(f)), self.schema.field(f.name()))
                for f in self.dataset.lance_schema.fields()
            }
        return self._fields

    @property
    def storage_version(self) -> str:
        """Lance file format version, such as ``2.2``."""
        return str(self.dataset.data_storage_version)


def _subtree(node: Any) -> Iterator[int]:
    yield node.id()
    for child in node.children():
        yield from _subtree(child)


def _path_of(data_file: Any) -> str:
    # DataFile.path builds a class at each access, 25 us: half of planning 10,000 fragments.
    path = getattr(data_file, "_path", None)
    return str(data_file.path if path is None else path)


def _fragment_info(meta: Any) -> FragmentInfo:
    deletion = meta.deletion_file
    return FragmentInfo(
        id=meta.id,
        rows=meta.physical_rows,
        deleted=meta.num_deletions or 0,
        deletion="" if deletion is None else str(sorted(deletion.asdict().items())),
        files=tuple(
            DataFileInfo(_path_of(f), tuple(f.fields), f.file_size_bytes or 0) for f in meta.files
        ),
        overlaid=bool(meta.overlays),
    )


@dataclass(frozen=True, slots=True)
class Replacement:
    """A finished data file that takes over some fields of a fragment."""

    fragment_id: int
    path: str


@dataclass(frozen=True, slots=True)
class Footer:
    """What a data file says of itself."""

    rows: int
    schema: pa.Schema
    metadata: Mapping[str, str]


RewriteGroup = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """What the transaction of one version was: its operation's name, and rewritten groups.

    A group is the ids of the old fragments, and (id, rows) of the new ones, both in row order.
    """

    version: int
    operation: str
    groups: tuple[RewriteGroup, ...] = ()


@dataclass(frozen=True)
class TableStorage:
    """Everything that the engine does to a table's files.

    Parameters
    ----------
    uri
        Of the table (ends in ``.lance``), not of the database.
    options
        Storage options as lancedb takes them; never shown.
    """

    uri: str
    options: Mapping[str, str] | None = field(default=None, repr=False)

    # --- reading the table -------------------------------------------------------------

    @property
    def local(self) -> bool:
        """Whether the table lies on a disk of this machine or one mounted on it."""
        return urlparse(self.uri).scheme in ("", "file") or self.uri[1:3] in (":\\", ":/")

    @property
    def path(self) -> Path:
        """The directory of a local table."""
        return Path(self.uri.removeprefix("file://"))

    def open(self, version: int | None = None) -> Snapshot:
        """Open the latest version, or a given one.

        Raises
        ------
        TableChangedError
            That version was cleaned up, or the table vanished.
        """
        try:
            dataset = lance.dataset(self.uri, version=version, storage_options=self._options)
        except (ValueError, OSError) as error:
            if "not found" in str(error).lower() or "does not exist" in str(error).lower():
                what = "table" if version is None else f"version {version} of table"
                raise TableChangedError(f"{what} {self.uri} is gone: {error}") from error
            raise
        return Snapshot(dataset)

    def scan(
        self,
        snapshot: Snapshot,
        fragment_id: int,
        columns: Mapping[str, str] | Sequence[str],
        *,
        batch_rows: int,
        start: int = 0,
        stop: int | None = None,
        live_only: bool = False,
        where: str | None = None,
        readahead: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield one fragment's rows in physical order, deleted ones with null ``_rowaddr``.

        Parameters
        ----------
        columns
            Names, or name -> SQL expression.
        start, stop
            Physical rows, half-open; not with ``live_only``.
        live_only
            Leave deleted rows out instead.
        where
            Only live rows for which this is true; with ``live_only``.
        """
        fragment = snapshot.dataset.get_fragment(fragment_id)
        if fragment is None:
            raise TableChangedError(f"fragment {fragment_id} is not in version {snapshot.version}")
        wanted = dict(columns) if isinstance(columns, Mapping) else list(columns)
        options: dict[str, Any] = {"columns": wanted, "fragments": [fragment]}
        if not live_only:
            options |= {"include_deleted_rows": True, "with_row_id": True}
        if start or stop is not None:
            options |= {"offset": start, "limit": (stop or fragment.physical_rows) - start}
        if readahead is not None:
            options |= {"batch_readahead": readahead, "io_buffer_size": 64 << 20}
        if where is not None:
            options |= {"filter": where}
        scanner = snapshot.dataset.scanner(
            **options, with_row_address=True, batch_size=batch_rows, scan_in_order=True
        )
        yield from scanner.to_batches()

    def check_filter(self, snapshot: Snapshot, where: str) -> None:
        """Let Lance plan a filter; ``ValueError`` or ``OSError`` when it cannot."""
        snapshot.dataset.scanner(filter=where).explain_plan()

    def change(self, snapshot: Snapshot, version: int) -> Change | None:
        """Return what made a version, or ``None`` if that is no longer known."""
        try:
            transaction = snapshot.dataset.read_transaction(version)
        except (OSError, ValueError) as error:
            if "not found" in str(error).lower() or "does not exist" in str(error).lower():
                return None
            raise  # a passing fault must not become a lasting "nobody knows"
        if transaction is None:
            return None
        operation = transaction.operation
        groups: tuple[RewriteGroup, ...] = ()
        if isinstance(operation, LanceOperation.Rewrite):
            groups = tuple(
                (
                    tuple(f.id for f in g.old_fragments),
                    tuple((f.id, f.physical_rows) for f in g.new_fragments),
                )
                for g in operation.groups
            )
        return Change(version, type(operation).__name__, groups)

    # --- column files ------------------------------------------------------------------

    def create_file(self, snapshot: Snapshot, name: str, schema: pa.Schema) -> ColumnWriter:
        """Start a data file; it is invisible to everyone until it is committed."""
        writer = LanceFileWriter(
            f"{self.uri}/data/{name}",
            schema,
            version=snapshot.storage_version,
            storage_options=self._options,
        )
        return ColumnWriter(writer)

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
            reader = LanceFileReader(f"{self.uri}/data/{name}", storage_options=self._options)
            meta = reader.metadata()
        except (OSError, ValueError, RuntimeError) as error:
            if "not found" in str(error).lower():
                raise FileNotFoundError(name) from error
            raise CorruptFileError(f"data file {name} cannot be read: {error}") from error
        raw = meta.schema.metadata or {}
        return Footer(meta.num_rows, meta.schema, {k.decode(): v.decode() for k, v in raw.items()})

    def read_rows(self, name: str, rows: Sequence[int]) -> pa.Table:
        """Read some rows of a data file, ascending, whether a version refers to it or not."""
        reader = LanceFileReader(f"{self.uri}/data/{name}", storage_options=self._options)
        return reader.take_rows(list(rows)).to_table()

    def sync_file(self, name: str) -> None:
        """Make a closed data file survive a power failure (object stores already do)."""
        if self.local:
            fd = os.open(self.path / "data" / name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def delete_file(self, name: str) -> None:
        """Remove a data file that no version refers to; missing is fine."""
        session = LanceFileSession(f"{self.uri}/data", self._options)
        try:
            session.delete_file(name)
        except OSError:
            if session.contains(name):
                raise

    def list_files(self) -> list[str]:
        """Return the names of all data files, referenced or not."""
        if self.local:
            return sorted(p.name for p in (self.path / "data").iterdir() if p.is_file())
        return sorted(LanceFileSession(f"{self.uri}/data", self._options).list())

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
            One of the data files is gone.
        """
        ids = [i for c in columns for i in snapshot.fields[c].subtree]
        if self.local:
            sync_directory(self.path / "data")
        operation = LanceOperation.Update(
            updated_fragments=[self._replaced(snapshot, r, ids) for r in replacements],
            fields_modified=ids,
            update_mode="rewrite_columns",
        )
        transaction = lance.Transaction(
            snapshot.version, operation, str(uuid4()), transaction_properties=dict(properties or {})
        )
        try:
            dataset = lance.LanceDataset.commit(
                self.uri, transaction, storage_options=self._options, max_retries=0
            )
        except lance.commit.CommitConflictError as error:
            raise CommitConflict(
                str(error), retryable=bool(getattr(error, "retryable", True))
            ) from error
        return Snapshot(dataset)

    def _replaced(self, snapshot: Snapshot, new: Replacement, ids: Sequence[int]) -> Any:
        """Return the fragment's metadata with the fields moved to the new file."""
        meta = snapshot.dataset.get_fragment(new.fragment_id).metadata
        kept = []
        for f in meta.files:
            fields = [TOMBSTONE if i in ids else i for i in f.fields]
            if any(i != TOMBSTONE for i in fields):
                f.fields = fields
                kept.append(f)
        try:
            created = DataFile.create(snapshot.dataset, new.path)
        except (OSError, ValueError) as error:
            if "not found" in str(error).lower():
                raise FileNotFoundError(new.path) from error
            raise
        meta.files = [*kept, created]
        return meta

    def add_columns(self, fields: Sequence[pa.Field]) -> Snapshot:
        """Add columns that read as null; metadata only."""
        dataset = self.open().dataset
        try:
            dataset.add_columns(list(fields))
        except lance.commit.CommitConflictError as error:
            raise CommitConflict(str(error), retryable=True) from error
        return Snapshot(dataset)

    def set_field_metadata(self, metadata: Mapping[str, Mapping[str, str]]) -> Snapshot:
        """Set metadata of top-level fields by name, other keys kept."""
        dataset = self.open().dataset
        try:
            dataset.update_field_metadata({name: dict(values) for name, values in metadata.items()})
        except lance.commit.CommitConflictError as error:
            raise CommitConflict(str(error), retryable=True) from error
        return Snapshot(dataset)

    # --- the engine's own files --------------------------------------------------------

    @property
    def objects(self) -> Objects:
        """Files under ``<table>/_backfill/``."""
        if self.local:
            return LocalObjects(str(self.path / "_backfill"))
        return RemoteObjects(LanceFileSession(f"{self.uri}/_backfill", self._options))

    @property
    def _options(self) -> dict[str, str] | None:
        return dict(self.options) if self.options else None


class ColumnWriter:
    """A data file in the making."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        self._writer.write_batch(batch)

    def close(self, metadata: Mapping[str, str]) -> int:
        """Write the footer with ``metadata``; return the file's size in bytes."""
        for key, value in metadata.items():
            self._writer.add_schema_metadata(key, value)
        self._writer.close()
        return int(self._writer.size_bytes or 0)


def check_uri(uri: str) -> None:
    """Refuse what is not a database of files.

    Raises
    ------
    SettingError
        For ``db://`` URIs.
    """
    if uri.startswith("db://"):
        raise SettingError(
            f"{uri} is a remote database: Geneva works on the table's files; "
            "connect to its path or bucket (a directory, s3://, gs:// or az://)"
        )
