"""Prints of UDFs on an applier: one bounded buffer, which its driver reads bit by bit.

    a UDF prints -> _Tee -> Prints -- with each reply, twice a second at least --> Heard -> the log
                              `------ as a file, if the applier died ----------------^

1. `Prints` is a ring of bytes in shared memory. On the driver's host the memory is a file, so what
   is in it outlives the process. The bytes come first, then the position of their end.
2. The driver says with each call how far it has heard; the reply holds what came after that. A
   reply may be lost, or overtaken by a later one: `Heard` passes over what it has.
3. Once an applier is dead, the driver reads what it never heard from the file.
4. What was overwritten before anybody heard it is counted, and the log says how much it was.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from geneva.storage.private import private_file

RING_BYTES = 512 * 1024  # as much as a job's log holds for sure
_END = struct.Struct("<q")
_bound = threading.local()
_install = threading.Lock()


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the printed text, from a position on; positions count bytes."""

    start: int
    data: bytes

    @property
    def end(self) -> int:
        """The position after it."""
        return self.start + len(self.data)


class Prints:
    """The latest that was printed on an applier; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ring = mmap.mmap(-1, _END.size + RING_BYTES)
        self._end = 0
        self._process = os.getpid()

    def keep_in(self, path: str) -> None:
        """Go on in a file, for a driver on the same host; on another one its folder is not there.

        The file is whole from the start, so that a disk which fills up later is of no concern; one
        that is full already costs last words only.
        """
        with self._lock, suppress(OSError), open(path, "w+b", opener=private_file) as file:
            file.write(self._ring)
            file.flush()
            self._ring = mmap.mmap(file.fileno(), len(self._ring))

    def write(self, text: str) -> None:
        """Add text; it takes the place of the oldest."""
        if os.getpid() != self._process:  # a fork has the memory, but nobody counts what it writes
            return
        data = text.encode(errors="replace")
        kept = data[-RING_BYTES:]
        with self._lock:
            self._end += len(data)
            at = (self._end - len(kept)) % RING_BYTES
            first = kept[: RING_BYTES - at]
            self._put(at, first)
            self._put(0, kept[len(first) :])
            _END.pack_into(self._ring, 0, self._end)

    def _put(self, at: int, data: bytes) -> None:
        self._ring[_END.size + at : _END.size + at + len(data)] = data

    def take(self, heard: int) -> Part:
        """Return the text printed after a position."""
        with self._lock:
            return _after(heard, self._ring)


def _after(heard: int, ring: mmap.mmap | bytes) -> Part:
    view = memoryview(ring)
    (end,) = _END.unpack_from(view)
    start = max(heard, end - RING_BYTES)
    at, size = start % RING_BYTES, max(0, end - start)
    first = bytes(view[_END.size + at : _END.size + min(at + size, RING_BYTES)])
    return Part(start, first + bytes(view[_END.size : _END.size + size - len(first)]))


class Heard:
    """The prints of an applier that a driver has read.

    Attributes
    ----------
    until
        The position up to which it has it.
    path
        The applier's file, if it is on this host.
    """

    def __init__(self) -> None:
        self.until = 0
        self.path = ""

    def add(self, part: Part) -> str:
        """Return the new bytes of a part."""
        if part.end <= self.until:
            return ""
        missing, self.until = part.start - self.until, part.end
        text = part.data[max(0, -missing) :].decode(errors="replace")
        return f"[{missing:,} bytes were not kept]\n{text}" if missing > 0 else text

    def rest(self) -> str:
        """Return the new bytes in the file."""
        with suppress(OSError, struct.error):  # on another host, not begun, or its disk was full
            return self.add(_after(self.until, Path(self.path).read_bytes()))
        return ""


class _Tee:
    """A stream that also writes to the prints of the applier whose thread prints."""

    def __init__(self, stream: TextIO, default: Prints | None) -> None:
        self.stream, self.default = stream, default

    def write(self, text: str) -> int:
        prints = getattr(_bound, "prints", self.default)
        if prints is not None:
            prints.write(text)
        return self.stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def bind(prints: Prints) -> None:
    """Let this thread print to an applier's prints, once `keep_prints` was called."""
    _bound.prints = prints


def keep_prints(default: Prints | None = None) -> None:
    """Keep the prints of this process, besides printing them; idempotent.

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
