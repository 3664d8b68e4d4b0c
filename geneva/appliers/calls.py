"""How an applier calls UDFs: in its threads, in turns, in batches of the size that pays."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa

from geneva.appliers.batches import MAX_ROWS, BatchSizer, unit_bytes
from geneva.appliers.host import Pools
from geneva.appliers.outcome import TaskCancelledError
from geneva.appliers.prints import Prints, bind
from geneva.model.types import JobSettings, RowsDone
from geneva.storage.lance import TableStorage
from geneva.storage.secrets import hider
from geneva.udf import UDF, Applied, Caller, DeviceFull, UdfKind

P = ParamSpec("P")
R = TypeVar("R")


class UdfThreads:
    """The threads that call the UDFs of an applier.

    Columns that are computed from one read share them, so that an applier never makes more calls
    at once than it was given threads.
    """

    def __init__(self, count: int, prints: Prints) -> None:
        self.count = count
        self._works: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(
                target=self._serve, args=(prints,), name=f"geneva-udf_{k}", daemon=True
            )
            for k in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queue a call."""
        future: Future[R] = Future()
        self._works.put((future, functools.partial(work, *args, **kwargs)))
        return future

    def close(self, *, wait: bool) -> None:
        """Cancel the calls that were not begun, and end the threads."""
        with suppress(queue.Empty):
            while True:
                if (work := self._works.get_nowait()) is not None:
                    work[0].cancel()
        for _ in self._threads:
            self._works.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _serve(self, prints: Prints) -> None:
        bind(prints)
        while (work := self._works.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call, work  # a unit's rows are not held while the next is waited for


class Turns:
    """Tasks of one applier give work to its UDF threads one after the other, as they began."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[Turn] = deque()

    def join(self) -> Turn:
        """Stand in line; end the turn whatever happens."""
        turn = Turn(self._changed, self._line)
        with self._changed:
            self._line.append(turn)
        return turn


class Turn:
    """A place in the line."""

    def __init__(self, changed: threading.Condition, line: deque[Turn]) -> None:
        self._changed, self._line = changed, line

    def wait(self) -> None:
        """Block until all who came before have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._line[0] is self)

    def end(self) -> None:
        """Let the next one go on; idempotent."""
        with self._changed:
            if self in self._line:
                self._line.remove(self)
                self._changed.notify_all()


class LoadedUdf:
    """A UDF that a worker keeps from job to job, with its instance and the batches it likes."""

    def __init__(self, udf: UDF, storage: TableStorage, prints: Prints) -> None:
        self.udf = udf
        self.caller = Caller(udf, hide=hider(storage.options), begin=lambda: bind(prints))
        self.sizer = BatchSizer(None)

    def begin(self, settings: JobSettings, threads: UdfThreads) -> None:
        """Build the instance, where that was not done, for the calls of a job."""
        awaits = settings.threads if self.udf.kind is UdfKind.ASYNC else 1
        self.caller.configure(settings.on_error, awaits)
        threads.submit(self.caller.open).result()  # one of theirs may need its own
        limit = min(settings.checkpoint_size or MAX_ROWS, max(settings.read_rows, 1))
        together = self.udf.kind is not UdfKind.SCALAR
        most = unit_bytes(threads.count)
        sizer = BatchSizer(settings.batch_size, limit, awaits, most, latency=together)
        if settings.batch_size is None:
            sizer.resume(self.sizer)
        self.sizer = sizer


class ColumnWork:
    """One column of a job on an applier: how its UDF is called, and how many rows are done."""

    def __init__(
        self,
        loaded: LoadedUdf,
        storage: TableStorage,
        settings: JobSettings,
        threads: UdfThreads,
        cancelled: threading.Event,
        pools: Pools | None,
    ) -> None:
        loaded.begin(settings, threads)
        self.storage, self.settings, self.cancelled = storage, settings, cancelled
        self.udf, self._caller, self._sizer = loaded.udf, loaded.caller, loaded.sizer
        self.threads, self._pools = threads, pools
        self.rows_done, self._counting = RowsDone(), threading.Lock()

    @property
    def records_failures(self) -> bool:
        """True if a row that fails may be null and done."""
        return self.settings.on_error == "null" or self.udf.skips

    @property
    def unit_rows(self) -> int:
        """Rows that the next unit should hold."""
        return max(self.settings.checkpoint_size or 0, self._sizer.rows)

    def learns(self) -> bool:
        """Return whether the next unit should be cut when more is known."""
        return self._sizer.learns

    def add_progress(self, rows: int, replayed: int = 0) -> None:
        """Count rows that were computed, or that an earlier attempt had computed."""
        with self._counting:
            done = self.rows_done
            self.rows_done = RowsDone(done.rows + rows, done.replayed + replayed)

    def call(self, inputs: pa.RecordBatch) -> Iterator[Applied]:
        """Yield the UDF's results for a unit's inputs, batch by batch (in a UDF thread)."""
        if self._pools is not None:
            self._pools.follow()
        for batch in self._batches(inputs):
            yield from self._calls(batch)

    def _batches(self, inputs: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if self.settings.checkpoint_size is None:
            yield inputs
            return
        step = self.settings.batch_size or self._sizer.rows
        for at in range(0, inputs.num_rows, step):
            yield inputs.slice(at, step)

    def _calls(self, batch: pa.RecordBatch) -> Iterator[Applied]:
        """Yield the UDF's results for a batch: in parts, if its device has no room for all."""
        if self.cancelled.is_set():
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
