"""The threads of an applier that call UDFs, and whose turn it is to give them work."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from geneva.execute.output import Output, bind

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
        self._pool: ThreadPoolExecutor | None = None
        self._output = output
        self.count = 0

    def resize(self, count: int) -> None:
        """Have so many threads; nothing may be running unless it is the size already."""
        if self._pool is None or self.count != count:
            self.close()
            self._pool = ThreadPoolExecutor(count, "geneva-udf", bind, (self._output,))
            self.count = count

    def submit(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queue a call."""
        assert self._pool is not None
        return self._pool.submit(work, *args, **kwargs)

    def close(self, *, wait: bool = False) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
            self._pool = None


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
