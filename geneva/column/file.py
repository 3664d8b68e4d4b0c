"""Column files: write one for a fragment, validate it, and read its footer and name.

Its name is the atomic, free summary of its row map:
``gv.<incarnation>.<class>.<a|m>.<generation>.<uuid>.lance``. *a*: every live row was computed by
one UDF from the inputs that ``class`` stands for. *m*: mixed, the footer's row map tells. The
uuid begins with the time, as version 7 does: object stores' clients do not tell a file's age.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geneva.errors import CorruptFileError
from geneva.model.rows import MISSING, IntArray, Marks, RowClass, RowMap, RowStatus, is_row_map
from geneva.model.types import ColumnFile, Target, Task, is_blob_v2, stored_type
from geneva.storage.blobs import PLACES_V1, PLACES_V2, as_held
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import is_blob
from geneva.storage.values import ColumnWriter, Footer, flags, size_of
from geneva.udf.failures import BadResult, Inexact
from geneva.udf.recast import encode

_PATTERN = re.compile(r"gv\.([0-9a-f]{8})\.([0-9a-f]{16})\.([am])\.(\d+)\.([0-9a-f]{32})\.lance")
_TIME_DIGITS = 12  # of a uuid of version 7: milliseconds since 1970


@dataclass(frozen=True, slots=True)
class ColumnFileName:
    """The facts in a column file's name."""

    incarnation: str
    class_hash: str
    uniform: bool
    generation: int
    begun_s: float = dataclasses.field(default=math.inf, compare=False)  # Unix time, if known

    def text(self) -> str:
        """Return a fresh name that says this."""
        flag = "a" if self.uniform else "m"
        head = f"gv.{self.incarnation}.{self.class_hash}.{flag}.{self.generation}"
        unique = f"{time.time_ns() // 1_000_000:012x}7{uuid4().hex[13:]}"
        return f"{head}.{unique}.lance"

    @classmethod
    def parse(cls, name: str) -> ColumnFileName | None:
        """Read a name; ``None`` for files that this engine did not write."""
        match = _PATTERN.fullmatch(name)
        if match is None:
            return None
        incarnation, class_hash, flag, generation, unique = match.groups()
        timed = unique[_TIME_DIGITS] == "7"
        begun_s = int(unique[:_TIME_DIGITS], 16) / 1000 if timed else math.inf
        return cls(incarnation, class_hash, flag == "a", int(generation), begun_s)


def vouches(file: str, incarnation: str, digest: str, inputs: Marks) -> bool:
    """Whether a file's name says that every live row is of this class."""
    # Asked of every fragment of a plan: no pattern, and no hash of what others wrote.
    begin = f"gv.{incarnation}."
    if not file.startswith(begin) or "|" in file:
        return False
    return file.startswith(f"{class_hash(digest, inputs)}.a.", len(begin))


def class_hash(digest: str, inputs: Marks) -> str:
    """Return 16 digits that stand for a UDF and the sources of its inputs."""
    marks = ", ".join([repr(tuple(m)) for m in inputs])
    text = f"({digest!r}, [{marks}])"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


ROW_MAP = "geneva.rows"
WORK_KEY = "geneva.key"
FRAGMENT = "geneva.fragment"
_SPAN_ROWS = 65_536  # physical rows laid out at once around sparse results
_PRESENT_ROWS = 8192  # present values read at once
_PRESENT_BYTES = 8 << 20  # the same, where rows are wide
_SPARSE = 10  # a file with so many rows around each computed one is mostly null
_NO_DICTIONARY = {b"lance-encoding:dict-divisor": b"1000000"}
_BYTE = 8  # bits
_WRITE_BYTES = 2 << 20  # larger vector batches make the Lance writer several times slower
GATHER_BYTES = 1 << 18  # smaller ones are written together: a call costs as much as 1000s of rows


class ColumnFileBuilder:
    """Lays computed values out over a fragment's physical rows, in order.

    Rows that were not computed keep the value and the class that they have (``task.carry``), or
    are null and missing. Nothing is written before the first computed row, so a filter that
    matches nothing leaves no file.
    """

    def __init__(
        self, storage: TableStorage, snapshot: Snapshot, target: Target, task: Task
    ) -> None:
        self._storage, self._snapshot = storage, snapshot
        self._target, self._task = target, task
        self._schema = pa.schema([snapshot.schema.field(c) for c in target.columns])
        self._types = [stored_type(t) for t in self._schema.types]
        self._held = as_held(self._schema)
        self._classes = _Classes(task)
        self._ids = (
            np.full(task.rows, self._classes.missing, np.int64)
            if task.carry is None
            else task.carry.expand()
        )
        self._writer: ColumnWriter | None = None
        self._name = ""
        self._cursor = 0
        self._nulls = 0
        self._gathered: list[Sequence[pa.Array]] = []
        self._gathered_bytes = 0
        keeps = task.carry is not None and not task.complete
        # Around a few new values a whole fragment of wide ones must not be held in memory.
        self._present_rows = self._fitting(_PRESENT_ROWS) if keeps else _PRESENT_ROWS
        wide = self._present_rows < _PRESENT_ROWS
        self._span_rows = 2 * self._present_rows if wide else _SPAN_ROWS
        self._present = self._read_present() if keeps else None

    @property
    def empty(self) -> bool:
        """Whether nothing was computed."""
        return self._writer is None

    def add(self, rows: IntArray, values: Sequence[pa.Array], failed: IntArray) -> int:
        """Lay out the values of some rows that lie behind all rows added before.

        Parameters
        ----------
        rows
            Physical rows, ascending.
        values
            One array per column, as long as ``rows``.
        failed
            Positions in ``rows`` of those that failed.

        Returns
        -------
        int
            How many of the rows held a value before.
        """
        dense = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
        at: IntArray | slice = slice(int(rows[0]), int(rows[-1]) + 1) if dense else rows
        before = self._ids[at]
        overwritten = self._classes.holding_value(before)
        self._ids[at] = self._classes.computed(before)
        if len(failed):
            self._ids[rows[failed]] = self._classes.failed
        for start, stop in _spans(rows, self._cursor, self._span_rows):
            self._fill(rows[start:stop], [v.slice(start, stop - start) for v in values])
        return overwritten

    def finish(self) -> ColumnFile:
        """Complete, close and validate the file; whoever calls syncs it.

        Raises
        ------
        CorruptFileError
            What was written is not what should have been.
        """
        # A crash between any two of these leaves a file that no version and no frame names:
        #
        # 1. write what is left of the rows, and close the file with its row map in the footer;
        # 2. read it back: Lance validates nothing at commit, so this is the last look at it;
        # 3. the caller syncs it, and only then appends the finish frame that names it, so that a
        #    frame never speaks of a file that a power failure can still take.
        while self._cursor < self._task.rows:
            self._emit_present(min(self._task.rows, self._cursor + self._span_rows))
        self._flush()
        assert self._writer is not None
        row_map = RowMap.from_ids(self._classes.all, self._ids).dumps()
        size = self._writer.close(
            {
                ROW_MAP: row_map,
                WORK_KEY: self._task.key,
                FRAGMENT: str(self._task.fragment_id),
                "geneva.nulls": str(self._nulls),
            }
        )
        check_file(self._storage, self._name, self._task.rows, self._schema)
        return ColumnFile(
            fragment_id=self._task.fragment_id,
            rows=self._task.rows,
            name=self._name,
            row_map_text=row_map,
            sources=self._task.sources,
            target_file=self._task.target_file,
            deletion=self._task.deletion,
            live=self._task.live,
            size_bytes=size,
        )

    def abandon(self) -> None:
        """Remove the written file; the records of the task are all that is left."""
        self._writer, self._gathered = None, []  # Lance removes a file that was not closed
        if self._name:
            with suppress(OSError):
                self._storage.delete_file(self._name)

    def _fill(self, rows: IntArray, values: list[pa.Array]) -> None:
        """Write the physical rows from the cursor through the last of ``rows``."""
        if self._writer is None:
            span = int(rows[-1]) + 1 - self._cursor
            self._open(sparse=self._present is None and span > _SPARSE * len(rows))
        while self._cursor + self._span_rows <= int(rows[0]):
            self._emit_present(self._cursor + self._span_rows)
        start, stop = self._cursor, int(rows[-1]) + 1
        # Taken also when none of them is kept: the values behind must not move up.
        present = self._take_present(stop - start)
        if stop - start == len(rows):
            self._write(values)
        else:
            self._write(_scatter(values, rows - start, stop - start, present))
        self._cursor = stop

    def _emit_present(self, stop: int) -> None:
        present = self._take_present(stop - self._cursor)
        n = stop - self._cursor
        self._write(present or [pa.nulls(n, t) for t in self._types])
        self._cursor = stop

    def _open(self, *, sparse: bool) -> None:
        row_class = self._task.row_class
        name = ColumnFileName(
            self._target.incarnation,
            class_hash(row_class.digest, row_class.inputs),
            self._task.complete,
            row_class.generation,
        )
        self._name = name.text()
        schema = _encoded_as_sparse(self._schema) if sparse else self._schema
        self._writer = self._storage.create_file(self._snapshot, self._name, schema)

    def _write(self, arrays: Sequence[pa.Array]) -> None:
        self._gathered.append(arrays)
        self._gathered_bytes += sum(map(size_of, arrays))
        if self._gathered_bytes >= GATHER_BYTES:
            self._flush()

    def _flush(self) -> None:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if not gathered:
            return
        assert self._writer is not None
        pieces = zip(*gathered, strict=True)  # of each column
        joined = [p[0] if len(p) == 1 else pa.concat_arrays(p) for p in pieces]
        columns = [_as_column(a, f.type) for a, f in zip(joined, self._held, strict=True)]
        self._nulls += columns[0].null_count
        batch = pa.record_batch(columns, schema=self._held)
        size = max(batch.nbytes, 1)
        step = max(1, int(batch.num_rows * _WRITE_BYTES / size)) if size > 2 * _WRITE_BYTES else 0
        for at in range(0, batch.num_rows, step or batch.num_rows):
            self._writer.write(_unsliced(batch.slice(at, step) if step else batch))

    def _fitting(self, most: int) -> int:
        """Return how many present values to hold at once, by the size of their file."""
        fragment = self._snapshot.fragments[self._task.fragment_id]
        ids = set(self._snapshot.fields[self._target.columns[0]].subtree)
        size = sum(f.size_bytes for f in fragment.files if ids.intersection(f.fields))
        return int(max(1, min(most, _PRESENT_BYTES * max(fragment.rows, 1) / max(size, 1))))

    def _read_present(self) -> Iterator[pa.RecordBatch]:
        """Yield the target's present values in physical order, null where deleted."""
        names = list(self._target.columns)
        for batch in self._storage.scan(
            self._snapshot,
            self._task.fragment_id,
            names,
            batch_rows=self._present_rows,
            readahead=1 if self._present_rows < _PRESENT_ROWS else None,
        ):
            columns = [batch.column(n) for n in names]
            deleted = flags(batch.column("_rowaddr").is_null())
            if deleted.any():
                index = pa.array(np.arange(batch.num_rows), mask=deleted)
                columns = [c.take(index) for c in columns]
            decoded = [_decoded(c, t) for c, t in zip(columns, self._types, strict=True)]
            yield pa.record_batch(decoded, names=names)

    _left: pa.RecordBatch | None = None

    def _take_present(self, count: int) -> list[pa.Array]:
        """Return the next present values, or nothing if there are none in this fragment."""
        if self._present is None:
            return []
        pieces: list[pa.RecordBatch] = []
        while count:
            batch = self._left or next(self._present)
            pieces.append(batch.slice(0, count))
            self._left = batch.slice(count) if batch.num_rows > count else None
            count -= pieces[-1].num_rows
        return [pa.concat_arrays([p.column(i) for p in pieces]) for i in range(len(self._types))]


def _encoded_as_sparse(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a file that is mostly null.

    Lance counts the different values of a page to choose a dictionary, nulls included, which is
    half of what writing such numbers costs; a dictionary would gain nothing.
    """
    fields = [
        f.with_metadata({**(f.metadata or {}), **_NO_DICTIONARY})
        if pa.types.is_primitive(f.type)
        else f
        for f in schema
    ]
    return pa.schema(fields, schema.metadata)


class _Classes:
    """Class ids of a column file: those carried, then those of the rows computed here."""

    def __init__(self, task: Task) -> None:
        carried = list(task.carry.classes) if task.carry else []
        self.all: list[RowClass] = [*carried, MISSING]
        self.missing = len(carried)
        self._holds = np.array([c.status.holds_value for c in self.all], np.bool_)
        merged = [self._merged(task, i) for i in range(len(self.all))]
        self._computed = np.arange(len(merged)) + len(self.all)
        self.all += merged
        new = task.row_class
        self.failed = len(self.all)
        self.all.append(
            RowClass(RowStatus.FAILED, new.digest, new.inputs, new.wheres, new.generation)
        )

    @staticmethod
    def _merged(task: Task, carried: int) -> RowClass:
        new = task.row_class
        if carried not in task.keep_wheres or task.carry is None:
            return new
        kept = dict(task.carry.classes[carried].wheres) | dict(new.wheres)
        wheres = tuple(sorted(kept.items(), key=lambda w: w[0]))
        return RowClass(new.status, new.digest, new.inputs, wheres, new.generation)

    def computed(self, ids: IntArray) -> IntArray | np.int64:
        """Return the classes that rows of these classes have once they are computed."""
        return self._computed[ids] if self.missing else self._computed[0]

    def holding_value(self, ids: IntArray) -> int:
        """Count the rows that hold a value."""
        return int(np.count_nonzero(self._holds[ids])) if self.missing else 0


def _spans(rows: IntArray, cursor: int, span_rows: int) -> Iterator[tuple[int, int]]:
    """Cut sparse rows so that no piece covers many physical rows."""
    if int(rows[-1]) + 1 - min(cursor, int(rows[0])) <= 2 * span_rows:
        yield 0, len(rows)
        return
    cuts = np.flatnonzero(np.diff(rows // span_rows)) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    yield from itertools.pairwise(edges)


def _scatter(
    values: list[pa.Array], rows: IntArray, count: int, present: list[pa.Array]
) -> list[pa.Array]:
    """Lay values out in so many rows; the others keep the present value or are null."""
    if all(pa.types.is_primitive(v.type) and v.type.bit_width >= _BYTE for v in values):
        kept = present or [None] * len(values)
        return [_scattered(v, rows, count, p) for v, p in zip(values, kept, strict=True)]
    gaps = np.ones(count, np.bool_)
    gaps[rows] = False
    index = np.zeros(count, np.int64)
    index[rows] = np.arange(len(rows))
    if not present:
        where = pa.array(index, mask=gaps)
        return [v.take(where) for v in values]
    index[gaps] = np.flatnonzero(gaps) + len(rows)
    where = pa.array(index)
    return [pa.concat_arrays([v, p]).take(where) for v, p in zip(values, present, strict=True)]


def _scattered(values: pa.Array, rows: IntArray, count: int, present: pa.Array | None) -> pa.Array:
    """Lay out plain numbers: ten times as fast as Arrow, which looks at each row."""
    if present is None:
        found, valid = np.zeros(count, _raw(values).dtype), np.zeros(count, np.bool_)
    else:
        found, valid = _raw(present).copy(), flags(present.is_valid())
    found[rows] = _raw(values)
    valid[rows] = flags(values.is_valid()) if values.null_count else True
    bits = np.packbits(valid, bitorder="little")
    buffers = [pa.py_buffer(bits), pa.py_buffer(found)]
    return pa.Array.from_buffers(values.type, count, buffers)


def _raw(array: pa.Array) -> npt.NDArray[np.void]:
    """Return the bytes of plain numbers, one item each."""
    item = np.dtype((np.void, array.type.bit_width // _BYTE))
    return np.frombuffer(array.buffers()[1], item, len(array), array.offset * item.itemsize)


def _unsliced(batch: pa.RecordBatch) -> pa.RecordBatch:
    # pylance 14.0 panics on slices of structs within structs or fixed-size lists: copy those.
    if any(_nests_struct(f.type) for f in batch.schema):
        return batch.take(pa.array(np.arange(batch.num_rows)))
    return batch


def _nests_struct(data_type: pa.DataType) -> bool:
    """Whether a struct lies within a struct or a fixed-size list, at any depth."""
    inner = [data_type.field(i).type for i in range(data_type.num_fields)]
    holder = pa.types.is_struct(data_type) or pa.types.is_fixed_size_list(data_type)
    return any((holder and pa.types.is_struct(t)) or _nests_struct(t) for t in inner)


def _decoded(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return array.cast(data_type)
    return array


def _as_column(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    try:
        return encode(array, data_type) if pa.types.is_dictionary(data_type) else array
    except Inexact as bad:
        raise BadResult.at(
            None,
            f"{bad.reason} in a fragment, and the column is {data_type}: drop it and add it with "
            "wider indices, or as plain values",
        ) from bad


def check_file(storage: TableStorage, name: str, rows: int, schema: pa.Schema) -> None:
    """Verify a column file; Lance itself validates nothing at commit.

    Raises
    ------
    CorruptFileError
        Wrong number of rows, or wrong columns.
    """
    footer = storage.read_footer(name)
    if footer.rows != rows or not _agree(footer.schema, schema):
        raise CorruptFileError(
            f"column file {name} holds {footer.rows} rows of {footer.schema.remove_metadata()}, "
            f"but its fragment needs {rows} rows of {schema.remove_metadata()}"
        )


def _agree(found: pa.Schema, wanted: pa.Schema) -> bool:
    """Whether a file has the columns of a schema.

    Of blobs its own schema says no type, and lists what says where they are behind their column.
    """
    at = 0
    for field in wanted:
        if at == len(found.names) or found.names[at] != field.name:
            return False
        if is_blob(field):
            inner = PLACES_V2 if is_blob_v2(field.type) else PLACES_V1
            at += len(inner) if found.names[at + 1 : at + 1 + len(inner)] == inner else 0
        elif not found.field(at).remove_metadata().equals(field.remove_metadata()):
            return False
        at += 1
    return at == len(found.names)


def read_row_map(storage: TableStorage, name: str) -> RowMap:
    """Read a column file's row map.

    Raises
    ------
    FileNotFoundError
        The file was cleaned up.
    CorruptFileError
        It has none.
    """
    return RowMap.loads(row_map_text(storage.read_footer(name), name))


def row_map_text(footer: Footer, name: str) -> str:
    """Return a column file's row map as its footer holds it.

    Raises
    ------
    CorruptFileError
        It has none.
    """
    text = footer.metadata.get(ROW_MAP, "")
    if not is_row_map(text):
        raise CorruptFileError(f"column file {name} has no row map in its footer")
    return text
