"""One worker: takes a task, reads, applies the UDF, checkpoints, writes the column file.

Both executors run this class. A thread that calls `Applier.run` reads ahead and writes behind; a
pool of ``threads`` threads calls the UDF and checkpoints each batch the moment it is done. Two
tasks may run at once: while one writes its column file, the next one reads.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa

from geneva.appliers.adopt import adopt
from geneva.appliers.batches import MAX_ROWS, READ_BYTES, BatchSizer, unit_bytes
from geneva.appliers.calls import Turns, UdfThreads
from geneva.appliers.inflight import InFlight
from geneva.appliers.outcome import TaskCancelledError, TaskRowError
from geneva.appliers.pools import Pools
from geneva.appliers.reader import Files, Tap, files_of, read, row_id
from geneva.appliers.record import Computed, Recorder, error_text, joined
from geneva.appliers.units import Unit, Units, all_checkpointed, emptied, split
from geneva.column.checkpoint.journal import Journal, Replay, replay
from geneva.column.checkpoint.key import log_path, new_attempt
from geneva.column.file import ColumnFileBuilder
from geneva.errors import VersionGoneError
from geneva.model.rows import IntArray
from geneva.model.types import (
    ColumnFile,
    Counts,
    Failure,
    JobSettings,
    RowsDone,
    Task,
    TaskDone,
    stored_type,
)
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.secrets import hider
from geneva.storage.values import size_of
from geneva.udf import UDF, Applied, Caller, DeviceFull, RowError, RowFailed, UdfKind

_CAREFUL_ROWS = 1024
_REPLAYED_ROWS = 8192
_FAILURES_KEPT = 1000  # per task, in the result; the row map records all of them


class Applier:
    """Runs tasks of one UDF on one table; `run`, `progress` and `cancel` from any thread.

    Parameters
    ----------
    storage
        Of the table.
    udf
        Its instance is built once, by the first `begin`, and kept for later jobs.
    threads
        That call the UDF; whoever made them ends them.
    pools
        That the threads are to follow.
    """

    def __init__(
        self, storage: TableStorage, udf: UDF, threads: UdfThreads, pools: Pools | None = None
    ) -> None:
        self.storage = storage
        self._pools = pools
        self._udf = udf
        self._caller = Caller(udf, hide=hider(storage.options), begin=threads.bind)
        self._sizer = BatchSizer(None)
        self._cancelled = threading.Event()
        self._rows_done, self._counting = RowsDone(), threading.Lock()
        self.turns = Turns()
        self._settings: JobSettings | None = None
        self._threads = threads
        self._snapshots: dict[int, Snapshot] = {}
        self._files: dict[int, Files] = {}

    def begin(self, settings: JobSettings) -> None:
        """Prepare for a job's tasks: build the UDF's instance, start threads."""
        asynchronous = self._udf.kind is UdfKind.ASYNC
        awaits = settings.threads if asynchronous else 1
        self._caller.configure(settings.on_error, awaits)
        self._threads.resize(1 if asynchronous else settings.threads)
        self._threads.submit(self._caller.open).result()  # one of theirs may need its own
        limit = min(settings.checkpoint_size or MAX_ROWS, max(settings.read_rows, 1))
        earlier = self._sizer
        most = unit_bytes(self._threads.count)
        together = self._udf.kind is not UdfKind.SCALAR
        self._sizer = BatchSizer(settings.batch_size, limit, awaits, most, latency=together)
        if settings.batch_size is None:
            self._sizer.resume(earlier)
        self._settings = settings
        self._snapshots.clear()  # another table may lie at the same path by now
        self._files.clear()
        self._cancelled.clear()
        self._rows_done = RowsDone()

    def progress(self) -> RowsDone:
        """Return the rows done since `begin`, of unfinished tasks too."""
        return self._rows_done

    def cancel(self) -> None:
        """Let the running task stop at the next batch boundary, all its batches checkpointed."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the event loops; the threads must have ended."""
        self._caller.close()

    def run(self, task: Task, tap: Tap | None = None) -> TaskDone:
        """Carry out one task; ``tap`` is shown what it reads.

        Raises
        ------
        TaskRowError
            The UDF failed (with ``on_error="null"``: returned something unusable).
        TaskCancelledError
            `cancel` was called.
        """
        return self.task_run(task).run(tap)

    def task_run(self, task: Task) -> TaskRun:
        """Return a task of this job, not yet begun."""
        return TaskRun(self, self.storage, self.settings, task)

    def compute(self, run: TaskRun, unit: Unit) -> Computed:
        """Call the UDF on a unit, in batches, and checkpoint it (in a pool thread)."""
        if self._pools is not None:
            self._pools.follow()
        started = time.perf_counter()
        applied: list[Applied] = []
        for batch in self._batches(unit.inputs):
            try:
                for part in self._calls(batch):
                    applied.append(part)
            except (TaskCancelledError, RowFailed) as error:
                run.record_first(unit, applied, started)
                if isinstance(error, TaskCancelledError):
                    raise
                at = sum(len(a.values) for a in applied) + error.failure.row
                raise TaskRowError(run.failure(int(unit.rows[at]), error.failure)) from error
        called = time.perf_counter()
        computed = run.gather(unit, applied)
        run.record(computed, applied, started)
        self.add_progress(len(unit.rows))
        computed.counts = Counts(
            computed=len(unit.rows),
            failed=len(computed.failed),
            seconds_udf=called - started,
            seconds_checkpoint=time.perf_counter() - called,
        )
        return computed

    def _calls(self, batch: pa.RecordBatch) -> Iterator[Applied]:
        """Yield what the UDF makes of a batch: in parts, if its device has no room for all."""
        if self._cancelled.is_set():
            raise TaskCancelledError
        started = time.perf_counter()
        adaptive = not self._sizer.fixed
        applied = None
        if not adaptive or batch.num_rows <= self._sizer.most:  # some were cut before it was known
            with suppress(DeviceFull):
                applied = self._caller(batch, halves=adaptive)
            if applied is None:
                self._sizer.lower(batch.num_rows // 2)
        if applied is None:
            half = batch.num_rows // 2
            yield from self._calls(batch.slice(0, half))
            yield from self._calls(batch.slice(half))
            return
        if adaptive:
            seconds = time.perf_counter() - started
            self._sizer.observe(batch.num_rows, seconds, max(applied.values.nbytes, batch.nbytes))
        yield applied

    def _batches(self, inputs: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        settings = self.settings
        if settings.checkpoint_size is None:
            yield inputs
            return
        step = settings.batch_size or self._sizer.rows
        for at in range(0, inputs.num_rows, step):
            yield inputs.slice(at, step)

    @property
    def records_failures(self) -> bool:
        """Whether a row that fails may be null and done."""
        return self.settings.on_error == "null" or self._udf.skips

    @property
    def settings(self) -> JobSettings:
        """Of the job that was begun."""
        assert self._settings is not None
        return self._settings

    @property
    def unit_rows(self) -> int:
        """Rows that the next unit should hold."""
        return max(self.settings.checkpoint_size or 0, self._sizer.rows)

    @property
    def learns(self) -> bool:
        """Whether the next unit should be cut when more is known."""
        return self._sizer.learns

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def submit(self, run: TaskRun, unit: Unit) -> Future[Computed]:
        """Queue a unit for the UDF threads."""
        return self._threads.submit(self.compute, run, unit)

    def snapshot(self, version: int) -> Snapshot:
        """Return a version of the table, opened once for all tasks that read it."""
        if version not in self._snapshots:
            try:
                self._snapshots[version] = self.storage.open(version)
            except VersionGoneError:
                planned = self.storage.open_planned(self.settings.planned)
                if planned.version != version:
                    raise
                self._snapshots[version] = planned
        return self._snapshots[version]

    def read(self, snapshot: Snapshot, task: Task) -> Iterator[tuple[IntArray, pa.RecordBatch]]:
        """Yield (physical rows, inputs) of a task, in ascending order."""
        # Kept for as long as the job: Arrow does not keep what a column's type opens files with.
        files = self._files.setdefault(
            snapshot.version, files_of(self.storage, snapshot, self.settings.target, self._udf)
        )
        return read(self.storage, snapshot, task, self.settings, files)

    @property
    def threads(self) -> int:
        """That call the UDF."""
        return self._threads.count

    def add_progress(self, rows: int, replayed: int = 0) -> None:
        """Count rows that were computed, or that an earlier attempt had computed."""
        with self._counting:
            done = self._rows_done
            self._rows_done = RowsDone(done.rows + rows, done.replayed + replayed)


class TaskRun:
    """The state of one task while it runs."""

    def __init__(
        self, applier: Applier, storage: TableStorage, settings: JobSettings, task: Task
    ) -> None:
        if applier.records_failures:  # the plan does not know the UDF's rules
            task = replace(task, complete=False)
        self._applier, self._storage = applier, storage
        self._settings, self._task = settings, task
        self._types = settings.target.data_types
        attempt = new_attempt(task.version)
        path = log_path(settings.target.incarnation, task.key, attempt)
        self._journal = Journal(storage.objects, path, self._types)
        self._counts = Counts()
        self._in_flight = InFlight(
            applier.threads, joins=task.assemble, learns=lambda: applier.learns
        )
        self._failures: list[Failure] = []
        self._builder: ColumnFileBuilder | None = None
        self._fatal: tuple[tuple[int, int], ...] = ()
        asked = settings.batch_size or settings.checkpoint_size
        self._units = Units(self._unit_rows, None if asked else unit_bytes(settings.threads))
        holds = task.assemble and not task.attempt and settings.adaptive
        self._recorder = Recorder(self._journal, holds=holds)

    def begin(self, snapshot: Snapshot) -> None:
        """Read what earlier attempts left; then come `feed`, as often as wanted, and `flush`."""
        # Where all is checkpointed, those that failed were tried by this very call.
        tried = not self._settings.retry_failed or self._task.checkpointed is not None
        self._snapshot = snapshot
        self._earlier = replay(
            self._storage.objects,
            self._task.resume,
            self._types,
            with_failed=self._applier.records_failures and tried,
            key=self._task.key,
        )

    def run(self, tap: Tap | None) -> TaskDone:
        """Carry out the task."""
        if self._applier.cancelled:
            raise TaskCancelledError
        self._turn = self._applier.turns.join()
        try:
            return self._run(tap)
        finally:
            self._turn.end()

    def open(self, snapshot: Snapshot) -> None:
        """Prepare the column file, if there is to be one."""
        if self._task.assemble:
            target = self._settings.target
            self._builder = ColumnFileBuilder(self._storage, snapshot, target, self._task)

    def _run(self, tap: Tap | None) -> TaskDone:
        task = self._task
        snapshot = self._applier.snapshot(task.version)
        self.begin(snapshot)
        adopted = adopt(self._storage, snapshot, self._settings.target, task, self._earlier)
        if adopted is not None:
            self._applier.add_progress(adopted.counts.computed, adopted.counts.computed)
            return adopted
        if task.attempt and self._settings.on_error == "null":
            self._earlier = self._skip_deadly(self._earlier)
        self.open(snapshot)
        try:
            self._stream(snapshot, tap)
            file = self.write()
            if file is not None:
                self._storage.sync_files([file.name])
            return self.seal(file, self._journal)
        except BaseException:
            self._settle()
            raise
        finally:
            self._journal.close()

    def _skip_deadly(self, earlier: Replay) -> Replay:
        """Record rows as failed that two workers died of, each alone with that one row."""
        alone = Counter(first for first, last in earlier.fatal if first == last)
        deadly = sorted(row for row, deaths in alone.items() if deaths > 1)
        for row in deadly:
            error = RowError(0, "WorkerDied", f"{alone[row]} workers died of this row", attempts=2)
            nulls = [pa.nulls(1, stored_type(t)) for t in self._types]
            self._journal.append(np.array([row], np.int64), nulls, [error_text(error)])
        if not deadly:
            return earlier
        self._journal.sync()
        logs = (*self._task.resume, self._journal.path)
        return replay(
            self._storage.objects, logs, self._types, with_failed=True, key=self._task.key
        )

    def _stream(self, snapshot: Snapshot, tap: Tap | None) -> None:
        self._fatal = self._earlier.fatal
        there = all_checkpointed(self._task, self._earlier, filtered=bool(self._settings.where))
        if there is not None:
            self._replay_all(there)
            return
        batches = self._applier.read(snapshot, self._task)
        # Wide rows are not read before their turn: two tasks' worth may be too much to hold.
        started = time.perf_counter()
        ahead = deque(() if self._settings.readahead else itertools.islice(batches, 1))
        self.add_seconds(read=time.perf_counter() - started)
        self._turn.wait()
        self.feed_all(itertools.chain(emptied(ahead), batches), tap)
        self._turn.end()
        self.flush()
        if tap is not None:
            tap.flush()

    def feed_all(
        self, batches: Iterable[tuple[IntArray, pa.RecordBatch]], tap: Tap | None = None
    ) -> None:
        """Take in all rows of the task and their inputs."""
        started = time.perf_counter()
        for rows, inputs in batches:
            self.add_seconds(read=time.perf_counter() - started)
            self.feed(rows, inputs)
            if tap is not None:
                tap.feed(rows, inputs)
            del inputs  # large ones are not held while the next are read
            started = time.perf_counter()
        self._push_all(self._units.flush())

    def feed(self, rows: IntArray, inputs: pa.RecordBatch) -> None:
        """Take in rows and their inputs, behind all rows taken in before."""
        if names := self._settings.target.names:
            inputs = inputs.rename_columns(list(names))
        for piece in split(rows, self._earlier):
            if piece.positions is not None:
                self._push_all(self._units.flush())
                self._replay(rows[piece.at], piece.positions)
            else:
                self._push_all(self._units.add(rows[piece.at], inputs.slice(*piece.span)))

    def flush(self) -> None:
        """Compute what was taken in and wait for it."""
        self._push_all(self._units.flush())
        self._write_all(self._in_flight.rest())

    def _replay_all(self, positions: IntArray) -> None:
        """Lay out what is checkpointed; no input is read."""
        step = min(_REPLAYED_ROWS, self._earlier.rows_of(READ_BYTES))
        for at in range(0, len(positions), step):
            some = positions[at : at + step]
            self._replay(self._earlier.rows[some], some)
            if step < _REPLAYED_ROWS:
                self.flush()
                self._earlier.forget()
        self.flush()

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
            self._in_flight.add(unit, self._applier.submit(self, unit))
            del unit
            one_by_one = self._task.attempt > 0
            self._write_all(self._in_flight.rest() if one_by_one else self._in_flight.surplus())

    def _replay(self, rows: IntArray, positions: IntArray) -> None:
        earlier = self._earlier
        failed = [k for k, p in enumerate(positions.tolist()) if p in earlier.errors]
        failures = [
            self.failure(int(rows[k]), RowError(**json.loads(earlier.errors[int(positions[k])])))
            for k in failed[:_FAILURES_KEPT]
        ]
        counts = Counts(computed=len(rows), replayed=len(rows), failed=len(failed))
        values = earlier.values(positions) if self._task.assemble else []
        self._applier.add_progress(len(rows), len(rows))
        size = sum(map(size_of, values))
        at = np.array(failed, np.int64)
        self._in_flight.add_replayed(Computed(rows, values, at, tuple(failures), counts, size))
        self._write_all(self._in_flight.surplus())

    def _write_all(self, computed: Iterable[Computed]) -> None:
        for done in computed:
            self._counts += done.counts
            self._failures += done.failures
            if self._builder is not None:
                started = time.perf_counter()
                overwritten = self._builder.add(done.rows, done.values, done.failed)
                seconds = time.perf_counter() - started
                self._counts += Counts(overwritten=overwritten, seconds_write=seconds)
            del done  # before the next one is waited for

    def write(self) -> ColumnFile | None:
        """Complete the column file, which is not synced yet; sync the records of a span."""
        if self._builder is None:
            self._journal.sync()
            return None
        if self._builder.empty:
            return None
        started = time.perf_counter()
        file = self._builder.finish()
        self.add_seconds(write=time.perf_counter() - started)
        return file

    def seal(self, file: ColumnFile | None, shared: Journal) -> TaskDone:
        """Record that the file is complete and synced; in ``shared`` where it has no records."""
        if self._counts.failed:
            self._recorder.release()  # such a file is not adopted: its records are all there is
        journal = self._journal if self._journal.created else shared
        task, counts = self._task, self._counts
        logs = (*task.resume, journal.path)
        if file is not None:
            fact = {
                "key": task.key,
                "file": file.name,
                "target_file": task.target_file,
                "selection": task.selection,
                "computed": counts.computed,
                "failed": counts.failed,
                "overwritten": counts.overwritten,
            }
            journal.finish(fact)
            file = replace(file, logs=logs)
        failures = tuple(self._failures[:_FAILURES_KEPT])
        span = task.key, task.fragment_id, task.start, task.stop
        return TaskDone(*span, file, counts, failures, logs)

    def _settle(self) -> None:
        """Let the batches in flight end and be checkpointed before the task gives up."""
        self._in_flight.settle()
        self._recorder.release()
        if self._builder is not None:
            self._builder.abandon()
        self._journal.sync()

    def end(self) -> None:
        """Release the records."""
        self._journal.close()

    def close(self) -> Counts:
        """End a run that another one fed; return what it did."""
        try:
            self._settle()
        finally:
            self._journal.close()
        return self._counts

    def gather(self, unit: Unit, applied: list[Applied]) -> Computed:
        """Join the batches of a unit."""
        columns, errors = joined(applied, self._settings.target)
        failures = tuple(self.failure(int(unit.rows[k]), e) for k, e in errors[:_FAILURES_KEPT])
        failed = np.array([k for k, _ in errors], np.int64)
        size = sum(map(size_of, columns))
        return Computed(unit.rows, columns, failed, failures, value_bytes=size)

    def record_first(self, unit: Unit, applied: list[Applied], began_s: float) -> None:
        """Checkpoint the batches of a unit that were done when it had to stop."""
        rows = unit.rows[: sum(len(a.values) for a in applied)]
        if len(rows):
            self.record(self.gather(replace(unit, rows=rows), applied), applied, began_s)

    def record(self, done: Computed, applied: list[Applied], began_s: float) -> None:
        """Checkpoint a unit."""
        self._recorder.record(done, [e for a in applied for e in a.failures], began_s)

    def failure(self, row: int, error: RowError) -> Failure:
        """Return what the result says of a row that failed."""
        return Failure(
            self._task.fragment_id,
            row,
            row_id(self._storage, self._snapshot, self._task.fragment_id, row),
            error.error,
            error.message,
            error.traceback,
            error.attempts,
            error.input,
        )

    def add_seconds(self, read: float = 0.0, write: float = 0.0) -> None:
        """Count time spent on the task."""
        self._counts += Counts(seconds_read=read, seconds_write=write)
