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
from types import MappingProxyType

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

Batches = Iterator[tuple[IntArray, pa.RecordBatch]]  # physical rows, and their inputs
Files = Mapping[str, FilePlaces]  # by the name of the column

_HELD_BYTES = 2 * READ_BYTES  # of rows that are read at once
_OFFSET = 0xFFFFFFFF  # the low half of a row address is the physical row in its fragment


def read(
    storage: TableStorage,
    snapshot: Snapshot,
    task: Task,
    settings: JobSettings,
    files: Files = MappingProxyType({}),
) -> Batches:
    """Yield (physical rows, inputs) in ascending order.

    Of the columns ``files`` only the places of their blobs.

    Live rows only; those that the filter does not select, or that the plan says are done, are
    left out.
    """
    sources = _sources(storage, snapshot, task, settings, files)
    found = _needed(task, _read_live(storage, snapshot, task, settings, sources))
    if not sources.apart:
        yield from found
        return
    names = settings.target.inputs
    for rows, batch in found:
        for start, end in _packs(batch, sources):
            part, at = batch.slice(start, end - start), rows[start:end]
            yield at, _filled(part, at, names, sources)  # not kept here while the next is read


def _filled(
    part: pa.RecordBatch, rows: IntArray, names: Sequence[str], sources: _Sources
) -> pa.RecordBatch:
    """Return all inputs of some rows, of which the scan brought a part."""
    apart = sources.apart
    columns = [apart[n](rows) if n in apart else part.column(n) for n in names]
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def read_together(
    storage: TableStorage, snapshot: Snapshot, tasks: Sequence[Task], settings: JobSettings
) -> dict[int, list[tuple[IntArray, pa.RecordBatch]]]:
    """Read small fragments in one scan: what `read` yields of each, by fragment id.

    Those that a scan must not read, because some input is large there, are left out, and what is
    too much to hold at once.

    Raises
    ------
    StorageError
        Rows came in another order than that of the tasks.
    """
    narrow = list(_held_together(storage, snapshot, tasks, settings))
    if not narrow:
        return {}
    ids = np.repeat([t.fragment_id for t in narrow], [t.rows for t in narrow])
    rows = np.concatenate([np.arange(t.rows, dtype=np.int64) for t in narrow])
    found: dict[int, list[tuple[IntArray, pa.RecordBatch]]] = {t.fragment_id: [] for t in narrow}
    for at, batch in _scan_together(storage, snapshot, narrow, settings):
        own = ids[at]
        edges = [0, *(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), len(own)]
        for a, b in itertools.pairwise(edges):
            if b > a:
                found[int(own[a])].append((rows[at[a:b]], batch.slice(a, b - a)))
    return {t.fragment_id: list(_needed(t, found[t.fragment_id])) for t in narrow}


def _held_together(
    storage: TableStorage, snapshot: Snapshot, tasks: Sequence[Task], settings: JobSettings
) -> Iterator[Task]:
    """Yield tasks that one scan may read, as long as what they read together may be held."""
    held = 0
    for task in tasks:
        sources = _sources(storage, snapshot, task, settings)
        if sources.blobs or sources.apart or sources.readahead is not None:
            continue
        size = sources.most_bytes
        if held + size > _HELD_BYTES:  # other columns may be most of the files: look
            sizes = storage.column_bytes(snapshot, task.fragment_id)
            size = sum(sizes.get(i, 0) for i in _leaves_read(snapshot, settings))
        held += size
        if held > _HELD_BYTES:
            return
        yield task


def _leaves_read(snapshot: Snapshot, settings: JobSettings) -> set[int]:
    """Return the ids of all fields below the UDF's inputs."""
    names = {top_level(snapshot.schema, n) for n in settings.target.inputs}
    return {i for n in names for i in snapshot.fields[n].subtree}


def _scan_together(
    storage: TableStorage, snapshot: Snapshot, tasks: Sequence[Task], settings: JobSettings
) -> Batches:
    """Yield (positions, inputs) of live rows that are selected; one position per physical row."""
    names = list(settings.target.inputs)
    columns = {f"i{k}": column_path(snapshot.schema, n) for k, n in enumerate(names)}
    masked = settings.where is not None
    addresses = np.concatenate(
        [np.arange(t.rows, dtype=np.int64) + (t.fragment_id << 32) for t in tasks]
    )
    cursor = 0
    for batch in storage.scan(
        snapshot,
        [t.fragment_id for t in tasks],
        columns if settings.where is None else {**columns, "m": settings.where},
        batch_rows=settings.read_rows,
    ):
        at = np.arange(cursor, cursor + batch.num_rows, dtype=np.int64)
        cursor += batch.num_rows
        live = batch.column("_rowaddr")
        if not pc.all(pc.equal(live, pa.array(addresses[at], pa.uint64())), min_count=0).as_py():
            raise StorageError(f"rows of {storage.uri} were not read in the order of its fragments")
        chosen = _selected(batch, deleted=bool(live.null_count), masked=masked)
        inputs = _inputs(batch, names)
        yield (at, inputs) if chosen is None else (at[chosen], inputs.filter(pa.array(chosen)))


@dataclass(frozen=True, slots=True)
class _Sources:
    """How the inputs of one fragment are read.

    Attributes
    ----------
    blobs
        Columns of which the scan brings descriptors.
    apart
        Of each input that the scan leaves out, or brings descriptors of: what reads some rows.
    row_bytes
        Mean size of a row of those that the scan leaves out.
    batch_rows, readahead
        Of the scan.
    most_bytes
        Of all that is read, as the files hold it.
    """

    blobs: list[str]
    apart: dict[str, Callable[[IntArray], pa.Array]]
    row_bytes: float
    batch_rows: int
    readahead: int | None
    most_bytes: int


def _sources(
    storage: TableStorage,
    snapshot: Snapshot,
    task: Task,
    settings: JobSettings,
    files: Files = MappingProxyType({}),
) -> _Sources:
    """Find the inputs that are large in this fragment; the job's figures are of a few others.

    The sizes of the files, which the manifest knows, are a bound. Only where that is too much
    the footers are asked what each column takes.
    """
    names = settings.target.inputs
    blobs = [n for n in blob_columns(snapshot.schema, names) if n not in files]
    apart: dict[str, Callable[[IntArray], pa.Array]] = {
        n: _blob_reader(storage, snapshot, task.fragment_id, n) for n in blobs
    } | {n: _file_places(t, task.fragment_id) for n, t in files.items()}
    fields = {n: snapshot.fields[top_level(snapshot.schema, n)] for n in names if n not in apart}
    ids = {i for f in fields.values() for i in f.subtree}
    stored = [f for f in snapshot.fragments[task.fragment_id].files if not f.fields.isdisjoint(ids)]
    total = sum(f.size_bytes for f in stored)
    held = total * min(settings.read_rows, task.rows) / max(task.rows, 1)
    narrow = total <= max(WIDE_ROW_BYTES * task.rows, READ_BYTES)
    if all(f.size_bytes for f in stored) and narrow and held <= _HELD_BYTES:
        return _Sources(blobs, apart, 0.0, settings.read_rows, settings.readahead, total)
    sizes = storage.column_bytes(snapshot, task.fragment_id)
    wide = 0
    for name, field in fields.items():
        size = sizes.get(field.id, 0)
        if name == field.name and len(field.subtree) == 1 and size > WIDE_ROW_BYTES * task.rows:
            reader = storage.column_reader(snapshot, task.fragment_id, field.id)
            if reader is not None:
                apart[name] = reader.read
                ids.remove(field.id)
                wide += size
    most = sum(sizes.get(i, 0) for i in ids)
    rest = read_rows(most / max(task.rows, 1))
    if not wide and rest[0] >= settings.read_rows:
        rest = settings.read_rows, settings.readahead
    return _Sources(blobs, apart, wide / max(task.rows, 1), *rest, most)


def _blob_reader(
    storage: TableStorage, snapshot: Snapshot, fragment_id: int, name: str
) -> Callable[[IntArray], pa.Array]:
    return lambda rows: storage.read_blobs(snapshot, name, rows + (fragment_id << 32))


def _file_places(places: FilePlaces, fragment_id: int) -> Callable[[IntArray], pa.Array]:
    return lambda rows: places.column(rows + (fragment_id << 32))


def files_of(storage: TableStorage, snapshot: Snapshot, target: Target, udf: UDF) -> Files:
    """Return the columns of blobs that a UDF takes as files, and how they are opened."""
    wanted = {n for u, n in zip(udf.input_columns, target.inputs, strict=False) if u in udf.files}
    return {
        n: FilePlaces(partial(storage.open_blobs, snapshot, n))
        for n in blob_columns(snapshot.schema, sorted(wanted))
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


def _needed(task: Task, found: Iterable[tuple[IntArray, pa.RecordBatch]]) -> Batches:
    need = None if task.need is None else task.need.mask()
    for rows, batch in found:
        wanted = None if need is None else need[rows]
        if wanted is None or wanted.all():
            yield rows, batch
        elif wanted.any():
            yield rows[wanted], batch.filter(pa.array(wanted))


def _read_live(
    storage: TableStorage,
    snapshot: Snapshot,
    task: Task,
    settings: JobSettings,
    sources: _Sources,
) -> Batches:
    inputs = settings.target.inputs
    names = [n for n in inputs if n in sources.blobs or n not in sources.apart]
    columns = {f"i{k}": column_path(snapshot.schema, n) for k, n in enumerate(names)}
    if settings.where is not None and task.whole:
        # Lance reads the filter's columns first and the inputs of the selected rows only.
        for batch in storage.scan(
            snapshot,
            task.fragment_id,
            columns,
            batch_rows=sources.batch_rows,
            live_only=True,
            where=settings.where,
            readahead=sources.readahead,
            descriptors=bool(sources.blobs),
        ):
            if batch.num_rows:
                yield _addresses(batch) & _OFFSET, _inputs(batch, names)
        return
    masked = settings.where is not None
    cursor = task.start
    for batch in storage.scan(
        snapshot,
        task.fragment_id,
        {**columns, "m": settings.where} if settings.where is not None else columns,
        batch_rows=sources.batch_rows,
        start=task.start,
        stop=None if task.whole else task.stop,
        readahead=sources.readahead,
        descriptors=bool(sources.blobs),
    ):
        rows = np.arange(cursor, cursor + batch.num_rows, dtype=np.int64)
        cursor += batch.num_rows
        selected = _selected(batch, deleted=bool(task.deleted), masked=masked)
        found = _inputs(batch, names)
        if selected is None:
            yield rows, found
        elif selected.any():
            yield rows[selected], found.filter(pa.array(selected))


def _selected(
    batch: pa.RecordBatch, *, deleted: bool, masked: bool
) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
    chosen = None
    if deleted:
        chosen = flags(batch.column("_rowaddr").is_valid())
    if masked:
        true = flags(batch.column("m"))
        chosen = true if chosen is None else chosen & true
    return None if chosen is not None and chosen.all() else chosen


def _addresses(batch: pa.RecordBatch) -> IntArray:
    return integers(batch.column("_rowaddr"))


def _inputs(batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
    if not names:  # a batch without columns would forget how many rows it has
        return batch.select(["_rowaddr"])
    return pa.RecordBatch.from_arrays(
        [batch.column(f"i{k}") for k in range(len(names))], names=names
    )


def column_path(schema: pa.Schema, path: str) -> str:
    """Return a column or nested path as Lance quotes it; a name may itself hold dots."""
    parts = [path] if path in schema.names else path.split(".")
    return ".".join(f"`{p}`" for p in parts)


def row_id(storage: TableStorage, snapshot: Snapshot, fragment_id: int, row: int) -> int:
    """Return what ``_rowid`` is for a physical row; an address unless ids are stable."""
    address = fragment_id << 32 | row
    if not snapshot.stable_row_ids:
        return address
    found = storage.scan(snapshot, fragment_id, [], batch_rows=1, start=row, stop=row + 1)
    ids = [i for b in found for i in b.column("_rowid").to_pylist()]
    return int(ids[0]) if ids and ids[0] is not None else address
