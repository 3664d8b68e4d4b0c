"""The threads of an applier that call UDFs, and whose turn it is to give them work."""

from __future__ import annotations

import functools
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from geneva.appliers.prints import Output, bind

P = ParamSpec("P")
R = TypeVar("R")


class UdfThreads:
    """A pool whose size may change between jobs.

    Columns that are computed from one read share it, so that an applier never makes more calls
    at once than it was given threads.

    Parameters
    ----------
    output
        Gets what is printed by them.
    """

    def __init__(self, output: Output) -> None:
        self._pool: _Pool | None = None
        self._output = output
        self.count = 0

    def resize(self, count: int) -> None:
        """Have so many threads; nothing may be running unless it is the size already."""
        if self._pool is None or self.count != count:
            self.close()
            self._pool = _Pool(count, self.bind)
            self.count = count

    def submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queue a call."""
        assert self._pool is not None
        return self._pool.submit(work, *args, **kwargs)

    def close(self, *, wait: bool = False) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.close(wait=wait)
            self._pool = None

    def bind(self) -> None:
        """Have what the calling thread prints kept with the applier's."""
        bind(self._output)


class _Pool:
    """Daemon threads: unlike an executor's, one that a UDF holds for ever lets the process end."""

    def __init__(self, count: int, begin: Callable[[], None]) -> None:
        self._works: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(target=self._serve, args=(begin,), name=f"geneva-udf_{k}", daemon=True)
            for k in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        future: Future[R] = Future()
        self._works.put((future, functools.partial(work, *args, **kwargs)))
        return future

    def close(self, *, wait: bool) -> None:
        """Cancel what was not begun, and end the threads."""
        with suppress(queue.Empty):
            while True:
                if (work := self._works.get_nowait()) is not None:
                    work[0].cancel()
        for _ in self._threads:
            self._works.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _serve(self, begin: Callable[[], None]) -> None:
        begin()
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
