"""Ctrl-C waits while something is done that must not be left half done.

A module whose import was interrupted is partially initialized for the rest of the process, and so
is a Ray whose daemons were being started: whoever wants it next fails, for good.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from geneva.errors import JobCancelledError

INTERRUPTED = 130  # exit code of a command that was interrupted


def interrupt_ends_starting_command() -> None:
    """Let an interrupt end the command line with one line while it is being imported.

    1. The console script and ``python -m geneva`` import this package before any code of the
       command line runs, so nothing could catch the interrupt: it would be a traceback.
    2. Nothing has begun by then, so the process may end at once.
    3. `interrupt_is_raised` hands interrupts over to the command line, which catches them.

    Nothing happens in any other program, or where interrupts are ignored.
    """
    script = os.path.basename(getattr(sys, "argv", [""])[0])
    module = sys.orig_argv[1:3] == ["-m", "geneva"]
    on_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    main_thread = threading.current_thread() is threading.main_thread()
    if (script in ("geneva", "geneva.exe") or module) and on_default and main_thread:
        signal.signal(signal.SIGINT, _end)


def interrupt_is_raised() -> None:
    """Let interrupts of a command line that has started raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"geneva: interrupted\n")
    os._exit(INTERRUPTED)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back interrupts of this thread; if any came, one strikes at the end.

    Python interrupts the main thread only: in any other there is nothing to hold back.
    """
    before = signal.getsignal(signal.SIGINT)
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or not callable(before) or before is _end:
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
