"""The engine's own files under ``<table>/_backfill/``: local disk or object store.

Paths are relative to that folder and use ``/``. A *log* is a file that only grows: on a
disk it is appended to, on an object store each flush becomes one numbered object.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from geneva.errors import StorageError

T = TypeVar("T")
R = TypeVar("R")
SYNC_INTERVAL_S = 1.0
SYNC_BYTES = 16 << 20
RESUME = "run the same command again when the cause is gone: nothing is computed twice"
NO_USE = "the same command will fail again: Lance does not take what it was given"
_UNFIT = re.compile("invalid user input|not supported|not yet supported|unsupported", re.IGNORECASE)
_LASTING = [
    os.strerror(n)  # Lance passes on the text, not the number
    for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
]


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn errors of the operating system or the store into one that names the remedy.

    Raises
    ------
    StorageError
        In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"reading or writing {uri} failed: {error}; {advice(str(error))}"
        ) from error


def is_lasting(message: str) -> bool:
    """Whether an error is one that trying again at once cannot mend: a full disk, no rights."""
    return is_unfit(message) or any(text in message for text in _LASTING)


def advice(message: str) -> str:
    """Return the remedy for an error of the storage."""
    return NO_USE if is_unfit(message) else RESUME


def is_unfit(message: str) -> bool:
    """Return True if Lance refused the values to write, which it will do again."""
    return _UNFIT.search(message) is not None


class Log(Protocol):
    """An append-only file with one writer."""

    def append(self, *parts: bytes | memoryview) -> None:
        """Add the concatenated parts; on a disk they survive this process at once."""

    def flush(self) -> None:
        """Make all that was appended survive the death of this process."""

    def sync(self) -> None:
        """Make all that was appended survive a power failure."""

    def close(self) -> None:
        """Release the file; appends not synced are those of the last second."""


class Objects(Protocol):
    """Small files by path.

    Attributes
    ----------
    at_once
        Requests that are best made at the same time: each waits for the reply of a store.
    """

    at_once: int

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write or replace a file atomically; ``durable``: it survives a power failure."""

    def get(self, path: str) -> bytes:
        """Return a file's content; ``FileNotFoundError`` if there is none."""

    def list(self, folder: str) -> list[str]:
        """Return the paths below a folder, at any depth, sorted."""

    def delete(self, path: str) -> None:
        """Remove a file or a log; missing is fine."""

    def create_log(self, path: str) -> Log:
        """Create a log; ``FileExistsError`` if there is one."""

    def read_log(self, path: str) -> bytes | memoryview:
        """Return all that was appended; ``FileNotFoundError`` if there is no such log."""


def each(work: Callable[[T], R], items: Sequence[T], at_once: int) -> list[R]:
    """Return the results of ``work`` on some items, in their order; so many are at work at once."""
    if at_once == 1 or len(items) < 2:
        return [work(i) for i in items]
    with ThreadPoolExecutor(min(at_once, len(items)), "geneva-requests") as pool:
        return list(pool.map(work, items))


class _LocalLog:
    def __init__(self, path: Path, top: Path) -> None:
        make_folder(path.parent, top)
        self._path = path
        self._named = False  # whether its folder's entry for it is synced
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._size = 0
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def append(self, *parts: bytes | memoryview) -> None:
        size = sum(len(p) for p in parts)
        try:
            written = os.writev(self._fd, parts)
            if written != size:  # a short write (disk full, signal): finish it or raise
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError:
            # Whoever reads stops at a torn frame: it must not stay in front of another thread's.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += size
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
            self.sync()

    def flush(self) -> None:
        """Nothing to do: the kernel has it."""

    def sync(self) -> None:
        if self._unsynced:
            os.fdatasync(self._fd)
            self._unsynced = 0
            if not self._named:
                sync_directory(self._path.parent)
                self._named = True
        self._synced_at = time.monotonic()

    def close(self) -> None:
        os.close(self._fd)
        if self._unsynced:
            _CLOSED.add(self._path)


class _ClosedLogs:
    """Logs that this process closed before they were synced.

    They are synced together once a second; those that were committed and removed by then never
    are. So small fragments do not cost a sync each, and never more than a second is unsynced.
    """

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._synced_at = time.monotonic()
        self._lock = threading.Lock()

    def add(self, path: Path) -> None:
        with self._lock:
            self._paths.append(path)
            if time.monotonic() - self._synced_at < SYNC_INTERVAL_S:
                return
            paths, self._paths = self._paths, []
            # A table that was dropped, or a disk that is gone, is no concern of the next job.
            for closed in paths:
                with suppress(OSError):
                    sync_file(closed)
            for folder in {p.parent for p in paths}:
                with suppress(OSError):
                    sync_directory(folder)
            self._synced_at = time.monotonic()


_CLOSED = _ClosedLogs()


class LocalObjects:
    """Files below a directory of a local or shared disk."""

    at_once = 1

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write to a private temporary name, sync, rename: readers see all or nothing."""
        target = self._root / path
        make_folder(target.parent, self._root)
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
                if durable:
                    f.flush()
                    os.fsync(f.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(target.parent)

    def get(self, path: str) -> bytes:
        """Return a file's content."""
        return (self._root / path).read_bytes()

    def list(self, folder: str) -> list[str]:
        """Return the paths below a folder, temporary files left out."""
        base = self._root / folder
        found = []
        for directory, _, names in os.walk(base, onerror=_unless_gone):
            inner = Path(directory).relative_to(self._root)
            found += [(inner / n).as_posix() for n in names if not n.startswith(".tmp-")]
        return sorted(found)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self._root / path).unlink(missing_ok=True)

    def create_log(self, path: str) -> Log:
        """Create a log file exclusively."""
        return _LocalLog(self._root / path, self._root)

    def read_log(self, path: str) -> memoryview:
        """Map a log into memory: replaying one must not cost its size in memory."""
        with (self._root / path).open("rb") as f:
            if os.fstat(f.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))


def _unless_gone(error: OSError) -> None:
    """Let a folder that is not there be empty, but none that cannot be read."""
    if not isinstance(error, FileNotFoundError):
        raise error


def make_folder(path: Path, top: Path) -> None:
    """Create a directory so that it survives a power failure, and its parents up to ``top``.

    Raises
    ------
    FileNotFoundError
        What ``top`` lies in is gone; nothing brings a dropped table back.
    """
    if not path.is_dir():
        if path != top:
            make_folder(path.parent, top)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make a closed file's content survive a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
