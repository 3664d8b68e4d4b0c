"""Append, recover and replay the results of batches.

A journal is a sequence of frames in one log: header, then payload. A record holds physical row
numbers, values and errors of one batch as an Arrow IPC message; the last frame may name the
finished column file. What a torn write, a full disk or a flipped bit damaged ends the journal:
the frames before it count, nothing after it does.

Crash windows, in order:

1. before the frame is complete: its checksum fails, the batch is computed again;
2. after it: the batch is replayed, whoever asks;
3. after the column file is synced but before its frame: the file is an orphan, the rows are
   replayed into a new one;
4. after that frame: the file is committed as it is.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.rows import IntArray
from geneva.storage.objects import Log, Objects
from geneva.types import stored_type

_HEADER = struct.Struct("<4sB3xIIq")  # magic, kind, payload bytes, crc32, first row
_MAGIC = b"GVJ1"
_ROWS, _ERRORS = 1, 2  # kinds of records: with explicit row numbers, with error texts
_FINISH, _BEGIN = 4, 8  # frames that are no records
_RANGE = struct.Struct("<qq")


def _schema(types: Sequence[pa.DataType], kind: int) -> pa.Schema:
    fields = [pa.field(f"v{i}", stored_type(t)) for i, t in enumerate(types)]
    if kind & _ROWS:
        fields.append(pa.field("row", pa.uint32()))
    if kind & _ERRORS:
        fields.append(pa.field("error", pa.string()))
    return pa.schema(fields)


class Journal:
    """The log of one attempt at one task; created with its first frame. Thread-safe.

    Parameters
    ----------
    types
        Of the output columns.
    """

    def __init__(self, objects: Objects, path: str, types: Sequence[pa.DataType]) -> None:
        self.path = path
        self._objects = objects
        self._schemas = [_schema(types, kind) for kind in range(4)]
        self._log: Log | None = None
        self._lock = threading.Lock()
        self.size_bytes = 0

    @property
    def created(self) -> bool:
        """Whether anything was written."""
        return self._log is not None

    def append(
        self, rows: IntArray, values: Sequence[pa.Array], errors: Sequence[str | None] | None
    ) -> None:
        """Record the values of some physical rows, given in ascending order."""
        kind = (0 if _contiguous(rows) else _ROWS) | (_ERRORS if errors else 0)
        arrays: list[Any] = list(values)
        if kind & _ROWS:
            arrays.append(pa.array(rows.astype(np.uint32)))
        if errors:
            arrays.append(pa.array(errors, pa.string()))
        batch = pa.record_batch(arrays, schema=self._schemas[kind])
        self._write(kind, memoryview(batch.serialize()), int(rows[0]))

    def begin(self, first_row: int, last_row: int) -> None:
        """Record that a batch is about to be computed, so that its worker's death names it."""
        self._write(_BEGIN, memoryview(_RANGE.pack(first_row, last_row)), first_row)

    def finish(self, fact: Mapping[str, Any]) -> None:
        """Record that the column file is complete and synced."""
        self._write(_FINISH, memoryview(json.dumps(fact).encode()), 0)

    def _write(self, kind: int, payload: memoryview, first_row: int) -> None:
        crc = _checksum(kind, payload, first_row)
        header = _HEADER.pack(_MAGIC, kind, len(payload), crc, first_row)
        with self._lock:
            if self._log is None:
                self._log = self._objects.create_log(self.path)
            self._log.append(header, payload)
            self.size_bytes += len(header) + len(payload)

    def sync(self) -> None:
        """Make all frames survive a power failure, and on object stores a killed process."""
        with self._lock:
            if self._log is not None:
                self._log.sync()

    def close(self) -> None:
        """Release the log."""
        with self._lock:
            if self._log is not None:
                self._log.close()
                self._log = None


def _contiguous(rows: IntArray) -> bool:
    return int(rows[-1]) - int(rows[0]) + 1 == len(rows)


@dataclass(frozen=True, slots=True)
class Replay:
    """What earlier attempts at a piece of work left behind.

    Attributes
    ----------
    rows
        Physical rows, ascending, each once.
    errors
        Position in ``rows`` -> error text of a row that failed.
    finish
        What the finish frame said, if there was one.
    fatal
        (first, last) row of each batch that was begun and never recorded: its worker died.
    """

    rows: IntArray
    errors: Mapping[int, str]
    finish: Mapping[str, Any] | None
    fatal: tuple[tuple[int, int], ...]
    _columns: tuple[pa.ChunkedArray, ...]
    _order: IntArray

    def values(self, positions: IntArray) -> list[pa.Array]:
        """Return the output columns of some positions in ``rows``."""
        index = pa.array(self._order[positions])
        return [_whole(c.take(index)) for c in self._columns]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def replay(
    objects: Objects, paths: Sequence[str], types: Sequence[pa.DataType], *, with_failed: bool
) -> Replay:
    """Read the valid prefix of every log; where two hold a row, the first one wins.

    Parameters
    ----------
    with_failed
        Whether rows that failed count as done.
    """
    rows: list[IntArray] = []
    batches: list[pa.RecordBatch] = []
    errors: dict[int, str] = {}  # by position among all rows read
    total = 0
    fatal: list[tuple[int, int]] = []
    finish = None
    schema = _schema(types, 0)
    for path in paths:
        try:
            content = objects.read_log(path)
        except FileNotFoundError:
            continue  # its owner committed and removed it meanwhile
        begun: tuple[int, int] | None = None
        for kind, first_row, payload in _frames(content):
            if kind == _FINISH:
                finish = json.loads(bytes(payload))
                continue
            if kind == _BEGIN:
                begun = _RANGE.unpack(payload)
                continue
            begun = None
            batch = pa.ipc.read_record_batch(pa.py_buffer(payload), _schema(types, kind))
            n = batch.num_rows
            explicit = kind & _ROWS
            rows.append(
                batch.column("row").to_numpy(zero_copy_only=False).astype(np.int64)
                if explicit
                else np.arange(first_row, first_row + n)
            )
            if kind & _ERRORS:
                texts = enumerate(batch.column("error").to_pylist(), total)
                errors |= {at: text for at, text in texts if text is not None}
            total += n
            batches.append(pa.record_batch(batch.columns[: len(types)], schema=schema))
        if begun is not None:
            fatal.append(begun)
    all_rows = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    failed = np.zeros(len(all_rows), np.bool_)
    failed[list(errors)] = True
    # A value counts before a failure, else the first attempt: unique takes the first of equals.
    valued_first = np.argsort(failed, kind="stable")
    unique, at = np.unique(all_rows[valued_first], return_index=True)
    order = valued_first[at]
    if not with_failed:
        unique, order = unique[~failed[order]], order[~failed[order]]
    left = {int(i): errors[int(order[i])] for i in np.flatnonzero(failed[order])}
    columns = pa.Table.from_batches(batches, schema).columns
    return Replay(unique, left, finish, tuple(fatal), tuple(columns), order.astype(np.int64))


def _checksum(kind: int, payload: memoryview, first_row: int) -> int:
    # The header is covered too: a flipped bit there would shift rows or misread the payload.
    return zlib.crc32(payload, zlib.crc32(_HEADER.pack(_MAGIC, kind, len(payload), 0, first_row)))


def _frames(content: bytes | memoryview) -> Iterator[tuple[int, int, memoryview]]:
    view = memoryview(content)
    at = 0
    while at + _HEADER.size <= len(view):
        magic, kind, size, crc, first_row = _HEADER.unpack_from(view, at)
        payload = view[at + _HEADER.size : at + _HEADER.size + size]
        if magic != _MAGIC or len(payload) != size:
            return
        if _checksum(kind, payload, first_row) != crc:
            return
        yield kind, first_row, payload
        at += _HEADER.size + size
