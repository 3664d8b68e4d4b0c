"""Calls that must return in time. Python cannot end a thread: a stuck one is left behind."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from geneva.errors import UdfTimeoutError

_Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]
_stuck: list[threading.Thread] = []  # that made a call which did not return in time


def calls_are_stuck() -> bool:
    """Whether calls that did not return in time are under way in this process still."""
    return any(thread.is_alive() for thread in _stuck)


class Watch:
    """Makes a thread's calls on another thread, which is replaced when it is stuck.

    Parameters
    ----------
    timeout_s
        Of each call.
    begin
        Called first on each thread that makes calls.
    """

    def __init__(self, timeout_s: float, begin: Callable[[], None]) -> None:
        self._timeout_s, self._begin = timeout_s, begin
        self._works: queue.SimpleQueue[_Work | None] | None = None
        self._thread: threading.Thread | None = None
        self._local = SimpleNamespace()
        self._ready: Callable[..., Any] | None = None

    def ready(self, build: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any]:
        """Return a value that is built on the calling thread, for as long as that takes.

        ``build`` may keep on its argument what is of that thread.
        """
        if self._ready is None:
            self._ready = self._submitted(build, (self._local,)).result()
        return self._ready

    def call(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call.

        Raises
        ------
        UdfTimeoutError
            It did not return in time; it may still be under way.
        """
        future = self._submitted(call, args)
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            if future.done():  # the call's own, or it came at the last moment
                return future.result()
            self.close()  # its thread ends when the call does, if ever
            if self._thread is not None:
                _stuck.append(self._thread)
            raise UdfTimeoutError(
                f"the call did not return within timeout={self._timeout_s:g} s"
            ) from None

    def close(self) -> None:
        """End the thread, once its call has ended."""
        if self._works is not None:
            self._works.put(None)
            self._works = None
        self._local, self._ready = SimpleNamespace(), None

    def _submitted(self, call: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        if self._works is None:
            self._works = queue.SimpleQueue()
            run = contextvars.copy_context().run
            # A daemon: one that is stuck must not keep the process from ending.
            self._thread = threading.Thread(
                target=run, args=(_serve, self._works, self._begin), name="geneva-call", daemon=True
            )
            self._thread.start()
        future: Future[Any] = Future()
        self._works.put((future, call, args))
        return future


def _serve(works: queue.SimpleQueue[_Work | None], begin: Callable[[], None]) -> None:
    begin()
    while (work := works.get()) is not None:
        future, call, args = work
        try:
            future.set_result(call(*args))
        except BaseException as error:
            future.set_exception(error)
        del future, call, args, work  # nothing of a row is held while the next is waited for
