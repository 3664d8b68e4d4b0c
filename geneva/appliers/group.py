"""Small tasks that are carried out together: one read, and one sync of the files they wrote.

A fragment of a few rows costs more to open, to sync and to report than to compute. A group is
worked on for a fraction of a second, so that a crash loses no more than of a large task: what it
did not begin by then is handed back. Nothing of a task depends on those beside it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa

from geneva.appliers.outcome import event_of
from geneva.appliers.reader import read_together
from geneva.appliers.task_run import Applier, TaskRun
from geneva.column.checkpoint.journal import Journal
from geneva.column.checkpoint.key import new_attempt, shared_log_path
from geneva.model.rows import IntArray
from geneva.model.types import ColumnFile, Task, TaskEvent, TaskReturned, TaskStopped

GROUP_S = 0.2
_AHEAD = 1  # tasks whose rows the UDF threads have while the one before is written

Inputs = dict[int, list[tuple[IntArray, pa.RecordBatch]]]


class Group:
    """Whole fragments without checkpoints, of one version of the table."""

    def __init__(self, applier: Applier, tasks: Sequence[Task]) -> None:
        self._applier, self._tasks = applier, tasks
        self._snapshot = applier.snapshot(tasks[0].version)
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

    def _read(self) -> Inputs:
        applier, started = self._applier, time.perf_counter()
        try:
            found = read_together(applier.storage, self._snapshot, self._tasks, applier.settings)
        except Exception:  # each task reads for itself, and the one to blame says so
            return {}
        self._read_s = (time.perf_counter() - started) / len(self._tasks)
        return found

    def _compute(self, inputs: Inputs) -> None:
        ahead: deque[tuple[Task, TaskRun]] = deque()
        until = time.perf_counter() + GROUP_S
        for k, task in enumerate(self._tasks):
            if self._applier.cancelled:
                self._events.append(TaskStopped(task))
            elif self._events or (k and time.perf_counter() > until):
                self._events.append(TaskReturned(task))
            elif (run := self._begun(task, inputs)) is not None:
                ahead.append((task, run))
            while len(ahead) > _AHEAD:
                self._write(*ahead.popleft())
        while ahead:
            self._write(*ahead.popleft())

    def _begun(self, task: Task, inputs: Inputs) -> TaskRun | None:
        """Give a task's rows to the UDF threads."""
        run = self._applier.task_run(task)
        try:
            run.begin(self._snapshot)
            run.open(self._snapshot)
            if task.fragment_id in inputs:
                run.add_seconds(read=self._read_s)
                run.feed_all(inputs[task.fragment_id])
            else:
                run.feed_all(self._applier.read(self._snapshot, task))
        except BaseException as error:
            self._failed(task, run, error)
            return None
        return run

    def _write(self, task: Task, run: TaskRun) -> None:
        try:
            run.flush()
            self._written.append((task, run, run.write()))
        except BaseException as error:
            self._failed(task, run, error)

    def _failed(self, task: Task, run: TaskRun, error: BaseException) -> None:
        with suppress(Exception):  # what went wrong first is what is told
            run.close()
        self._events.append(event_of(task, error))

    def _seal(self) -> None:
        """Make what was written durable, and record that it is complete."""
        target, storage = self._applier.settings.target, self._applier.storage
        attempt = new_attempt(self._snapshot.version)
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
                done = run.seal(file, shared)
                run.end()
                self._events.append(done)
            except Exception as error:
                self._failed(task, run, error)
        shared.close()
