"""Read the rows of a task that may have to be computed, with only the UDF's input columns.

Memory follows bytes, not rows. Columns of small values are scanned. Those of large ones are read
apart, in packs, and only the rows that are wanted: blobs, of which the scan brings descriptors
that know each size, and what takes much room in this fragment's files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva.appliers.batches import READ_BYTES, WIDE_ROW_BYTES, read_rows
from geneva.column.binding import top_level
from geneva.errors import StorageError
from geneva.model.rows import IntArray
from geneva.model.types import JobSettings, Target, Task
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import blob_columns
from geneva.storage.values import flags, integers
from geneva.udf import UDF, FilePlaces

Batch = tuple[IntArray, pa.RecordBatch]  # physical rows, and their inputs
Batches = Iterator[Batch]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Files = Mapping[str, FilePlaces]  # by the name of the column

_HELD_BYTES = 2 * READ_BYTES  # of rows that are read at once
_SCATTERED = 8  # of so many rows at most one is wanted, where rows are read by address
_ADDRESSES = 1024  # of rows that are read at once by their addresses
_OFFSET = 0xFFFFFFFF  # the low half of a row address is the physical row in its fragment


class Reader:
    """Reads the inputs of one column from one version of the table."""

    def __init__(
        self, storage: TableStorage, snapshot: Snapshot, settings: JobSettings, udf: UDF
    ) -> None:
        self._storage, self.snapshot, self._settings = storage, snapshot, settings
        self._names = settings.target.inputs
        # Kept for as long as the job: Arrow does not keep what a column's type opens files with.
        self._files = _files_of(storage, snapshot, settings.target, udf)

    def read(self, task: Task) -> Batches:
        """Yield (physical rows, inputs) in ascending order.

        Of columns that the UDF takes as files, the inputs are only the places of their blobs.
        Live rows only; those that the filter does not select, or that the plan says are done, are
        left out.
        """
        sources = self._sources(task)
        batches = _needed(task, self._live(task, sources))
        if not sources.apart:
            yield from batches
            return
        for rows, batch in batches:
            for start, end in _packs(batch, sources):
                part, at = batch.slice(start, end - start), rows[start:end]
                yield at, self._filled(part, at, sources)  # not kept here while the next is read

    def _filled(self, part: pa.RecordBatch, rows: IntArray, sources: _Sources) -> pa.RecordBatch:
        """Return all inputs of some rows, of which the scan brought a part."""
        apart = sources.apart
        columns = [apart[n](rows) if n in apart else part.column(n) for n in self._names]
        return pa.RecordBatch.from_arrays(columns, names=list(self._names))

    def read_together(self, tasks: Sequence[Task]) -> dict[int, list[Batch]]:
        """Read small fragments in one scan; return the batches of each, as `read` yields them.

        Fragments that a scan must not read, because some input is large there, are left out, and
        so are those that are too much to hold at once.

        Raises
        ------
        StorageError
            Rows came in another order than that of the tasks.
        """
        narrow = list(self._held_together(tasks))
        if not narrow:
            return {}
        ids = np.repeat([t.fragment_id for t in narrow], [t.rows for t in narrow])
        rows = np.concatenate([np.arange(t.rows, dtype=np.int64) for t in narrow])
        batches: dict[int, list[Batch]] = {t.fragment_id: [] for t in narrow}
        for at, batch in self._scan_together(narrow):
            own = ids[at]
            edges = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), len(own)]
            for a, b in itertools.pairwise(edges):
                if b > a:
                    batches[int(own[a])].append((rows[at[a:b]], batch.slice(a, b - a)))
        return {t.fragment_id: list(_needed(t, batches[t.fragment_id])) for t in narrow}

    def _held_together(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Yield tasks that one scan may read, as long as their rows may be held in memory."""
        held = 0
        for task in tasks:
            sources = self._sources(task)
            if sources.apart or sources.readahead is not None:
                continue
            size = sources.most_bytes
            if held + size > _HELD_BYTES:  # other columns may be most of the files: look
                sizes = self._storage.column_bytes(self.snapshot, task.fragment_id)
                size = sum(sizes.get(i, 0) for i in self._leaves())
            held += size
            if held > _HELD_BYTES:
                return
            yield task

    def _leaves(self) -> set[int]:
        """Return the ids of all fields below the UDF's inputs."""
        names = {top_level(self.snapshot.schema, n) for n in self._names}
        return {i for n in names for i in self.snapshot.fields[n].subtree}

    def _scanned(self, names: Sequence[str], *, masked: bool) -> dict[str, str]:
        """Return the expressions of a scan, by the names of its columns."""
        columns = {f"i{k}": column_path(self.snapshot.schema, n) for k, n in enumerate(names)}
        where = self._settings.where
        return {**columns, "m": where} if masked and where is not None else columns

    def _scan_together(self, tasks: Sequence[Task]) -> Batches:
        """Yield (positions, inputs) of live rows that are selected; a position per physical row."""
        masked = self._settings.where is not None
        addresses = np.concatenate(
            [np.arange(t.rows, dtype=np.int64) + (t.fragment_id << 32) for t in tasks]
        )
        cursor = 0
        for batch in self._storage.scan(
            self.snapshot,
            [t.fragment_id for t in tasks],
            self._scanned(self._names, masked=True),
            batch_rows=self._settings.read_rows,
        ):
            at = np.arange(cursor, cursor + batch.num_rows, dtype=np.int64)
            cursor += batch.num_rows
            live = batch.column("_rowaddr")
            same = pc.equal(live, pa.array(addresses[at], pa.uint64()))
            if not pc.all(same, min_count=0).as_py():
                raise StorageError(
                    f"rows of {self._storage.uri} were not read in the order of its fragments"
                )
            chosen = _selected(batch, deleted=bool(live.null_count), masked=masked)
            yield _chosen(at, _inputs(batch, self._names), chosen)

    def _live(self, task: Task, sources: _Sources) -> Batches:
        """Yield (physical rows, inputs) of the live rows of a task that the filter selects."""
        where = self._settings.where
        names = [n for n in self._names if n in sources.blobs or n not in sources.apart]
        if where is None and (scattered := _scattered(task)) is not None:
            yield from self._at(task, scattered, names, sources)
            return
        # Of a whole fragment Lance reads the filter's columns first, and the inputs of the
        # selected rows only; of a part, the filter is one more column.
        pushed = where is not None and task.whole
        masked = where is not None and not pushed
        cursor = task.start
        for batch in self._storage.scan(
            self.snapshot,
            task.fragment_id,
            self._scanned(names, masked=masked),
            batch_rows=sources.batch_rows,
            start=task.start,
            stop=None if task.whole else task.stop,
            live_only=pushed,
            where=where if pushed else None,
            readahead=sources.readahead,
            descriptors=bool(sources.blobs),
        ):
            inputs = _inputs(batch, names)
            if pushed:
                if batch.num_rows:
                    yield integers(batch.column("_rowaddr")) & _OFFSET, inputs
                continue
            rows = np.arange(cursor, cursor + batch.num_rows, dtype=np.int64)
            cursor += batch.num_rows
            chosen = _selected(batch, deleted=bool(task.deleted), masked=masked)
            if chosen is None or chosen.any():
                yield _chosen(rows, inputs, chosen)

    def _at(self, task: Task, rows: IntArray, names: Sequence[str], sources: _Sources) -> Batches:
        """Yield (physical rows, inputs) of live rows, which Lance takes by their addresses."""
        step = min(sources.batch_rows, _ADDRESSES)
        for at in range(0, len(rows), step):
            addresses = (rows[at : at + step] + (task.fragment_id << 32)).tolist()
            for batch in self._storage.scan(
                self.snapshot,
                task.fragment_id,
                self._scanned(names, masked=False),
                batch_rows=step,
                live_only=True,
                where=f"_rowaddr in ({', '.join(map(str, addresses))})",
                descriptors=bool(sources.blobs),
            ):
                if batch.num_rows:
                    yield integers(batch.column("_rowaddr")) & _OFFSET, _inputs(batch, names)

    def _sources(self, task: Task) -> _Sources:
        """Find the inputs that are large in this fragment; the job's figures are of a few others.

        The sizes of the files, which the manifest knows, are a bound. Only where that is too much
        the footers are asked what each column takes.
        """
        storage, snapshot, settings = self._storage, self.snapshot, self._settings
        fragment_id = task.fragment_id
        blobs = [n for n in blob_columns(snapshot.schema, self._names) if n not in self._files]
        apart: dict[str, Callable[[IntArray], pa.Array]] = {
            n: partial(_read_blobs, storage, snapshot, fragment_id, n) for n in blobs
        } | {n: partial(_file_places, t, fragment_id) for n, t in self._files.items()}
        names = [n for n in self._names if n not in apart]
        fields = {n: snapshot.fields[top_level(snapshot.schema, n)] for n in names}
        ids = {i for f in fields.values() for i in f.subtree}
        files = snapshot.fragments[fragment_id].files
        stored = [f for f in files if not f.fields.isdisjoint(ids)]
        total = sum(f.size_bytes for f in stored)
        held = total * min(settings.read_rows, task.rows) / max(task.rows, 1)
        narrow = total <= max(WIDE_ROW_BYTES * task.rows, READ_BYTES)
        if all(f.size_bytes for f in stored) and narrow and held <= _HELD_BYTES:
            return _Sources(blobs, apart, 0.0, settings.read_rows, settings.readahead, total)
        sizes = storage.column_bytes(snapshot, fragment_id)
        wide = 0
        for name, field in fields.items():
            size = sizes.get(field.id, 0)
            if name == field.name and len(field.subtree) == 1 and size > WIDE_ROW_BYTES * task.rows:
                column = storage.column_reader(snapshot, fragment_id, field.id)
                if column is not None:
                    apart[name] = column.read
                    ids.remove(field.id)
                    wide += size
        most = sum(sizes.get(i, 0) for i in ids)
        rest = read_rows(most / max(task.rows, 1))
        if not wide and rest[0] >= settings.read_rows:
            rest = settings.read_rows, settings.readahead
        return _Sources(blobs, apart, wide / max(task.rows, 1), *rest, most)


@dataclass(frozen=True, slots=True)
class _Sources:
    """How the inputs of one fragment are read.

    Attributes
    ----------
    blobs
        Columns of which the scan brings descriptors.
    apart
        A function for each input that the scan leaves out, or brings descriptors of: it reads
        some rows.
    row_bytes
        Mean size of a row of those that the scan leaves out.
    batch_rows, readahead
        Rows per batch and batches ahead of the scan.
    most_bytes
        The size of all that is read, as the files hold it.
    """

    blobs: list[str]
    apart: dict[str, Callable[[IntArray], pa.Array]]
    row_bytes: float
    batch_rows: int
    readahead: int | None
    most_bytes: int


def _read_blobs(
    storage: TableStorage, snapshot: Snapshot, fragment_id: int, name: str, rows: IntArray
) -> pa.Array:
    return storage.read_blobs(snapshot, name, rows + (fragment_id << 32))


def _file_places(places: FilePlaces, fragment_id: int, rows: IntArray) -> pa.Array:
    return places.column(rows + (fragment_id << 32))


def _files_of(storage: TableStorage, snapshot: Snapshot, target: Target, udf: UDF) -> Files:
    """Return the columns of blobs that a UDF takes as files, and how they are opened."""
    names = {n for u, n in zip(udf.input_columns, target.inputs, strict=False) if u in udf.files}
    return {
        n: FilePlaces(partial(storage.open_blobs, snapshot, n))
        for n in blob_columns(snapshot.schema, sorted(names))
    }


def _packs(batch: pa.RecordBatch, sources: _Sources) -> Iterator[tuple[int, int]]:
    """Cut rows where they would be more than is held at once; one row is never cut."""
    sizes = np.full(batch.num_rows, sources.row_bytes)
    for name in sources.blobs:
        size = batch.column(name).field("size").fill_null(0)
        sizes += integers(size)
    ends = np.cumsum(sizes)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + READ_BYTES, "right")))
        yield start, end
        start = end


def _scattered(task: Task) -> IntArray | None:
    """Return the rows that a task needs, if they are so few that they are read by address."""
    if task.need is None:
        return None
    rows = np.flatnonzero(task.need.mask()[task.start : task.stop]) + task.start
    return rows if len(rows) * _SCATTERED < task.stop - task.start else None


def _needed(task: Task, batches: Iterable[Batch]) -> Batches:
    """Leave out rows that the plan says are done."""
    need = None if task.need is None else task.need.mask()
    for rows, batch in batches:
        mask = None if need is None else need[rows]
        if mask is None or mask.all():
            yield rows, batch
        elif mask.any():
            yield rows[mask], batch.filter(pa.array(mask))


def _chosen(rows: IntArray, inputs: pa.RecordBatch, mask: Mask | None) -> Batch:
    return (rows, inputs) if mask is None else (rows[mask], inputs.filter(pa.array(mask)))


def _selected(batch: pa.RecordBatch, *, deleted: bool, masked: bool) -> Mask | None:
    """Return which rows are live and selected; ``None`` for all."""
    chosen = None
    if deleted:
        chosen = flags(batch.column("_rowaddr").is_valid())
    if masked:
        true = flags(batch.column("m"))
        chosen = true if chosen is None else chosen & true
    return None if chosen is not None and chosen.all() else chosen


def _inputs(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    if not names:  # a batch without columns would forget how many rows it has
        return batch.select(["_rowaddr"])
    return pa.RecordBatch.from_arrays(
        [batch.column(f"i{k}") for k in range(len(names))], names=list(names)
    )


def column_path(schema: pa.Schema, path: str) -> str:
    """Return a column or nested path as Lance quotes it; a name may itself hold dots."""
    parts = [path] if path in schema.names else path.split(".")
    return ".".join(f"`{p}`" for p in parts)


def row_id(storage: TableStorage, snapshot: Snapshot, fragment_id: int, row: int) -> int:
    """Return the ``_rowid`` of a physical row; an address unless ids are stable."""
    address = fragment_id << 32 | row
    if not snapshot.stable_row_ids:
        return address
    batches = storage.scan(snapshot, fragment_id, [], batch_rows=1, start=row, stop=row + 1)
    ids = [i for b in batches for i in b.column("_rowid").to_pylist()]
    return int(ids[0]) if ids and ids[0] is not None else address
