"""Appliers as threads of this process: the reference executor, for debugging and small tables."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from geneva.appliers.applier import SharedApplier
from geneva.appliers.executor import Udfs
from geneva.appliers.pools import Pools, share_of_cpus
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

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Sequence[Task] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[list[TaskEvent]] = queue.SimpleQueue()
        self._appliers: list[SharedApplier] = []
        self._heard: list[Heard] = []
        self._threads: list[threading.Thread] = []
        self._in_flight = 0
        self._cancelled = threading.Event()
        self._pools = Pools(1)

    def capacity(self, udf: UDF, appliers: int) -> int:
        """Every thread can run."""
        return appliers

    def start(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> None:
        """Start the threads."""
        # A thread that was stuck in the last job keeps that job's queues.
        self._tasks, self._events = queue.SimpleQueue(), queue.SimpleQueue()
        self._in_flight, self._cancelled = 0, threading.Event()
        names = {column: column for column in udfs}
        reserved = max((udf.num_cpus for udf in udfs.values()), default=1.0)
        self._pools = Pools(share_of_cpus(appliers, reserved))
        for k in range(appliers):
            applier = SharedApplier(storage, udfs.__getitem__, self._pools)
            self._appliers.append(applier)
            self._heard.append(Heard())
            thread = threading.Thread(
                target=self._serve,
                args=(k, applier, settings, names, self._tasks, self._events, self._cancelled),
                name=f"geneva-applier-{k}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()

    @staticmethod
    def _serve(
        number: int,
        applier: SharedApplier,
        settings: JobSettings,
        names: Mapping[str, str],
        tasks: queue.SimpleQueue[Sequence[Task] | None],
        events: queue.SimpleQueue[list[TaskEvent]],
        cancelled: threading.Event,
    ) -> None:
        ready = False
        bind(applier.output)
        while (group := tasks.get()) is not None:
            if not ready and not cancelled.is_set():
                try:
                    applier.begin(settings, names)
                    ready = True
                except BaseException as error:  # sys.exit() too: it would end this thread only
                    text = f"{type(error).__name__}: {error}"
                    events.put(
                        [TaskFailed(t, "setup", text, cause=error, applier=number) for t in group]
                    )
                    continue
            if cancelled.is_set():  # before the applier began, or while it did
                events.put([TaskStopped(task) for task in group])
                continue
            ended = applier.carry_out(group)
            events.put([_of(number, event) for event in ended])
        applier.close()

    def free_slots(self, waiting: int) -> int:
        """One task a thread."""
        return len(self._threads) - self._in_flight

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue tasks."""
        self._in_flight += 1
        self._tasks.put(tasks)

    def wait(self, timeout_s: float) -> list[ExecutorEvent]:
        """Return what finished, and what was printed where prints are kept."""
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
        both = zip(self._appliers, self._heard, strict=True)
        texts = [heard.add(applier.output.take(heard.until)) for applier, heard in both]
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
        for applier in self._appliers:
            applier.cancel()

    def close(self, *, kill: bool) -> list[Printed]:
        """End the threads; one that is stuck in a UDF is left behind."""
        for _ in self._threads:
            self._tasks.put(None)
        if not kill:
            for thread in self._threads:
                thread.join()
        self._pools.restore()
        last = self._printed()
        self._threads, self._appliers, self._heard = [], [], []
        return last


def _of(applier: int, event: TaskEvent) -> TaskEvent:
    return replace(event, applier=applier) if isinstance(event, TaskDone | TaskFailed) else event
