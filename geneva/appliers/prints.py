"""What UDFs print on an applier, and what its driver has heard of it.

A reply may be lost with the process that sends it, or come after a later one. So an applier holds
what it printed until its driver says how far it has heard, and the driver passes over what it has.
On the driver's host the latest is in files too, for when the applier dies, or prints more at once
than it holds.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

_MOST_CHARS = 64 * 1024
_FILE_CHARS = 512 * 1024  # as much as a job's log holds for sure
_FILES = 2
_bound = threading.local()
_install = threading.Lock()


@dataclass(frozen=True, slots=True)
class Part:
    """Some of an output, from a position on; positions count characters."""

    start: int
    text: str

    @property
    def end(self) -> int:
        """The position after it."""
        return self.start + len(self.text)


class Output:
    """The latest of what was printed and the driver is not known to have; thread-safe."""

    def __init__(self, most_chars: int = _MOST_CHARS) -> None:
        self._lock = threading.Lock()
        self._most = most_chars
        self._pieces: deque[str] = deque()
        self._held = self._end = 0
        self._files: _Files | None = None
        self._process = os.getpid()

    def keep_in(self, path: str) -> None:
        """Have the latest in files too, from what is held on, for a driver on the same host.

        There are none where their folder is not: on another host.
        """
        with self._lock:
            if self._files is not None:
                self._files.close()
            self._files = _Files(path) if Path(path).parent.is_dir() else None
            if self._files is not None:
                self._files.write(self._held_part())

    def write(self, text: str) -> None:
        """Add text; the oldest is dropped when it is more than is held."""
        if os.getpid() != self._process:  # a fork has the files, but nobody counts what it writes
            return
        with self._lock:
            if self._files is not None:
                self._files.write(Part(self._end, text))
            self._end += len(text)
            self._pieces.append(text[-self._most :])
            self._held += len(self._pieces[-1])
            while self._held > self._most:
                self._drop()

    def take(self, heard: int) -> Part:
        """Forget what is before a position, which the driver has, and return the rest."""
        with self._lock:
            while self._pieces and self._end - self._held + len(self._pieces[0]) <= heard:
                self._drop()
            return self._held_part()

    def _drop(self) -> None:
        self._held -= len(self._pieces.popleft())

    def _held_part(self) -> Part:
        return Part(self._end - self._held, "".join(self._pieces))


class _Files:
    """The latest of an output in two files, whose names say where they begin.

    What was written survives the process; a disk that is full loses last words only.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: deque[str] = deque()
        self._file: int | None = None
        self._next = self._in_file = 0

    def write(self, part: Part) -> None:
        text = part.text[-_FILE_CHARS:]
        data = text.encode(errors="replace")
        try:
            file = self._open(part.end - len(text))
            if os.write(file, data) < len(data):
                self.close()
        except OSError:
            self.close()  # what comes next has a file of its own, as its place would be wrong here
        self._next = part.end
        self._in_file += len(text)

    def _open(self, start: int) -> int:
        if self._file is None or start != self._next or self._in_file > _FILE_CHARS:
            self.close()
            name = f"{self._path}.{start}"
            self._file, self._in_file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), 0
            self._names.append(name)
            if len(self._names) > _FILES:
                os.unlink(self._names.popleft())
        return self._file

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Heard:
    """What a driver has of an applier's output.

    Attributes
    ----------
    until
        The position up to which it has it.
    path
        Where the applier's files are, if it is on this host.
    """

    def __init__(self) -> None:
        self.until = 0
        self.path = ""

    def add(self, part: Part) -> str:
        """Return what is new of a part, with what only the files have from before it."""
        text = self.rest() if part.start > self.until else ""
        return text + self._add(part)

    def rest(self) -> str:
        """Return what is new in the files."""
        return "".join(self._add(part) for part in _parts_in(self.path))

    def _add(self, part: Part) -> str:
        if part.end <= self.until:
            return ""
        missing, self.until = part.start - self.until, part.end
        if missing > 0:
            return f"[{missing:,} characters were not kept]\n{part.text}"
        return part.text[-missing:]


def _parts_in(path: str) -> Iterator[Part]:
    folder, _, name = path.rpartition("/")
    starts = [int(p.suffix[1:]) for p in Path(folder).glob(f"{name}.*")] if name else []
    for start in sorted(starts):
        with contextlib.suppress(OSError):  # it may be removed just now
            data = Path(f"{path}.{start}").read_bytes()
            # What is being written may end within a character.
            yield Part(start, codecs.getincrementaldecoder("utf-8")("replace").decode(data))


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
