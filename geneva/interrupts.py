"""Ctrl-C waits while something is done that must not be left half done.

A module whose import was interrupted is partially initialized for the rest of the process, and so
is a Ray whose daemons were being started: whoever wants it next fails, for good.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from geneva.errors import JobCancelledError


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back interrupts of this thread; what came meanwhile strikes at the end, once.

    Python interrupts the main thread only: in any other there is nothing to hold back.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> Any:
        came.append((number, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


@contextmanager
def interrupt_cancels() -> Iterator[None]:
    """Turn an interrupt into the error of a cancelled job, without the way to where it struck.

    One that says something has been understood already: the job goes on elsewhere.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            raise
        raise JobCancelledError(
            "the backfill was interrupted; the same command continues where it stopped"
        ) from None
