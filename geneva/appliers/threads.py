"""Appliers as threads of this process: the reference executor, for debugging and small tables."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Sequence
from dataclasses import replace

from geneva.appliers.applier import Applier, Loaded
from geneva.appliers.executor import Udfs
from geneva.appliers.host import Pools, share_of_cpus
from geneva.appliers.prints import Heard, bind
from geneva.model.types import (
    ExecutorEvent,
    JobSettings,
    Printed,
    Task,
    TaskDone,
    TaskEvent,
    TaskFailed,
    TaskStopped,
    Workers,
)
from geneva.storage.lance import TableStorage
from geneva.udf import UDF


class LocalExecutor:
    """Runs each applier in a thread; breakpoints and tracebacks work as in any program."""

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Every thread can run."""
        return appliers

    def start(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> ApplierThreads:
        """Start the threads."""
        return ApplierThreads(storage, udfs, settings, appliers)


class ApplierThreads:
    """The threads of one round; one that is stuck in a UDF keeps this object, and its queues."""

    def __init__(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> None:
        self._tasks: queue.SimpleQueue[Sequence[Task] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[list[TaskEvent]] = queue.SimpleQueue()
        self._in_flight = 0
        self._cancelled = threading.Event()
        reserved = max((udf.num_cpus for udf in udfs.values()), default=1.0)
        self._pools = Pools(share_of_cpus(appliers, reserved))
        names = {column: column for column in udfs}
        self._loaded = [Loaded(storage, udfs.__getitem__, self._pools) for _ in range(appliers)]
        self._appliers = [Applier(ldd, settings, names, self._cancelled) for ldd in self._loaded]
        self._heard = [Heard() for _ in range(appliers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(k,), name=f"geneva-applier-{k}", daemon=True)
            for k in range(appliers)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, number: int) -> None:
        loaded, applier = self._loaded[number], self._appliers[number]
        bind(loaded.prints)
        while (group := self._tasks.get()) is not None:
            self._events.put([_of(number, e) for e in self._carry_out(applier, group)])
        loaded.close()

    def _carry_out(self, applier: Applier, group: Sequence[Task]) -> Sequence[TaskEvent]:
        if not self._cancelled.is_set():
            try:
                applier.begin()
            except BaseException as error:  # sys.exit() too: it would end this thread only
                text = f"{type(error).__name__}: {error}"
                return [TaskFailed(t, "setup", text, cause=error) for t in group]
        if self._cancelled.is_set():  # before the applier began, or while it did
            return [TaskStopped(task) for task in group]
        return applier.carry_out(group)

    def free_slots(self, waiting: int) -> int:
        """One task a thread."""
        return len(self._threads) - self._in_flight

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue tasks."""
        self._in_flight += 1
        self._tasks.put(tasks)

    def wait(self, timeout_s: float) -> list[ExecutorEvent]:
        """Return the events of tasks that ended, and the new prints where prints are kept."""
        ended: list[list[TaskEvent]] = []
        try:
            ended.append(self._events.get(timeout=timeout_s))
            while True:
                ended.append(self._events.get_nowait())
        except queue.Empty:
            pass
        self._in_flight -= len(ended)
        return [*self._printed(), *itertools.chain.from_iterable(ended)]

    def _printed(self) -> list[Printed]:
        both = zip(self._loaded, self._heard, strict=True)
        texts = [heard.add(loaded.prints.take(heard.until)) for loaded, heard in both]
        return [Printed(k, text) for k, text in enumerate(texts) if text]

    def workers(self) -> Workers:
        """All threads are ready at once."""
        n = len(self._threads)
        done = [a.progress() for a in self._appliers]
        rows, replayed = sum(d.rows for d in done), sum(d.replayed for d in done)
        return Workers(n, n, rows, rows_replayed=replayed)

    def cancel(self) -> None:
        """Stop at the next batch boundary."""
        self._cancelled.set()

    def close(self, *, kill: bool) -> list[Printed]:
        """End the threads; one that is stuck in a UDF is left behind."""
        for _ in self._threads:
            self._tasks.put(None)
        if not kill:
            for thread in self._threads:
                thread.join()
        self._pools.restore()
        return self._printed()


def _of(applier: int, event: TaskEvent) -> TaskEvent:
    return replace(event, applier=applier) if isinstance(event, TaskDone | TaskFailed) else event
