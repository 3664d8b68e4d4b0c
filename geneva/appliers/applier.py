"""A lead column and its followers: one read feeds the UDFs of several columns.

While a task of the lead is carried out, the batches that it reads are also given to its
followers, whose results go to journals of their own, found by the follower's own task key. When
it is the follower's turn, its job finds the rows there as it finds those of a crashed attempt.

Nothing that happens to a follower happens to the lead: a follower that fails is not followed
any further in this task, and its own job meets and reports the failure.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from geneva.appliers.calls import UdfThreads
from geneva.appliers.group import Group
from geneva.appliers.memory import peak_bytes
from geneva.appliers.outcome import TaskCancelledError, event_of
from geneva.appliers.pools import Pools
from geneva.appliers.prints import Output
from geneva.appliers.task_run import Applier, TaskRun
from geneva.model.rows import IntArray
from geneva.model.types import Counts, Followed, JobSettings, RowsDone, Task, TaskDone, TaskEvent
from geneva.storage.lance import TableStorage
from geneva.udf import UDF

_LOG = logging.getLogger("geneva")


class SharedApplier:
    """One applier: the UDFs of all columns that may share a read, each loaded when it is needed.

    Parameters
    ----------
    load
        Returns a UDF by its name.
    pools
        Of a process that other appliers share; else it has its CPUs to itself.

    Attributes
    ----------
    output
        What its UDFs printed, where prints are kept.
    """

    def __init__(
        self, storage: TableStorage, load: Callable[[str], UDF], pools: Pools | None = None
    ) -> None:
        self._storage, self._load, self._pools = storage, load, pools
        self.output = Output()
        self._threads = UdfThreads(self.output)
        self._appliers: dict[str, Applier] = {}  # by the name of the UDF
        self._names: Mapping[str, str] = {}
        self._lead: Applier | None = None
        self._settings: dict[str, JobSettings] = {}  # of followers
        self._followers: dict[str, Applier | None] = {}  # that were begun; those that could not
        self._beginning = threading.Lock()

    def begin(self, settings: JobSettings, names: Mapping[str, str]) -> None:
        """Prepare for a job's tasks; ``names`` has the UDF of each column, by incarnation."""
        self._names = names
        self._settings = {f.target.incarnation: f for f in settings.followers}
        self._followers = {}
        self._lead = self._applier(settings.target.incarnation)
        self._lead.begin(settings)

    def _applier(self, column: str) -> Applier:
        name = self._names[column]
        if name not in self._appliers:
            made = Applier(self._storage, self._load(name), self._threads, self._pools)
            self._appliers[name] = made
        return self._appliers[name]

    def carry_out(self, tasks: Sequence[Task]) -> list[TaskEvent]:
        """Carry out tasks that were handed out together; each ends as one of the events."""
        assert self._lead is not None
        try:
            ended = Group(self._lead, tasks).run() if len(tasks) > 1 else [self.run(tasks[0])]
        except BaseException as error:  # of a group: what concerns all of it
            ended = [event_of(task, error) for task in tasks]
        peak = peak_bytes()
        return [replace(e, peak_bytes=peak) if isinstance(e, TaskDone) else e for e in ended]

    def run(self, task: Task) -> TaskDone:
        """Carry out one task, and what its followers can have of it.

        Raises
        ------
        TaskRowError, TaskCancelledError
            As `Applier.run`; of the lead only.
        """
        assert self._lead is not None
        if not task.followers:
            return self._lead.run(task)
        following = _Following(
            [
                _Follower(column, applier, self._settings[column], follows, task)
                for column, follows in task.followers
                if (applier := self._follower(column)) is not None
            ]
        )
        try:
            done = self._lead.run(task, following)
        finally:
            followed = following.end()
        return replace(done, followed=followed)

    def _follower(self, column: str) -> Applier | None:
        """Return a follower's applier, begun at the first task that it follows.

        Not when the job begins: if that kills the worker, the task is tried again without.
        """
        with self._beginning:
            if column not in self._followers:
                self._followers[column] = None
                try:
                    applier = self._applier(column)
                    applier.begin(self._settings[column])
                    self._followers[column] = applier
                except Exception as error:  # its own job meets it again, and reports it
                    _LOG.info("a column does not follow, its UDF could not start: %s", error)
            return self._followers[column]

    def progress(self) -> RowsDone:
        """Return the lead's rows done since `begin`, of unfinished tasks too."""
        return RowsDone() if self._lead is None else self._lead.progress()

    def cancel(self) -> None:
        """Let the running task stop at the next batch boundary, all its batches checkpointed."""
        for applier in list(self._appliers.values()):
            applier.cancel()

    def close(self) -> None:
        """Release threads and event loops; no task may be running."""
        self._threads.close(wait=True)
        for applier in self._appliers.values():
            applier.close()


class _Following:
    """Those that follow one task."""

    def __init__(self, followers: Sequence[_Follower]) -> None:
        self._followers = followers

    def feed(self, rows: IntArray, inputs: pa.RecordBatch) -> None:
        for follower in self._followers:
            follower.feed(rows, inputs)

    def flush(self) -> None:
        for follower in self._followers:
            follower.flush()

    def end(self) -> tuple[Followed, ...]:
        return tuple(follower.end() for follower in self._followers)


class _Follower:
    """A column's work on what one task of its lead reads."""

    def __init__(
        self, column: str, applier: Applier, settings: JobSettings, task: Task, lead: Task
    ) -> None:
        self._column, self._applier = column, applier
        self._names = list(settings.target.inputs)
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
            wanted = self._need[rows]
            rows, inputs = rows[wanted], inputs.filter(pa.array(wanted))
        if not len(rows):
            return
        try:
            self._rows += len(rows)
            self._begun().feed(rows, self._own(inputs))
        except TaskCancelledError:
            raise
        except BaseException as error:  # sys.exit() and a panic in Lance too
            self._give_up(error)

    def _begun(self) -> TaskRun:
        if self._run is None:
            run = self._applier.task_run(self._task)
            run.begin(self._applier.snapshot(self._task.version))
            self._run = run
        return self._run

    def _own(self, inputs: pa.RecordBatch) -> pa.RecordBatch:
        """Return the same columns in the follower's order."""
        names = inputs.schema.names
        columns = [inputs.column(names.index(n)) for n in self._names]
        return pa.RecordBatch.from_arrays(columns, names=self._names)

    def _give_up(self, error: BaseException) -> None:
        self._stopped = True
        _LOG.info("a column is not followed to the end of a task: %s", error)

    def flush(self) -> None:
        """Compute what was taken in; the lead is done, so not even a cancel is its business."""
        if self._stopped:
            return
        try:
            if self._run is not None:
                self._run.flush()
            self._flushed = True
        except BaseException as error:
            self._give_up(error)

    def end(self) -> Followed:
        """Let what is in flight be checkpointed, and say what was done."""
        counts = Counts()
        try:
            if self._run is not None:
                counts = self._run.close()
        except Exception as error:
            self._give_up(error)
        new = replace(counts, computed=counts.computed - counts.replayed, replayed=0)
        complete = self._covered and self._flushed and not self._stopped
        return Followed(self._column, self._task.key, self._rows, complete, new)
