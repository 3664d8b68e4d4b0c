"""One worker: takes a task, reads, applies the UDF, checkpoints, writes the column file.

Both executors run this class. The thread that calls `Applier.run` reads ahead and writes behind;
a pool of ``threads`` threads calls the UDF and checkpoints each batch the moment it is done.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from uuid import uuid4

import numpy as np
import pyarrow as pa

from geneva.checkpoint.journal import Journal, Replay, replay
from geneva.checkpoint.key import log_path
from geneva.column.file import WORK_KEY, ColumnFileBuilder, check_file, read_row_map
from geneva.errors import CorruptFileError
from geneva.execute.batches import MAX_ROWS, BatchSizer
from geneva.execute.reader import read
from geneva.rows import IntArray
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import ColumnFile, Counts, Failure, JobSettings, Task, TaskDone
from geneva.udf import UDF, Applied, Caller, RowError, RowFailed, UdfKind

_UNJOURNALED_S = 0.2  # a fragment done in one quicker batch goes straight to its column file
_SMALL_LOG_BYTES = 1 << 20
_FAILURES_KEPT = 1000  # per task, in the result; the row map records all of them


class TaskCancelledError(Exception):
    """The task stopped at a batch boundary because somebody asked."""


class TaskRowError(Exception):
    """The UDF failed on a row of the task; ``__cause__`` is the `RowFailed`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows that are computed and checkpointed together."""

    rows: IntArray
    inputs: pa.RecordBatch
    only: bool


@dataclass(frozen=True, slots=True)
class _Computed:
    rows: IntArray
    values: list[pa.Array]
    failed: IntArray
    failures: tuple[Failure, ...]
    counts: Counts


class Applier:
    """Runs tasks of one UDF on one table, one at a time; `progress` and `cancel` from any thread.

    Parameters
    ----------
    storage
        Of the table.
    udf
        Its instance is built once, by the first `begin`, and kept for later jobs.
    """

    def __init__(self, storage: TableStorage, udf: UDF) -> None:
        self._storage = storage
        self._udf = udf
        self._callers: dict[tuple[str, int], Caller] = {}
        self._sizer = BatchSizer(None)
        self._cancelled = threading.Event()
        self._rows_done = 0
        self._settings: JobSettings | None = None
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, settings: JobSettings) -> None:
        """Prepare for a job's tasks: build the UDF's instance, start threads."""
        asynchronous = self._udf.kind is UdfKind.ASYNC
        awaits = settings.threads if asynchronous else 1
        key = (settings.on_error, awaits)
        if key not in self._callers:
            self._callers[key] = Caller(self._udf, settings.on_error, awaits)
        self._caller = self._callers[key]
        self._caller.open()
        threads = 1 if asynchronous else settings.threads
        if self._pool is None or self._threads != threads:
            self._close_pool()
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="geneva-udf")
            self._threads = threads
        limit = min(settings.checkpoint_size or MAX_ROWS, max(settings.read_rows, 1))
        known = self._sizer.rows if settings.batch_size is None else None
        self._sizer = BatchSizer(settings.batch_size, limit)
        if known is not None:
            self._sizer.resume(known)
        self._settings = settings
        self._cancelled.clear()
        self._rows_done = 0

    def progress(self) -> int:
        """Return the rows done since `begin`, of unfinished tasks too."""
        return self._rows_done

    def cancel(self) -> None:
        """Let the running task stop at the next batch boundary, all its batches checkpointed."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the threads."""
        self._close_pool()

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def run(self, task: Task) -> TaskDone:
        """Carry out one task.

        Raises
        ------
        TaskRowError
            The UDF failed (with ``on_error="null"``: returned something unusable).
        TaskCancelledError
            `cancel` was called.
        """
        assert self._settings is not None
        return _TaskRun(self, self._storage, self._settings, task).run()

    def compute(self, run: _TaskRun, unit: _Unit) -> _Computed:
        """Call the UDF on a unit, in batches, and checkpoint it (in a pool thread)."""
        assert self._settings is not None
        started = time.perf_counter()
        applied: list[Applied] = []
        for batch in self._batches(unit.inputs):
            try:
                applied.append(self._call(batch))
            except RowFailed as error:
                at = sum(len(a.values) for a in applied) + error.failure.row
                raise TaskRowError(run.failure(int(unit.rows[at]), error.failure)) from error
        called = time.perf_counter()
        computed = run.gather(unit, applied)
        if not unit.only or called - started > _UNJOURNALED_S:
            run.checkpoint(computed, applied)
        now = time.perf_counter()
        self._rows_done += len(unit.rows)
        counts = replace(
            computed.counts, seconds_udf=called - started, seconds_checkpoint=now - called
        )
        return replace(computed, counts=counts)

    def _call(self, batch: pa.RecordBatch) -> Applied:
        if self._cancelled.is_set():
            raise TaskCancelledError
        started = time.perf_counter()
        applied = self._caller(batch)
        seconds = time.perf_counter() - started
        self._sizer.observe(batch.num_rows, seconds, max(applied.values.nbytes, batch.nbytes))
        return applied

    def _batches(self, inputs: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        assert self._settings is not None
        if self._settings.checkpoint_size is None:
            yield inputs
            return
        step = self._settings.batch_size or self._sizer.rows
        for at in range(0, inputs.num_rows, step):
            yield inputs.slice(at, step)

    @property
    def unit_rows(self) -> int:
        """Rows that the next unit should hold."""
        assert self._settings is not None
        return max(self._settings.checkpoint_size or 0, self._sizer.rows)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def submit(self, run: _TaskRun, unit: _Unit) -> Future[_Computed]:
        """Queue a unit for the UDF threads."""
        assert self._pool is not None
        return self._pool.submit(self.compute, run, unit)

    @property
    def window(self) -> int:
        """Units that may be in flight: enough to keep the threads busy while one is written."""
        return self._threads + 2

    def replayed(self, rows: int) -> None:
        """Count rows that were not computed because an earlier attempt did."""
        self._rows_done += rows


class _TaskRun:
    """The state of one task while it runs."""

    def __init__(
        self, applier: Applier, storage: TableStorage, settings: JobSettings, task: Task
    ) -> None:
        self._applier, self._storage = applier, storage
        self._settings, self._task = settings, task
        self._types = settings.target.data_types
        path = log_path(settings.target.incarnation, task.key, uuid4().hex)
        self._journal = Journal(storage.objects, path, self._types)
        self._counts = Counts()
        self._failures: list[Failure] = []
        self._builder: ColumnFileBuilder | None = None
        self._pending: deque[Future[_Computed] | _Computed] = deque()

    def run(self) -> TaskDone:
        task = self._task
        snapshot = self._storage.open(task.version)
        earlier = replay(
            self._storage.objects,
            task.resume,
            self._types,
            with_failed=self._settings.on_error == "null",
        )
        adopted = self._adopt(snapshot, earlier)
        if adopted is not None:
            return adopted
        if task.assemble:
            self._builder = ColumnFileBuilder(self._storage, snapshot, self._settings.target, task)
        try:
            self._stream(snapshot, earlier)
            file = self._finish()
        except BaseException:
            self._settle()
            raise
        finally:
            self._journal.close()
        logs = (*task.resume, self._journal.path)
        return TaskDone(
            task.key,
            task.fragment_id,
            task.start,
            task.stop,
            None if file is None else replace(file, logs=logs),
            self._counts,
            tuple(self._failures[:_FAILURES_KEPT]),
            logs,
        )

    def _adopt(self, snapshot: Snapshot, earlier: Replay) -> TaskDone | None:
        """Return the outcome of an attempt that finished its file but died before the commit."""
        task, fact = self._task, earlier.finish
        if fact is None or not task.assemble or fact["target_file"] != task.target_file:
            return None
        schema = pa.schema([snapshot.schema.field(c) for c in self._settings.target.columns])
        try:
            check_file(self._storage, fact["file"], task.rows, schema)
            row_map = read_row_map(self._storage, fact["file"])
            if self._storage.read_footer(fact["file"]).metadata.get(WORK_KEY) != task.key:
                return None
        except (FileNotFoundError, CorruptFileError):
            return None  # cleaned up or torn by a power failure: the records are still there
        counts = Counts(computed=fact["computed"], replayed=fact["computed"], failed=fact["failed"])
        counts = replace(counts, overwritten=fact["overwritten"])
        self._applier.replayed(counts.computed)
        file = ColumnFile(
            task.fragment_id,
            task.rows,
            fact["file"],
            row_map,
            task.sources,
            task.target_file,
            task.resume,
        )
        return TaskDone(
            task.key, task.fragment_id, task.start, task.stop, file, counts, (), task.resume
        )

    def _stream(self, snapshot: Snapshot, earlier: Replay) -> None:
        units = _Units(self._applier, self._task.stop)
        started = time.perf_counter()
        for rows, batch, stop in read(self._storage, snapshot, self._task, self._settings):
            self._add_seconds(read=time.perf_counter() - started)
            for piece in _split(rows, earlier):
                if piece.positions is not None:
                    self._push_all(units.flush())
                    self._replay(rows[piece.at], piece.positions, earlier)
                else:
                    self._push_all(units.add(rows[piece.at], batch.slice(*piece.span), stop))
            started = time.perf_counter()
        self._push_all(units.flush())
        while self._pending:
            self._drain()

    def _push_all(self, units: Iterator[_Unit]) -> None:
        for unit in units:
            if self._applier.cancelled:
                raise TaskCancelledError
            self._pending.append(self._applier.submit(self, unit))
            while len(self._pending) > self._applier.window:
                self._drain()

    def _replay(self, rows: IntArray, positions: IntArray, earlier: Replay) -> None:
        failed = [k for k, p in enumerate(positions.tolist()) if p in earlier.errors]
        failures = [
            self.failure(int(rows[k]), RowError(**json.loads(earlier.errors[int(positions[k])])))
            for k in failed[:_FAILURES_KEPT]
        ]
        counts = Counts(computed=len(rows), replayed=len(rows), failed=len(failed))
        values = earlier.values(positions) if self._task.assemble else []
        self._applier.replayed(len(rows))
        self._pending.append(
            _Computed(rows, values, np.array(failed, np.int64), tuple(failures), counts)
        )
        while len(self._pending) > self._applier.window:
            self._drain()

    def _drain(self) -> None:
        item = self._pending.popleft()
        done = item.result() if isinstance(item, Future) else item
        started = time.perf_counter()
        counts = done.counts
        if self._builder is not None:
            overwritten = self._builder.add(done.rows, done.values, done.failed)
            seconds = time.perf_counter() - started
            counts = replace(counts, overwritten=overwritten, seconds_write=seconds)
        self._counts += counts
        self._failures += done.failures

    def _finish(self) -> ColumnFile | None:
        if self._builder is None:
            self._journal.sync()
            return None
        if self._builder.empty:
            return None
        started = time.perf_counter()
        file = self._builder.finish()
        fact = {
            "file": file.name,
            "target_file": self._task.target_file,
            "computed": self._counts.computed,
            "failed": self._counts.failed,
            "overwritten": self._counts.overwritten,
        }
        self._journal.finish(fact)
        self._add_seconds(write=time.perf_counter() - started)
        return file

    def _settle(self) -> None:
        """Let the batches in flight end and be checkpointed before the task gives up."""
        for item in self._pending:
            if isinstance(item, Future) and not item.cancel():
                item.exception()
        self._journal.sync()

    def gather(self, unit: _Unit, applied: list[Applied]) -> _Computed:
        """Join the batches of a unit; split structs that fill several columns."""
        joined = (
            applied[0].values
            if len(applied) == 1
            else pa.concat_arrays([a.values for a in applied])
        )
        offsets = np.cumsum([0, *(len(a.values) for a in applied)])
        errors = [
            (int(o) + e.row, e)
            for o, a in zip(offsets[:-1], applied, strict=True)
            for e in a.failures
        ]
        failures = tuple(self.failure(int(unit.rows[k]), e) for k, e in errors[:_FAILURES_KEPT])
        failed = np.array([k for k, _ in errors], np.int64)
        counts = Counts(computed=len(unit.rows), failed=len(failed))
        return _Computed(unit.rows, self._columns(joined), failed, failures, counts)

    def _columns(self, values: pa.Array) -> list[pa.Array]:
        fields = self._settings.target.fields
        columns = [values]
        if fields:
            flat = values.flatten()
            columns = [flat[k] for k in fields]
        return [
            c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in columns
        ]

    def checkpoint(self, done: _Computed, applied: list[Applied]) -> None:
        """Append a unit to the journal."""
        errors: list[str | None] | None = None
        if len(done.failed):
            errors = [None] * len(done.rows)
            texts = [e for a in applied for e in a.failures]
            for k, error in zip(done.failed.tolist(), texts, strict=True):
                errors[k] = json.dumps({f: getattr(error, f) for f in error.__slots__})
        self._journal.append(done.rows, done.values, errors)

    def failure(self, row: int, error: RowError) -> Failure:
        """Return what the result says of a row that failed."""
        return Failure(
            self._task.fragment_id,
            row,
            self._task.fragment_id << 32 | row,
            error.error,
            error.message,
            error.traceback,
            error.attempts,
            error.input,
        )

    def _add_seconds(self, read: float = 0.0, write: float = 0.0) -> None:
        self._counts += Counts(seconds_read=read, seconds_write=write)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of rows read together: to compute, or at these positions of the replay."""

    at: slice
    positions: IntArray | None

    @property
    def span(self) -> tuple[int, int]:
        return self.at.start, self.at.stop - self.at.start


def _split(rows: IntArray, earlier: Replay) -> Iterator[_Piece]:
    if not len(earlier.rows):
        yield _Piece(slice(0, len(rows)), None)
        return
    positions = np.searchsorted(earlier.rows, rows)
    known = earlier.rows[np.minimum(positions, len(earlier.rows) - 1)] == rows
    edges = [0, *(np.flatnonzero(known[1:] != known[:-1]) + 1).tolist(), len(rows)]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        yield _Piece(slice(start, stop), positions[start:stop] if known[start] else None)


class _Units:
    """Collects rows into units of the size that the applier wants at that moment."""

    def __init__(self, applier: Applier, stop: int) -> None:
        self._applier, self._stop = applier, stop
        self._rows: list[IntArray] = []
        self._inputs: list[pa.RecordBatch] = []
        self._held = 0
        self._made = 0

    def add(self, rows: IntArray, inputs: pa.RecordBatch, read_to: int) -> Iterator[_Unit]:
        """Yield the units that are full once these rows are in."""
        self._rows.append(rows)
        self._inputs.append(inputs)
        self._held += len(rows)
        while self._held >= (size := self._applier.unit_rows):
            yield self._cut(size, last=read_to >= self._stop)

    def flush(self) -> Iterator[_Unit]:
        """Yield what is left as one unit."""
        if self._held:
            yield self._cut(self._held, last=True)

    def _cut(self, size: int, *, last: bool) -> _Unit:
        rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
        inputs = self._inputs[0] if len(self._inputs) == 1 else _concat(self._inputs)
        only = last and not self._made and size == self._held
        unit = _Unit(rows[:size], inputs.slice(0, size), only)
        self._held -= size
        self._made += 1
        self._rows = [rows[size:]] if self._held else []
        self._inputs = [inputs.slice(size)] if self._held else []
        return unit


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
