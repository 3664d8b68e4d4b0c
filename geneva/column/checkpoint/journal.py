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

import io
import itertools
import json
import mmap
import struct
import threading
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.column.checkpoint.key import is_shared, log_folder, logs_by_key
from geneva.model.rows import IntArray
from geneva.model.types import stored_type
from geneva.storage.objects import Log, Objects, each
from geneva.storage.values import integers, size_of

_HEADER = struct.Struct("<4sB3xIIq")  # magic, kind, payload bytes, crc32, first row
_MAGIC = b"GVJ1"
_ROWS, _ERRORS = 1, 2  # kinds of records: with explicit row numbers, with error texts
_FINISH, _BEGIN = 4, 8  # frames that are no records
_RANGE = struct.Struct("<qq")
_SCANNED_BYTES = 32 << 20  # of a log that are in memory while its checksums are verified
_COPIED_BYTES = 64 << 10  # of values; to write larger ones piece by piece is quicker
_MOST_PARTS = 500  # of a frame that is written as it lies in memory; the kernel takes 1,024


def _schema(types: Sequence[pa.DataType], kind: int) -> pa.Schema:
    fields = [pa.field(f"v{i}", stored_type(t)) for i, t in enumerate(types)]
    if kind & _ROWS:
        fields.append(pa.field("row", pa.uint32()))
    if kind & _ERRORS:
        fields.append(pa.field("error", pa.string()))
    return pa.schema(fields)


class _Sink(io.RawIOBase):
    """A file for pyarrow: keeps the given pieces, of which only small ones are copies."""

    def __init__(self) -> None:
        self.parts: list[memoryview] = []

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self.parts.append(memoryview(part))
        return len(part)


class _Encoder:
    """Encodes batches of one schema as Arrow IPC messages without copying values; thread-safe."""

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = _Sink()
        self._lock = threading.Lock()
        self._writer = pa.ipc.new_stream(self._sink, schema)
        # The schema comes with the first batch, at the latest.
        self._writer.write_batch(pa.RecordBatch.from_pylist([], schema))

    def encode(self, batch: pa.RecordBatch) -> list[memoryview]:
        """Return the pieces of a batch's message, in order."""
        with self._lock:
            self._sink.parts = []
            self._writer.write_batch(batch)
            parts, self._sink.parts = self._sink.parts, []
        return parts if len(parts) <= _MOST_PARTS else [memoryview(b"".join(parts))]


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
        self._encoders: dict[int, _Encoder] = {}
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
        if sum(map(size_of, values)) <= _COPIED_BYTES:
            parts = [memoryview(batch.serialize())]
        else:
            with self._lock:
                if kind not in self._encoders:
                    self._encoders[kind] = _Encoder(self._schemas[kind])
            parts = self._encoders[kind].encode(batch)
        self._write(kind, parts, int(rows[0]))

    def begin(self, first_row: int, last_row: int) -> None:
        """Record that a batch is about to be computed, so that its worker's death names it."""
        self._write(_BEGIN, [memoryview(_RANGE.pack(first_row, last_row))], first_row)
        with self._lock:
            if self._log is not None:
                self._log.flush()

    def finish(self, fact: Mapping[str, Any]) -> None:
        """Record that a column file is complete and synced; ``fact["key"]``: of which work."""
        self._write(_FINISH, [memoryview(json.dumps(fact).encode())], 0)

    # A frame, in this order:
    #
    # 1. encode the batch outside the lock: threads that compute do not wait for each other;
    # 2. checksum over header and payload, so that a torn or flipped frame is seen as one;
    # 3. create the log with its first frame: work that computed nothing leaves no log;
    # 4. hand the frame to the log in one append. On a disk it survives this process from here on,
    #    on an object store after `flush`, a power failure after `sync`. Rows that are lost before
    #    that are computed again, never read as another's.

    def _write(self, kind: int, payload: Sequence[memoryview], first_row: int) -> None:
        size = sum(len(p) for p in payload)
        crc = _checksum(kind, payload, first_row)
        header = _HEADER.pack(_MAGIC, kind, size, crc, first_row)
        with self._lock:
            if self._log is None:
                self._log = self._objects.create_log(self.path)
            self._log.append(header, *payload)
            self.size_bytes += len(header) + size

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
    """The records of earlier attempts at a piece of work.

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
    _order: IntArray | None  # of ``rows`` in the columns; as they stand if every row is there once
    _logs: tuple[bytes | memoryview, ...] = ()

    def rows_of(self, most_bytes: int) -> int:
        """Return how many rows have so many bytes of values, one at least; on average."""
        size = sum(int(c.nbytes) for c in self._columns)
        return max(1, most_bytes * len(self.rows) // max(size, 1))

    def forget(self) -> None:
        """Take the logs out of this process's memory; pages still needed are read again."""
        for content in self._logs:
            _forget(content)

    def values(self, positions: IntArray) -> list[pa.Array]:
        """Return the output columns of some positions in ``rows``, given in ascending order."""
        if self._order is None and len(positions) and _contiguous(positions):
            return [_whole(c.slice(int(positions[0]), len(positions))) for c in self._columns]
        index = pa.array(positions if self._order is None else self._order[positions])
        return [_whole(c.take(index)) for c in self._columns]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def find_logs(objects: Objects, incarnation: str) -> dict[str, tuple[str, ...]]:
    """Return the checkpoint logs of a column by work key; those that several share are read."""
    paths = objects.list(log_folder(incarnation))
    found = {key: list(logs) for key, logs in logs_by_key(paths).items()}
    for path in filter(is_shared, paths):
        for key in _finished(objects, path):
            found.setdefault(key, []).append(path)
    return {key: tuple(logs) for key, logs in found.items()}


def _finished(objects: Objects, path: str) -> list[str]:
    try:
        content = objects.read_log(path)
    except FileNotFoundError:
        return []  # its owner committed and removed it meanwhile
    ends = (json.loads(bytes(p)) for kind, _, p in _frames(content) if kind == _FINISH)
    return list(dict.fromkeys(end["key"] for end in ends if "key" in end))


def replay(
    objects: Objects,
    paths: Sequence[str],
    types: Sequence[pa.DataType],
    *,
    with_failed: bool,
    key: str = "",
) -> Replay:
    """Read the valid prefix of every log; where two hold a row, the first one wins.

    Parameters
    ----------
    key
        Of the work: of a log that several share, only what was said of it counts.
    with_failed
        Whether rows that failed count as done.
    """
    # Recovery, in this order:
    #
    # 1. of each log, the frames before the first damaged one; a log that is gone was committed and
    #    removed by its owner between the listing and now, and its rows are in the table;
    # 2. a batch that was begun and has no record behind it killed its worker: its rows are `fatal`;
    # 3. a finish frame counts for the work that it names only; whoever adopts its file checks it;
    # 4. of a row that several logs hold, a value wins over a failure, then the first log.
    records: list[_Record] = []
    logs: list[bytes | memoryview] = []
    fatal: list[tuple[int, int]] = []
    finish = None
    for path in paths:
        try:
            content = objects.read_log(path)
        except FileNotFoundError:
            continue  # its owner committed and removed it meanwhile
        logs.append(content)
        begun: tuple[int, int] | None = None
        for kind, first_row, payload in _frames(content):
            if kind == _FINISH:
                end = json.loads(bytes(payload))
                finish = end if end.get("key") == key else finish
            elif kind == _BEGIN:
                begun = _RANGE.unpack(payload)
            else:
                begun = None
                records.append(_record(kind, first_row, payload, types))
        if begun is not None:
            fatal.append(begun)
    arranged = _arranged(records, types, finish, tuple(fatal), with_failed=with_failed)
    return replace(arranged, _logs=tuple(logs))


def _forget(content: bytes | memoryview) -> None:
    mapped = content.obj if isinstance(content, memoryview) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _arranged(
    records: Sequence[_Record],
    types: Sequence[pa.DataType],
    finish: Mapping[str, Any] | None,
    fatal: tuple[tuple[int, int], ...],
    *,
    with_failed: bool,
) -> Replay:
    ascending = sorted(records, key=lambda r: int(r.rows[0]))
    apart = all(int(a.rows[-1]) < int(b.rows[0]) for a, b in itertools.pairwise(ascending))
    chosen = ascending if apart else records
    errors: dict[int, str] = {}
    at = 0
    for record in chosen:
        errors |= {at + k: text for k, text in record.errors.items()}
        at += len(record.rows)
    columns = pa.Table.from_batches([r.values for r in chosen], _schema(types, 0)).columns
    rows = np.concatenate([r.rows for r in chosen]) if chosen else np.zeros(0, np.int64)
    if apart and (with_failed or not errors):
        return Replay(rows, errors, finish, fatal, tuple(columns), None)
    order, left = _winners(rows, errors, with_failed=with_failed)
    return Replay(rows[order], left, finish, fatal, tuple(columns), order)


def _winners(
    rows: IntArray, errors: Mapping[int, str], *, with_failed: bool
) -> tuple[IntArray, dict[int, str]]:
    """Choose one of the results that a row has; return positions by row, and errors by result."""
    failed = np.zeros(len(rows), np.bool_)
    failed[list(errors)] = True
    # A value counts before a failure, else the first attempt: unique takes the first of equals.
    valued_first = np.argsort(failed, kind="stable")
    _, first = np.unique(rows[valued_first], return_index=True)
    order = valued_first[first]
    if not with_failed:
        order = order[~failed[order]]
    left = {int(k): errors[int(order[k])] for k in np.flatnonzero(failed[order])}
    return order.astype(np.int64), left


@dataclass(frozen=True, slots=True)
class _Record:
    rows: IntArray
    values: pa.RecordBatch
    errors: Mapping[int, str]


def _record(
    kind: int, first_row: int, payload: memoryview, types: Sequence[pa.DataType]
) -> _Record:
    batch = pa.ipc.read_record_batch(pa.py_buffer(payload), _schema(types, kind))
    rows: IntArray = (
        integers(batch.column("row"))
        if kind & _ROWS
        else np.arange(first_row, first_row + batch.num_rows)
    )
    texts = batch.column("error").to_pylist() if kind & _ERRORS else ()
    errors = {k: text for k, text in enumerate(texts) if text is not None}
    values = pa.record_batch(batch.columns[: len(types)], schema=_schema(types, 0))
    return _Record(rows, values, errors)


def _checksum(kind: int, payload: Sequence[memoryview], first_row: int) -> int:
    # The header is covered too: a flipped bit there would shift rows or misread the payload.
    size = sum(len(p) for p in payload)
    crc = zlib.crc32(_HEADER.pack(_MAGIC, kind, size, 0, first_row))
    for part in payload:
        crc = zlib.crc32(part, crc)
    return crc


def _frames(content: bytes | memoryview) -> Iterator[tuple[int, int, memoryview]]:
    view = memoryview(content)
    at = kept = 0
    while at + _HEADER.size <= len(view):
        magic, kind, size, crc, first_row = _HEADER.unpack_from(view, at)
        payload = view[at + _HEADER.size : at + _HEADER.size + size]
        if magic != _MAGIC or len(payload) != size:
            return
        if _checksum(kind, [payload], first_row) != crc:
            return
        yield kind, first_row, payload
        at += _HEADER.size + size
        if at - kept >= _SCANNED_BYTES:
            _forget(content)
            kept = at


_NO_FRAGMENT = -1  # of this job: nobody releases its logs


class LogUses:
    """The logs that a job knows of, by the fragments whose work they hold."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._needed: dict[str, set[int]] = {}

    def note(self, fragment_id: int, logs: Iterable[str]) -> None:
        """Keep some logs until a fragment needs them no more."""
        for log in logs:
            self._needed.setdefault(log, set()).add(fragment_id)

    def note_work(
        self,
        logs: Mapping[str, Iterable[str]],
        planned: Mapping[str, int],
        *,
        keep_others: bool,
    ) -> None:
        """Keep the logs of planned work, given its fragments by key.

        Parameters
        ----------
        keep_others
            Whether those that end other work as well are never removed.
        """
        for key, paths in logs.items():
            if key in planned:
                self.note(planned[key], paths)
            elif keep_others:
                self.note(_NO_FRAGMENT, filter(is_shared, paths))

    def keep_only(self, fragments: Container[int]) -> None:
        """Forget the needs of fragments that are gone; their logs stay."""
        for needed in self._needed.values():
            needed -= {i for i in needed if i != _NO_FRAGMENT and i not in fragments}

    def keep(self, logs: Iterable[str]) -> None:
        """Let this job never remove some logs."""
        for log in logs:
            self.note(_NO_FRAGMENT, [log])

    def release(self, *done: tuple[int, Iterable[str]]) -> list[str]:
        """Remove those logs of some fragments that no other fragment needs; return which."""
        unused = [log for i, logs in done for log in logs if not self._others(log, i)]
        unused = list(dict.fromkeys(unused))
        each(self._objects.delete, unused, self._objects.at_once)
        return unused

    def _others(self, log: str, fragment_id: int) -> set[int]:
        left = self._needed.pop(log, set()) - {fragment_id}
        if left:
            self._needed[log] = left
        return left
