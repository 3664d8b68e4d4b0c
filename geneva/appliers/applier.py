"""One worker of one job: it carries out tasks, alone or together, for one column and its followers.

Both executors run this class: each thread of the local one, each Ray actor. Small tasks go
together: a fragment of a few rows costs more to open, to sync and to report than to compute. A
group is worked on for a fraction of a second, so that a crash loses no more than of a large task:
what it did not begin by then is handed back. Nothing of a task depends on those beside it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from geneva.appliers.calls import ColumnWork, LoadedUdf, Turns, UdfThreads
from geneva.appliers.host import Pools, peak_bytes
from geneva.appliers.outcome import TaskCancelledError, event_of
from geneva.appliers.prints import Prints
from geneva.appliers.reader import Batch, Reader
from geneva.appliers.task_run import Follower, TaskRun
from geneva.column.checkpoint.journal import Journal
from geneva.column.checkpoint.key import new_attempt, shared_log_path
from geneva.errors import VersionGoneError
from geneva.model.types import (
    ColumnFile,
    JobSettings,
    RowsDone,
    Task,
    TaskDone,
    TaskEvent,
    TaskReturned,
    TaskStopped,
)
from geneva.storage.lance import TableStorage
from geneva.udf import UDF, UdfKind

GROUP_S = 0.2
_AHEAD = 1  # tasks whose rows the UDF threads have while the one before is written
_LOG = logging.getLogger("geneva")


class Loaded:
    """The parts of a worker that outlive a job: UDFs and their instances, threads, and prints.

    Parameters
    ----------
    load
        Returns a UDF by its name.
    pools
        The CPUs of a process that other workers share; else it has them to itself.
    """

    def __init__(
        self, storage: TableStorage, load: Callable[[str], UDF], pools: Pools | None = None
    ) -> None:
        self.storage, self.pools = storage, pools
        self.prints = Prints()
        self._load = load
        self._udfs: dict[str, LoadedUdf] = {}
        self._threads: UdfThreads | None = None

    def udf(self, name: str) -> LoadedUdf:
        """Return a UDF, loaded when it is needed first."""
        if name not in self._udfs:
            self._udfs[name] = LoadedUdf(self._load(name), self.storage, self.prints)
        return self._udfs[name]

    def threads(self, count: int) -> UdfThreads:
        """Return so many threads; nothing may be running unless there are as many already."""
        if self._threads is None or self._threads.count != count:
            if self._threads is not None:
                self._threads.close(wait=False)
            self._threads = UdfThreads(count, self.prints)
        return self._threads

    def close(self) -> None:
        """Release threads and event loops; no task may be running."""
        if self._threads is not None:
            self._threads.close(wait=True)
        for udf in self._udfs.values():
            udf.caller.close()


class Applier:
    """Carries out a job's tasks; `carry_out` and `progress` from any thread.

    Parameters
    ----------
    names
        The name of each column's UDF, by incarnation.
    cancelled
        Once it is set, tasks stop at the next batch boundary, all their batches checkpointed.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: JobSettings,
        names: Mapping[str, str],
        cancelled: threading.Event,
    ) -> None:
        self.storage, self.settings, self.cancelled = loaded.storage, settings, cancelled
        self.turns = Turns()
        self._loaded, self._names = loaded, names
        self._columns = {s.target.incarnation: s for s in (settings, *settings.followers)}
        self._works: dict[str, ColumnWork] = {}
        self._hopeless: set[str] = set()  # followers that could not be begun
        self._beginning = threading.Lock()
        self._readers: dict[int, Reader] = {}  # by version

    def begin(self) -> ColumnWork:
        """Build the instance of the column's own UDF, unless that was done.

        Those of followers are built at the first task that they follow, not when the job begins:
        if that kills the worker, the task is tried again without.
        """
        return self._begun(self.settings.target.incarnation)

    def _begun(self, column: str) -> ColumnWork:
        if (work := self._works.get(column)) is not None:
            return work  # while a follower is begun, which may take long
        with self._beginning:
            if column not in self._works:
                udf = self._loaded.udf(self._names[column])
                asynchronous = udf.udf.kind is UdfKind.ASYNC
                threads = self._loaded.threads(1 if asynchronous else self.settings.threads)
                self._works[column] = ColumnWork(
                    udf,
                    self.storage,
                    self._columns[column],
                    threads,
                    self.cancelled,
                    self._loaded.pools,
                )
            return self._works[column]

    def progress(self) -> RowsDone:
        """Return the rows done of the column itself, of unfinished tasks too."""
        work = self._works.get(self.settings.target.incarnation)
        return RowsDone() if work is None else work.rows_done

    def carry_out(self, tasks: Sequence[Task]) -> list[TaskEvent]:
        """Carry out tasks that were handed out together; each ends as one of the events."""
        try:
            ended = _TaskGroup(self, tasks).run() if len(tasks) > 1 else [self._run(tasks[0])]
        except BaseException as error:  # of a group: what concerns all of it
            ended = [event_of(task, error) for task in tasks]
        peak = peak_bytes()
        return [replace(e, peak_bytes=peak) if isinstance(e, TaskDone) else e for e in ended]

    def _run(self, task: Task) -> TaskDone:
        if self.cancelled.is_set():
            raise TaskCancelledError
        turn = self.turns.join()
        followers: list[Follower] = []
        try:
            reader = self.reader(task.version)
            run = TaskRun(self.begin(), reader.snapshot, task)
            followers += [
                f for column, t in task.followers if (f := self._follower(column, t, task))
            ]
            done = run.run(reader, turn, followers)
        finally:
            turn.end()
            followed = tuple(f.end() for f in followers)
        return replace(done, followed=followed)

    def _follower(self, column: str, task: Task, lead: Task) -> Follower | None:
        if column in self._hopeless:
            return None
        try:
            work = self._begun(column)
        except Exception as error:  # its own job meets it again, and reports it
            _LOG.info("a column does not follow, its UDF could not start: %s", error)
            self._hopeless.add(column)
            return None
        names = work.settings.target.inputs
        begin = partial(TaskRun, work, self.reader(task.version).snapshot)
        return Follower(column, begin, names, task, lead)

    def reader(self, version: int) -> Reader:
        """Return the reader of a version of the table, opened once for all tasks."""
        if version not in self._readers:
            try:
                snapshot = self.storage.open(version)
            except VersionGoneError:
                snapshot = self.storage.open_planned(self.settings.planned)
                if snapshot.version != version:
                    raise
            udf = self.begin().udf
            self._readers[version] = Reader(self.storage, snapshot, self.settings, udf)
        return self._readers[version]


class _TaskGroup:
    """Whole fragments without checkpoints, of one version of the table.

    1. One scan reads all of them.
    2. Each is computed and written; its journal is created only if it takes long. What is not
       begun after ``GROUP_S``, or when one failed, is handed back.
    3. All files are synced together.
    4. One shared log gets their finish frames: from here on a later run adopts the files.
    """

    def __init__(self, applier: Applier, tasks: Sequence[Task]) -> None:
        self._applier, self._tasks = applier, tasks
        self._work = applier.begin()
        self._reader = applier.reader(tasks[0].version)
        self._written: list[tuple[Task, TaskRun, ColumnFile | None]] = []
        self._events: list[TaskEvent] = []
        self._read_s = 0.0  # of each task

    def run(self) -> list[TaskEvent]:
        """Carry them out; whatever happens to one of them is its event."""
        turn = self._applier.turns.join()
        try:
            inputs = self._read()
            turn.wait()
            self._compute(inputs)
        finally:
            turn.end()
        self._seal()
        return self._events

    def _read(self) -> dict[int, list[Batch]]:
        started = time.perf_counter()
        try:
            inputs = self._reader.read_together(self._tasks)
        except Exception:  # each task reads for itself, and the one to blame says so
            return {}
        self._read_s = (time.perf_counter() - started) / len(self._tasks)
        return inputs

    def _compute(self, inputs: Mapping[int, list[Batch]]) -> None:
        ahead: deque[tuple[Task, TaskRun]] = deque()
        until = time.perf_counter() + GROUP_S
        for k, task in enumerate(self._tasks):
            if self._applier.cancelled.is_set():
                self._events.append(TaskStopped(task))
            elif self._events or (k and time.perf_counter() > until):
                self._events.append(TaskReturned(task))
            else:
                self._begin(task, inputs, ahead)
            while len(ahead) > _AHEAD:
                self._write(*ahead.popleft())
        while ahead:
            self._write(*ahead.popleft())

    def _begin(
        self,
        task: Task,
        inputs: Mapping[int, list[Batch]],
        ahead: deque[tuple[Task, TaskRun]],
    ) -> None:
        """Give a task's rows to the UDF threads."""
        run = None
        try:
            run = TaskRun(self._work, self._reader.snapshot, task)
            if task.fragment_id in inputs:
                run.add_seconds(read=self._read_s)
                run.feed_all(inputs[task.fragment_id])
            else:
                run.feed_all(self._reader.read(task))
        except BaseException as error:
            self._failed(task, run, error)
        else:
            ahead.append((task, run))

    def _write(self, task: Task, run: TaskRun) -> None:
        try:
            run.flush()
            self._written.append((task, run, run.write()))
        except BaseException as error:
            self._failed(task, run, error)

    def _failed(self, task: Task, run: TaskRun | None, error: BaseException) -> None:
        with suppress(Exception):  # what went wrong first is what is told
            if run is not None:
                run.close()
        self._events.append(event_of(task, error))

    def _seal(self) -> None:
        """Make the files durable, and record that they are complete."""
        target, storage = self._applier.settings.target, self._applier.storage
        attempt = new_attempt(self._reader.snapshot.version)
        path = shared_log_path(target.incarnation, attempt)
        shared = Journal(storage.objects, path, target.data_types)
        fault: Exception | None = None
        try:
            storage.sync_files([file.name for *_, file in self._written if file is not None])
        except Exception as error:
            fault = error
        for task, run, file in self._written:
            try:
                if fault is not None:
                    raise fault
                self._events.append(run.seal(file, shared))
            except Exception as error:
                self._failed(task, run, error)
        shared.close()
