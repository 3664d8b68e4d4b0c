"""The engine's own files under ``<table>/_backfill/``: local disk or object store.

Paths are relative to that folder and use ``/``. A *log* is a file that only grows: on a
disk it is appended to, on an object store each flush becomes one numbered object.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from geneva.errors import StorageError

SYNC_INTERVAL_S = 1.0
SYNC_BYTES = 16 << 20
REMOTE_FLUSH_S = 10.0


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what the operating system or the store raises into an error that says what to do.

    Raises
    ------
    StorageError
        In place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"reading or writing {uri} failed: {error}; "
            "run the same command again when the cause is gone: nothing is computed twice"
        ) from error


class Log(Protocol):
    """An append-only file with one writer."""

    def append(self, *parts: bytes | memoryview) -> None:
        """Add the concatenated parts; they survive the death of this process at once."""

    def sync(self) -> None:
        """Make all that was appended survive a power failure."""

    def close(self) -> None:
        """Sync and release the file."""


class Objects(Protocol):
    """Small files by path."""

    def put(self, path: str, data: bytes) -> None:
        """Write or replace a file atomically and durably."""

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


class _LocalLog:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._unsynced = 0
        self._synced_at = time.monotonic()

    def append(self, *parts: bytes | memoryview) -> None:
        size = sum(len(p) for p in parts)
        written = os.writev(self._fd, parts)
        if written != size:  # a short write (disk full, signal): finish it or raise
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
            self.sync()

    def sync(self) -> None:
        if self._unsynced:
            os.fdatasync(self._fd)
            self._unsynced = 0
        self._synced_at = time.monotonic()

    def close(self) -> None:
        # No sync here: a log is closed when what it protects is durable elsewhere, or when the
        # process gives up, and then the kernel writes the last second back by itself.
        os.close(self._fd)


class LocalObjects:
    """Files below a directory of a local or shared disk."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def put(self, path: str, data: bytes) -> None:
        """Write to a private temporary name, sync, rename: readers see all or nothing."""
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-")
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(target.parent)

    def get(self, path: str) -> bytes:
        """Return a file's content."""
        return (self._root / path).read_bytes()

    def list(self, folder: str) -> list[str]:
        """Return the paths below a folder, temporary files left out."""
        base = self._root / folder
        found = []
        for directory, _, names in os.walk(base):
            inner = Path(directory).relative_to(self._root)
            found += [(inner / n).as_posix() for n in names if not n.startswith(".tmp-")]
        return sorted(found)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self._root / path).unlink(missing_ok=True)

    def create_log(self, path: str) -> Log:
        """Create a log file exclusively."""
        return _LocalLog(self._root / path)

    def read_log(self, path: str) -> memoryview:
        """Map a log into memory: replaying one must not cost its size in memory."""
        with (self._root / path).open("rb") as f:
            if os.fstat(f.fileno()).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _RemoteLog:
    """A log as numbered objects; what was appended counts once its flush has returned."""

    def __init__(self, objects: RemoteObjects, path: str) -> None:
        self._objects = objects
        self._path = path
        self._parts: list[bytes] = []
        self._size = 0
        self._count = 0
        self._flushed_at = time.monotonic()

    def append(self, *parts: bytes | memoryview) -> None:
        self._parts += [bytes(p) for p in parts]
        self._size += sum(len(p) for p in parts)
        if self._size >= SYNC_BYTES or time.monotonic() - self._flushed_at >= REMOTE_FLUSH_S:
            self.sync()

    def sync(self) -> None:
        if self._parts:
            self._objects.put(f"{self._path}/{self._count:06d}", b"".join(self._parts))
            self._parts, self._size = [], 0
            self._count += 1
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        self.sync()


class RemoteObjects:
    """Objects below a prefix of an object store, through Lance's own client.

    Parameters
    ----------
    session
        A ``lance.file.LanceFileSession`` opened on the prefix.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def put(self, path: str, data: bytes) -> None:
        """Upload one object; a PUT is atomic."""
        with tempfile.TemporaryDirectory(prefix="geneva-") as folder:
            local = Path(folder) / uuid4().hex
            local.write_bytes(data)
            self._session.upload_file(str(local), path)

    def get(self, path: str) -> bytes:
        """Download one object."""
        with tempfile.TemporaryDirectory(prefix="geneva-") as folder:
            local = Path(folder) / uuid4().hex
            try:
                self._session.download_file(path, str(local))
            except OSError as error:
                if not self._session.contains(path):
                    raise FileNotFoundError(path) from error
                raise
            return local.read_bytes()

    def list(self, folder: str) -> list[str]:
        """Return the logs and objects below a folder, a log as one path."""
        names = self._session.list(folder or None)
        return sorted({n.rsplit("/", 1)[0] if _is_part(n) else n for n in names})

    def delete(self, path: str) -> None:
        """Remove one object, or all objects of a log."""
        parts = [n for n in self._session.list(path) if n.startswith(f"{path}/")]
        for name in [*parts, path]:
            if name in parts or self._session.contains(name):
                try:
                    self._session.delete_file(name)
                except OSError:
                    if self._session.contains(name):  # else somebody else was quicker
                        raise

    def create_log(self, path: str) -> Log:
        """Start a log; its name holds a fresh uuid, so nobody else writes to it."""
        return _RemoteLog(self, path)

    def read_log(self, path: str) -> bytes:
        """Return a log's flushed parts in order."""
        parts = [n for n in self._session.list(path) if n.startswith(f"{path}/")]
        if not parts:
            raise FileNotFoundError(path)
        return b"".join(self.get(p) for p in sorted(parts))


def _is_part(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return "/" in name and len(last) == 6 and last.isdigit()
