"""Object stores: the engine's own files as objects.

Lance's client carries out every request, with the table's storage options, and repeats what was
throttled (503, 429), timed out or cut off.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from geneva.errors import SettingError
from geneva.storage.door import LanceErrors, is_fault
from geneva.storage.objects import SYNC_BYTES, Log

FLUSH_S = 10.0
# Lance's own three retries are over within two seconds; a throttled prefix needs half a minute.
_DEFAULTS = {"client_max_retries": "8"}
_WAITS_S = (0.1, 0.5, 2.0)
_PART = re.compile(r"\d{6}-(\d+)")


def check_uri(uri: str) -> None:
    """Refuse a URI that is no database of files, or that Lance would take for another place.

    Raises
    ------
    SettingError
        For ``db://`` URIs, and those that Lance cuts off or decodes as it reads them as URLs.
    """
    if uri.startswith("db://"):
        raise SettingError(
            f"{uri} is a remote database: Geneva works on the table's files; "
            "connect to its path or bucket (a directory, s3://, gs:// or az://)"
        )
    place = re.split("[?#]", uri, maxsplit=1)[0]
    if "://" in uri and place != uri:
        raise SettingError(
            f"Lance cuts a URI off at the first '?' or '#', so tables would lie in {place}: use a "
            "place without them, and give options as storage_options"
        )
    if uri.startswith("file://") and "%" in uri:
        raise SettingError(
            f"{uri} holds a '%', which Lance decodes: give the path, without file://"
        )


def with_defaults(options: Mapping[str, str] | None) -> dict[str, str]:
    """Return storage options with those that the engine sets unless the user did."""
    given = dict(options or {})
    names = {k.lower() for k in given}
    return {k: v for k, v in _DEFAULTS.items() if k not in names} | given


def persist(attempt: Callable[[], None]) -> None:
    """Repeat calls that Lance's client does not repeat by itself when a reply is late or lost.

    Those are deletions (a POST) and conditional writes.

    Raises
    ------
    OSError
        What the last attempt raised.
    """
    for wait_s in _WAITS_S:
        try:
            attempt()
        except OSError:
            time.sleep(wait_s)
        else:
            return
    attempt()


class _RemoteLog:
    """A log as numbered objects; an append counts once its flush has returned."""

    def __init__(self, objects: RemoteObjects, path: str, flush_s: float) -> None:
        self._objects = objects
        self._path = path
        self._flush_s = flush_s
        self._parts: list[bytes] = []
        self._size = 0
        self._count = 0
        self._name = ""
        self._flushed_at = time.monotonic()

    def append(self, *parts: bytes | memoryview) -> None:
        self._parts += [bytes(p) for p in parts]
        self._size += sum(len(p) for p in parts)
        if self._size >= SYNC_BYTES or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            # A flush that failed may have landed: the next one replaces it under the same name.
            self._name = self._name or f"{self._path}/{self._count:06d}-{int(time.time())}"
            self._objects.put(self._name, b"".join(self._parts))
            self._parts, self._size, self._name = [], 0, ""
            self._count += 1
        self._flushed_at = time.monotonic()

    def sync(self) -> None:
        self.flush()

    def close(self) -> None:
        self.flush()


class RemoteObjects:
    """Objects below a prefix of an object store, through Lance's own client.

    Parameters
    ----------
    session
        A ``lance.file.LanceFileSession`` opened on the prefix.
    options
        The storage options that it was opened with; their secrets are kept out of errors.
    flush_s
        Seconds after which what was appended to a log is written.
    """

    at_once = 16

    def __init__(
        self,
        session: Any,
        options: Mapping[str, str] | None = None,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._session = session
        self._options = options
        self._flush_s = flush_s

    def put(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Upload one object; a PUT is atomic and durable."""
        with tempfile.TemporaryDirectory(prefix="geneva-") as folder, LanceErrors(self._options):
            local = Path(folder) / uuid4().hex
            local.write_bytes(data)
            self._session.upload_file(str(local), path)

    def get(self, path: str) -> bytes:
        """Download one object."""
        with tempfile.TemporaryDirectory(prefix="geneva-") as folder, LanceErrors(self._options):
            local = Path(folder) / uuid4().hex
            try:
                self._session.download_file(path, str(local))
            except (OSError, RuntimeError) as error:
                if is_fault(error) or self._session.contains(path):
                    raise
                raise FileNotFoundError(path) from error
            return local.read_bytes()

    def list(self, folder: str) -> list[str]:
        """Return the logs and objects below a folder, a log as one path."""
        return sorted(self.written(folder))

    def written(self, folder: str) -> dict[str, float]:
        """Return when the logs below a folder were last written, as their parts' names say.

        The store's client does not pass on the times that the store knows: other objects are as
        if they had just been written.
        """
        found: dict[str, float] = {}
        for name in self._names(folder or None):
            path, _, last = name.rpartition("/")
            part = _PART.fullmatch(last)
            if part is None or not path:
                found[name] = time.time()
            else:
                found[path] = max(found.get(path, 0.0), float(part[1]))
        return found

    def delete(self, path: str) -> None:
        """Remove one object, or all objects of a log."""
        for name in self._parts(path) or [path]:
            persist(partial(self._delete, name))

    def _delete(self, name: str) -> None:
        with LanceErrors(self._options):
            try:
                self._session.delete_file(name)
            except (OSError, RuntimeError) as error:
                # Else somebody else was quicker, or it was never there.
                if is_fault(error) or self._session.contains(name):
                    raise

    def create_log(self, path: str) -> Log:
        """Start a log; its name holds a fresh uuid, so nobody else writes to it."""
        return _RemoteLog(self, path, self._flush_s)

    def read_log(self, path: str) -> bytes:
        """Return a log's flushed parts in order."""
        parts = self._parts(path)
        if not parts:
            raise FileNotFoundError(path)
        return b"".join(self.get(p) for p in parts)

    def _parts(self, path: str) -> Sequence[str]:
        return sorted(n for n in self._names(path) if n.startswith(f"{path}/"))

    def _names(self, folder: str | None) -> Sequence[str]:
        with LanceErrors(self._options):
            names: Sequence[str] = self._session.list(folder)
            return names
