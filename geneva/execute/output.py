"""What UDFs print on an applier, kept until the driver takes it."""

from __future__ import annotations

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

    def take(self) -> str:
        """Return what was printed since the last call, and forget it."""
        with self._lock:
            text, dropped = "".join(self._pieces), self._dropped
            self._pieces.clear()
            self._held = self._dropped = 0
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
