"""The standard streams: a pipe that may be closed, an encoding that may lack letters."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any, TextIO


def fit_for_any_terminal() -> None:
    """Let no letter, and nobody who stops reading, end a command with a traceback.

    Letters that a terminal's encoding lacks are written as escapes. Progress that nobody reads any
    more is lost, as a job must not end for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Lossy(sys.stderr)


def flush() -> None:
    """Flush stdout; a reader that is gone, as behind ``| head``, is no failure."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        silence(sys.stdout)


def reader_gone(stream: TextIO) -> bool:
    """Whether nobody reads a stream: a broken pipe may be another one, of which a job died."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False


def silence(stream: TextIO) -> None:
    """Send later output of a stream nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


class _Lossy:
    """A stream that drops output which nobody reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
