"""One column's work on one task, from the rows that are read to the column file.

Three kinds of threads share it. Two tasks of an applier may be under way at once: while one writes
its column file, the next one reads.

    the task's thread                      UDF threads (all tasks')        what a crash leaves
    -----------------                      ------------------------        -------------------
 1. replay the journals of earlier
    attempts; adopt a file that one
    of them finished
 2. read one batch ahead, then wait
    for the turn
 3. read a batch --> feed: rows that
    a journal holds are replayed, the
    others are cut into units
 4. submit a unit, as long as few
    enough are in flight         ------->  call the UDF, batch by batch    nothing of the unit
 5.                                        append it to the journal        its frame: the unit
                                           (held back for a blink)
 6. take back the oldest units, in  <----
    order, and lay them out in the                                         a file without its end
    column file
 7. the batch goes to the followers,
    which do 3 to 5 for their columns                                      their frames
 8. end the turn: the next task gives
    work to the threads
 9. take back the rest; close and
    check the file; sync it                                                an orphan, and frames
10. append the finish frame                                                the task: a later run
                                                                           adopts the file
11. the driver commits the file                                            the version

A unit that fails, or a cancel, ends the stream at 4 or 6; then `_settle` lets the units in flight
end and be checkpointed, and abandons the file.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from geneva.appliers.batches import READ_BYTES, unit_bytes
from geneva.appliers.calls import ColumnWork, Turn
from geneva.appliers.outcome import TaskCancelledError, TaskRowError
from geneva.appliers.reader import Reader, row_id
from geneva.appliers.units import (
    Checkpoints,
    Computed,
    InFlight,
    Unit,
    Units,
    all_checkpointed,
    emptied,
    error_text,
    joined,
    split,
)
from geneva.column.checkpoint.journal import Journal, Replay, replay
from geneva.column.checkpoint.key import log_path, new_attempt
from geneva.column.file import WORK_KEY, ColumnFileBuilder, check_file, row_map_text
from geneva.errors import CorruptFileError
from geneva.model.rows import IntArray
from geneva.model.types import (
    ColumnFile,
    Counts,
    Failure,
    Followed,
    Target,
    Task,
    TaskDone,
    stored_type,
)
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.values import size_of
from geneva.udf import Applied, RowError, RowFailed

_CAREFUL_ROWS = 1024
_REPLAYED_ROWS = 8192
_FAILURES_KEPT = 1000  # per task, in the result; the row map records all of them
_LOG = logging.getLogger("geneva")


class TaskRun:
    """A task while it runs: `run` for a task alone; `feed_all`, `flush`, `write`, `seal` apart."""

    def __init__(self, work: ColumnWork, snapshot: Snapshot, task: Task) -> None:
        storage, settings = work.storage, work.settings
        if work.records_failures:  # the plan does not know the UDF's rules
            task = replace(task, complete=False)
        self._work, self._storage, self._settings = work, storage, settings
        self._snapshot, self._task = snapshot, task
        self._types = settings.target.data_types
        path = log_path(settings.target.incarnation, task.key, new_attempt(task.version))
        self._journal = Journal(storage.objects, path, self._types)
        # Where all is checkpointed, those that failed were tried by this very call.
        assembles = task.checkpointed is not None or task.replay_only
        tried = not settings.retry_failed or assembles
        self._earlier = self._replayed(task.resume, failed=work.records_failures and tried)
        self._counts = Counts()
        self._in_flight = InFlight(work.threads.count, joins=task.assemble, learns=work.learns)
        self._failures: list[Failure] = []
        self._builder = (
            ColumnFileBuilder(storage, snapshot, settings.target, task) if task.assemble else None
        )
        given = settings.batch_size or settings.checkpoint_size
        self._units = Units(self._unit_rows, None if given else unit_bytes(settings.threads))
        holds = task.assemble and not task.attempt and settings.adaptive
        self._checkpoints = Checkpoints(self._journal, holds=holds)

    def _replayed(self, logs: Sequence[str], *, failed: bool) -> Replay:
        return replay(
            self._storage.objects, logs, self._types, with_failed=failed, key=self._task.key
        )

    def run(self, reader: Reader, turn: Turn, followers: Sequence[Follower]) -> TaskDone:
        """Carry out the task; the followers get the batches that it reads.

        Raises
        ------
        TaskRowError
            The UDF failed (with ``on_error="null"``: returned something unusable).
        TaskCancelledError
            The applier was cancelled.
        """
        task, target = self._task, self._settings.target
        adopted = _adopted(self._storage, self._snapshot, target, task, self._earlier)
        if adopted is not None:
            self._work.add_progress(adopted.counts.computed, adopted.counts.computed)
            return adopted
        if task.attempt and self._settings.on_error == "null":
            self._skip_deadly()
        try:
            self._stream(reader, turn, followers)
            file = self.write()
            if file is not None:
                self._storage.sync_files([file.name])
            return self.seal(file, self._journal)
        except BaseException:
            self._settle()
            raise
        finally:
            self._journal.close()

    def _skip_deadly(self) -> None:
        """Record rows as failed that two workers died of, each alone with that one row."""
        alone = Counter(first for first, last in self._earlier.fatal if first == last)
        deadly = sorted(row for row, deaths in alone.items() if deaths > 1)
        for row in deadly:
            error = RowError(0, "WorkerDied", f"{alone[row]} workers died of this row", attempts=2)
            nulls = [pa.nulls(1, stored_type(t)) for t in self._types]
            self._journal.append(np.array([row], np.int64), nulls, [error_text(error)])
        if deadly:
            self._journal.sync()
            self._earlier = self._replayed((*self._task.resume, self._journal.path), failed=True)

    def _stream(self, reader: Reader, turn: Turn, followers: Sequence[Follower]) -> None:
        there = all_checkpointed(self._task, self._earlier, filtered=bool(self._settings.where))
        if there is not None:
            self._replay_all(there)
            return
        # Wide rows are not read before their turn: two tasks' worth may be too much to hold.
        started = time.perf_counter()
        batches = reader.read(self._task)
        ahead = deque(() if self._settings.readahead else itertools.islice(batches, 1))
        self.add_seconds(read=time.perf_counter() - started)
        turn.wait()
        self.feed_all(itertools.chain(emptied(ahead), batches), followers)
        turn.end()
        self.flush()
        for follower in followers:
            follower.flush()

    # --- rows in -----------------------------------------------------------------------

    def feed_all(
        self, batches: Iterable[tuple[IntArray, pa.RecordBatch]], followers: Sequence[Follower] = ()
    ) -> None:
        """Take in all rows of the task and their inputs."""
        started = time.perf_counter()
        for rows, inputs in batches:
            self.add_seconds(read=time.perf_counter() - started)
            self.feed(rows, inputs)
            for follower in followers:
                follower.feed(rows, inputs)
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
        """Compute all rows that were taken in, and wait for them."""
        self._push_all(self._units.flush())
        self._write_all(self._in_flight.rest())

    def _replay_all(self, positions: IntArray) -> None:
        """Lay out checkpointed values; no input is read."""
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
        size = self._work.unit_rows
        if not self._task.attempt:
            return size
        suspect = [
            last - first + 1 for first, last in self._earlier.fatal if first <= first_row <= last
        ]
        return max(1, min(suspect) // 8) if suspect else max(1, min(size // 2, _CAREFUL_ROWS))

    def _push_all(self, units: Iterator[Unit]) -> None:
        for unit in units:
            if self._work.cancelled.is_set():
                raise TaskCancelledError
            if self._task.attempt:
                self._journal.begin(int(unit.rows[0]), int(unit.rows[-1]))
            self._in_flight.add(unit, self._work.threads.submit(self._compute, unit))
            del unit
            one_by_one = self._task.attempt > 0
            self._write_all(self._in_flight.rest() if one_by_one else self._in_flight.surplus())

    def _replay(self, rows: IntArray, positions: IntArray) -> None:
        earlier = self._earlier
        failed = [k for k, p in enumerate(positions.tolist()) if p in earlier.errors]
        failures = [
            self._failure(int(rows[k]), RowError(**json.loads(earlier.errors[int(positions[k])])))
            for k in failed[:_FAILURES_KEPT]
        ]
        counts = Counts(computed=len(rows), replayed=len(rows), failed=len(failed))
        values = earlier.values(positions) if self._task.assemble else []
        self._work.add_progress(len(rows), len(rows))
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

    # --- the end -----------------------------------------------------------------------

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
            self._checkpoints.release()  # such a file is not adopted: its records are all there is
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
        self._journal.close()
        return TaskDone(*span, file, counts, failures, logs, window=task.window)

    def _settle(self) -> None:
        """Let the batches in flight end and be checkpointed before the task gives up."""
        self._in_flight.settle()
        self._checkpoints.release()
        if self._builder is not None:
            self._builder.abandon()
        self._journal.sync()

    def close(self) -> Counts:
        """End a run that is not sealed: its units are checkpointed; return its counts."""
        try:
            self._settle()
        finally:
            self._journal.close()
        return self._counts

    def add_seconds(self, read: float = 0.0, write: float = 0.0) -> None:
        """Count time spent on the task."""
        self._counts += Counts(seconds_read=read, seconds_write=write)

    # --- in a UDF thread ---------------------------------------------------------------

    def _compute(self, unit: Unit) -> Computed:
        """Call the UDF on a unit and checkpoint the values."""
        started = time.perf_counter()
        applied: list[Applied] = []
        try:
            for part in self._work.call(unit.inputs):
                applied.append(part)
        except (TaskCancelledError, RowFailed) as error:
            self._record_first(unit, applied, started)
            if isinstance(error, TaskCancelledError):
                raise
            at = sum(len(a.values) for a in applied) + error.failure.row
            raise TaskRowError(self._failure(int(unit.rows[at]), error.failure)) from error
        called = time.perf_counter()
        computed = self._gather(unit, applied)
        self._record(computed, applied, started)
        self._work.add_progress(len(unit.rows))
        computed.counts = Counts(
            computed=len(unit.rows),
            failed=len(computed.failed),
            seconds_udf=called - started,
            seconds_checkpoint=time.perf_counter() - called,
        )
        return computed

    def _gather(self, unit: Unit, applied: list[Applied]) -> Computed:
        """Join the batches of a unit."""
        columns, errors = joined(applied, self._settings.target)
        failures = tuple(self._failure(int(unit.rows[k]), e) for k, e in errors[:_FAILURES_KEPT])
        failed = np.array([k for k, _ in errors], np.int64)
        size = sum(map(size_of, columns))
        return Computed(unit.rows, columns, failed, failures, value_bytes=size)

    def _record_first(self, unit: Unit, applied: list[Applied], began_s: float) -> None:
        """Checkpoint the batches of a unit that were done when it had to stop."""
        rows = unit.rows[: sum(len(a.values) for a in applied)]
        if len(rows):
            self._record(self._gather(replace(unit, rows=rows), applied), applied, began_s)

    def _record(self, done: Computed, applied: list[Applied], began_s: float) -> None:
        """Checkpoint a unit."""
        self._checkpoints.record(done, [e for a in applied for e in a.failures], began_s)

    def _failure(self, row: int, error: RowError) -> Failure:
        """Return a row's failure as the result reports it."""
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


class Follower:
    """A column that is checkpointed from the batches of another one's task, the lead's.

    Its results go to a journal of its own, by its own task key, where its job finds them as it
    finds those of a crashed attempt. Nothing that happens to it happens to the lead: one that
    fails is not followed any further in this task, and its own job meets and reports the failure.
    """

    def __init__(
        self,
        column: str,
        begin: Callable[[Task], TaskRun],
        names: Sequence[str],
        task: Task,
        lead: Task,
    ) -> None:
        self._column, self._begin, self._names = column, begin, names
        self._task = replace(task, start=lead.start, stop=lead.stop)
        self._need = None if task.need is None else task.need.mask()
        self._covered = lead.need is None or (
            self._need is not None and not (self._need & ~lead.need.mask()).any()
        )
        self._run: TaskRun | None = None
        self._stopped = self._flushed = False
        self._rows = 0

    def feed(self, rows: IntArray, inputs: pa.RecordBatch) -> None:
        """Compute and checkpoint those of the rows that are needed.

        Raises
        ------
        TaskCancelledError
            The job is being stopped.
        """
        if self._stopped:
            return
        if self._need is not None:
            needed = self._need[rows]
            rows, inputs = rows[needed], inputs.filter(pa.array(needed))
        if not len(rows):
            return
        try:
            self._rows += len(rows)
            if self._run is None:
                self._run = self._begin(self._task)
            self._run.feed(rows, inputs.select(self._names))
        except TaskCancelledError:
            raise
        except BaseException as error:  # sys.exit() and a panic in Lance too
            self._give_up(error)

    def flush(self) -> None:
        """Compute all rows taken in; the lead is done, so not even a cancel is its business."""
        if self._stopped:
            return
        try:
            if self._run is not None:
                self._run.flush()
            self._flushed = True
        except BaseException as error:
            self._give_up(error)

    def end(self) -> Followed:
        """Let the units in flight be checkpointed; return the counts."""
        counts = Counts()
        try:
            if self._run is not None:
                counts = self._run.close()
        except Exception as error:
            self._give_up(error)
        new = replace(counts, computed=counts.computed - counts.replayed, replayed=0)
        complete = self._covered and self._flushed and not self._stopped
        return Followed(self._column, self._task.key, self._rows, complete, new)

    def _give_up(self, error: BaseException) -> None:
        self._stopped = True
        _LOG.info("a column is not followed to the end of a task: %s", error)


def _adopted(
    storage: TableStorage, snapshot: Snapshot, target: Target, task: Task, earlier: Replay
) -> TaskDone | None:
    """Return the outcome of an attempt that finished its file and died before the commit.

    ``None`` where there is none, or where the file does not fit any more.
    """
    fact = earlier.finish
    if fact is None or not task.assemble or fact["failed"]:
        return None  # which rows failed, and why, only the records tell; or they are tried again
    if (fact["target_file"], fact["selection"]) != (task.target_file, task.selection):
        return None  # it carries other values along, or leaves rows out that are wanted now
    schema = pa.schema([snapshot.schema.field(c) for c in target.columns])
    try:
        check_file(storage, fact["file"], task.rows, schema)
        footer = storage.read_footer(fact["file"])
        row_map = row_map_text(footer, fact["file"])
        if footer.metadata.get(WORK_KEY) != task.key:
            return None
    except (FileNotFoundError, CorruptFileError):
        return None  # cleaned up or torn by a power failure: the records are still there
    counts = Counts(
        computed=fact["computed"],
        replayed=fact["computed"],
        failed=fact["failed"],
        overwritten=fact["overwritten"],
    )
    file = ColumnFile(
        task.fragment_id,
        task.rows,
        fact["file"],
        row_map,
        task.sources,
        task.target_file,
        task.resume,
        task.deletion,
        task.live,
    )
    span = task.key, task.fragment_id, task.start, task.stop
    return TaskDone(*span, file, counts, (), task.resume, window=task.window)
