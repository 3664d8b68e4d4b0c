"""One worker: takes a task, reads, applies the UDF, checkpoints, writes the column file.

Both executors run this class. The thread that calls `Applier.run` reads ahead and writes behind;
a pool of ``threads`` threads calls the UDF and checkpoints each batch the moment it is done.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
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
from geneva.execute.units import Unit, Units, split
from geneva.rows import IntArray
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import (
    ColumnFile,
    Counts,
    Failure,
    JobSettings,
    Task,
    TaskDone,
    stored_type,
)
from geneva.udf import UDF, Applied, Caller, RowError, RowFailed, UdfKind

_UNJOURNALED_S = 0.2  # a fragment done in one quicker batch goes straight to its column file
_SMALL_LOG_BYTES = 1 << 20
_CAREFUL_ROWS = 1024
_REPLAYED_ROWS = 8192
_FAILURES_KEPT = 1000  # per task, in the result; the row map records all of them


class TaskCancelledError(Exception):
    """The task stopped at a batch boundary because somebody asked."""


class TaskRowError(Exception):
    """The UDF failed on a row of the task; ``__cause__`` is the `RowFailed`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


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
        self._threads = 0
        self._snapshots: dict[int, Snapshot] = {}

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
        self._sizer = BatchSizer(settings.batch_size, limit, awaits)
        if known is not None:
            self._sizer.resume(known)
        self._settings = settings
        self._snapshots.clear()  # another table may lie at the same path by now
        self._cancelled.clear()
        self._rows_done = 0

    def progress(self) -> int:
        """Return the rows done since `begin`, of unfinished tasks too."""
        return self._rows_done

    def cancel(self) -> None:
        """Let the running task stop at the next batch boundary, all its batches checkpointed."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the threads and the event loops; no task may be running."""
        self._close_pool(wait=True)
        for caller in self._callers.values():
            caller.close()

    def _close_pool(self, *, wait: bool = False) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
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

    def compute(self, run: _TaskRun, unit: Unit) -> _Computed:
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
        if run.checkpoints_all or not unit.only or called - started > _UNJOURNALED_S:
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

    def submit(self, run: _TaskRun, unit: Unit) -> Future[_Computed]:
        """Queue a unit for the UDF threads."""
        assert self._pool is not None
        return self._pool.submit(self.compute, run, unit)

    def snapshot(self, version: int) -> Snapshot:
        """Return a version of the table, opened once for all tasks that read it."""
        if version not in self._snapshots:
            self._snapshots[version] = self._storage.open(version)
        return self._snapshots[version]

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
        self._fatal: tuple[tuple[int, int], ...] = ()
        self._snapshot: Snapshot | None = None

    @property
    def careful(self) -> bool:
        """Whether a worker died of this task before."""
        return self._task.attempt > 0

    @property
    def checkpoints_all(self) -> bool:
        """Whether even a quick only batch is recorded: what a span leaves is just its records."""
        return self.careful or not self._task.assemble

    def run(self) -> TaskDone:
        task = self._task
        if self._applier.cancelled:
            raise TaskCancelledError
        snapshot = self._snapshot = self._applier.snapshot(task.version)
        earlier = replay(
            self._storage.objects,
            task.resume,
            self._types,
            with_failed=self._settings.on_error == "null" and not self._settings.retry_failed,
        )
        adopted = self._adopt(snapshot, earlier)
        if adopted is not None:
            return adopted
        if task.attempt and self._settings.on_error == "null":
            earlier = self._skip_deadly(earlier)
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
        if fact is None or not task.assemble:
            return None
        if (fact["target_file"], fact["selection"]) != (task.target_file, task.selection):
            return None  # it carries other values along, or leaves rows out that are wanted now
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

    def _skip_deadly(self, earlier: Replay) -> Replay:
        """Record rows as failed that two workers died of, each alone with that one row."""
        alone = Counter(first for first, last in earlier.fatal if first == last)
        deadly = sorted(row for row, deaths in alone.items() if deaths > 1)
        for row in deadly:
            error = RowError(0, "WorkerDied", f"{alone[row]} workers died of this row", attempts=2)
            text = json.dumps({f: getattr(error, f) for f in error.__slots__})
            nulls = [pa.nulls(1, stored_type(t)) for t in self._types]
            self._journal.append(np.array([row], np.int64), nulls, [text])
        if not deadly:
            return earlier
        self._journal.sync()
        logs = (*self._task.resume, self._journal.path)
        return replay(self._storage.objects, logs, self._types, with_failed=True)

    def _stream(self, snapshot: Snapshot, earlier: Replay) -> None:
        self._fatal = earlier.fatal
        if len(earlier.rows) == self._task.checkpointed:
            self._replay_all(earlier)
            return
        units = Units(self._unit_rows, self._task.stop)
        started = time.perf_counter()
        for rows, batch, stop in read(self._storage, snapshot, self._task, self._settings):
            self._add_seconds(read=time.perf_counter() - started)
            for piece in split(rows, earlier):
                if piece.positions is not None:
                    self._push_all(units.flush())
                    self._replay(rows[piece.at], piece.positions, earlier)
                else:
                    self._push_all(units.add(rows[piece.at], batch.slice(*piece.span), stop))
            started = time.perf_counter()
        self._push_all(units.flush())
        while self._pending:
            self._drain()

    def _replay_all(self, earlier: Replay) -> None:
        """Lay out what spans computed; no input is read."""
        for at in range(0, len(earlier.rows), _REPLAYED_ROWS):
            positions = np.arange(at, min(at + _REPLAYED_ROWS, len(earlier.rows)))
            self._replay(earlier.rows[positions], positions, earlier)
        while self._pending:
            self._drain()

    def _unit_rows(self, first_row: int) -> int:
        """Return how many rows the unit that begins with a row should hold.

        After a worker died, batches are small, and those that it died of are cut into eighths:
        running out of memory is not simply repeated, and a deadly row is soon alone.
        """
        size = self._applier.unit_rows
        if not self._task.attempt:
            return size
        suspect = [last - first + 1 for first, last in self._fatal if first <= first_row <= last]
        return max(1, min(suspect) // 8) if suspect else max(1, min(size // 2, _CAREFUL_ROWS))

    def _push_all(self, units: Iterator[Unit]) -> None:
        for unit in units:
            if self._applier.cancelled:
                raise TaskCancelledError
            if self._task.attempt:
                self._journal.begin(int(unit.rows[0]), int(unit.rows[-1]))
            self._pending.append(self._applier.submit(self, unit))
            window = 0 if self._task.attempt else self._applier.window
            while len(self._pending) > window:
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
            "selection": self._task.selection,
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

    def gather(self, unit: Unit, applied: list[Applied]) -> _Computed:
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
        return [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in columns]

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
            self._row_id(row),
            error.error,
            error.message,
            error.traceback,
            error.attempts,
            error.input,
        )

    def _row_id(self, row: int) -> int:
        """Return what ``_rowid`` is for a physical row; an address unless ids are stable."""
        task = self._task
        address = task.fragment_id << 32 | row
        if self._snapshot is None or not self._snapshot.stable_row_ids:
            return address
        found = self._storage.scan(
            self._snapshot, task.fragment_id, [], batch_rows=1, start=row, stop=row + 1
        )
        ids = [i for b in found for i in b.column("_rowid").to_pylist()]
        return int(ids[0]) if ids and ids[0] is not None else address

    def _add_seconds(self, read: float = 0.0, write: float = 0.0) -> None:
        self._counts += Counts(seconds_read=read, seconds_write=write)
