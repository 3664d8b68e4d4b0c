"""What UDFs print on an applier, kept until the driver takes it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from typing import Any, TextIO

_MOST_CHARS = 64 * 1024
_bound = threading.local()
_install = threading.Lock()


class Output:
    """The latest of what was printed and nobody took yet; thread-safe."""

    def __init__(self, most_chars: int = _MOST_CHARS) -> None:
        self._lock = threading.Lock()
        self._most = most_chars
        self._pieces: deque[str] = deque()
        self._held = self._dropped = 0
        self._file: int | None = None
        self._in_file = 0

    def keep_in(self, path: str) -> None:
        """Have what nobody took in a file too, for a driver that outlives this process.

        There is none where its folder is not: on another host.
        """
        with self._lock, contextlib.suppress(OSError):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if self._file is not None:
                os.close(self._file)
            self._file, self._in_file = file, 0

    def write(self, text: str) -> None:
        """Add text; the oldest is dropped when it is more than is held."""
        kept = text[-self._most :]
        with self._lock:
            self._dropped += len(text) - len(kept)
            self._pieces.append(kept)
            self._held += len(kept)
            while self._held > self._most:
                gone = len(self._pieces.popleft())
                self._held -= gone
                self._dropped += gone
            if self._file is not None:
                self._keep(self._file, kept.encode(errors="replace"))

    def _keep(self, file: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a disk that is full loses last words only
            if self._in_file > self._most:
                self._empty(file)
            self._in_file += os.write(file, data)

    def _empty(self, file: int) -> None:
        os.ftruncate(file, 0)
        self._in_file = 0

    def take(self) -> str:
        """Return what was printed since the last call, and forget it."""
        with self._lock:
            text, dropped = "".join(self._pieces), self._dropped
            self._pieces.clear()
            self._held = self._dropped = 0
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._empty(self._file)
        return f"[{dropped:,} characters were not kept]\n{text}" if dropped else text


class _Tee:
    """A stream that also writes to the output of the applier whose thread prints."""

    def __init__(self, stream: TextIO, default: Output | None) -> None:
        self.stream, self.default = stream, default

    def write(self, text: str) -> int:
        output = getattr(_bound, "output", self.default)
        if output is not None:
            output.write(text)
        return self.stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def bind(output: Output) -> None:
    """Let this thread print to an applier's output, once `keep_prints` was called."""
    _bound.output = output


def keep_prints(default: Output | None = None) -> None:
    """Keep what is printed by this process, besides printing it; idempotent.

    Parameters
    ----------
    default
        Gets what is printed by threads that are bound to none.
    """
    with _install:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, _Tee):
                stream.default = default
            else:
                setattr(sys, name, _Tee(stream, default))
