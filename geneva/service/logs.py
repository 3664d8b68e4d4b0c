"""Logs of one job: its driver's, and the prints of its UDFs on each applier.

A log is a few files named by the offset at which each begins, such as ``applier-3.524288.log``.
The oldest are removed, so a log is bounded, and offsets stay what they are.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from geneva.errors import NoSuchJobError
from geneva.jobs.records import LogPart, LogRecord
from geneva.model.types import Printed
from geneva.storage.private import private_file, private_folder

DRIVER = "driver"
SEGMENT_BYTES = 512 * 1024
SEGMENTS = 2
_LOOK_S = 1.0
_NAMES = re.compile(r"(?P<name>driver|applier-\d+)\.(?P<start>\d+)\.log")
_LOG = logging.getLogger("geneva.driver")


@dataclass(frozen=True, slots=True)
class _Segment:
    path: Path
    start: int

    @property
    def end(self) -> int:
        return self.start + self.path.stat().st_size


@dataclass(frozen=True, slots=True)
class JobLog:
    """One log of a job."""

    folder: Path
    name: str

    def _segments(self) -> list[_Segment]:
        segments = []
        for path in self.folder.glob(f"{self.name}.*.log"):
            if match := _NAMES.fullmatch(path.name):
                segments.append(_Segment(path, int(match["start"])))
        return sorted(segments, key=lambda s: s.start)

    def _path(self, start: int) -> Path:
        return self.folder / f"{self.name}.{start}.log"

    def open(self) -> BinaryIO:
        """Return the newest file, to append to."""
        private_folder(self.folder)
        segments = self._segments()
        return _open(segments[-1].path if segments else self._path(0))

    def append(self, text: str) -> None:
        """Add text."""
        with self.open() as file:
            file.write(text.encode(errors="replace"))
            full = file.tell() >= SEGMENT_BYTES
        if full:
            _open(self._path(self._segments()[-1].end)).close()
            self.trim()

    def trim(self) -> None:
        """Remove the oldest files."""
        for segment in self._segments()[:-SEGMENTS]:
            segment.path.unlink(missing_ok=True)

    def take_over(self) -> None:
        """Let stdout and stderr of this process go on in another file of the log.

        Its name, the offset, is known when the present file takes no more.
        """
        fresh = self.folder / f"{self.name}.next"
        newest = self._segments()[-1]
        with _open(fresh) as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        fresh.rename(self._path(newest.end))
        self.trim()

    def record(self) -> LogRecord:
        """Say how much of it there is."""
        segments = self._segments()
        newest = segments[-1].path.stat().st_mtime
        start, end = segments[0].start, segments[-1].end
        return LogRecord(self.name, start, end, datetime.fromtimestamp(newest, UTC))

    def read(self, after: int | None, most_bytes: int) -> LogPart:
        """Return the bytes from an offset on, or the end of the log.

        Parameters
        ----------
        after
            ``LogPart.end`` of the part before; ``None`` for the last ``most_bytes``.

        Raises
        ------
        NoSuchJobError
            There is no such log.
        """
        try:
            return self._read(after, most_bytes)
        except (FileNotFoundError, IndexError) as error:  # it may be removed just now
            raise NoSuchJobError(f"the job has no log {self.name!r} on this host") from error

    def _read(self, after: int | None, most_bytes: int) -> LogPart:
        segments = self._segments()
        first, end = segments[0].start, segments[-1].end
        start = min(max(first, end - most_bytes if after is None else after), end)
        data = b""
        for segment in segments:
            if segment.end <= start + len(data) or len(data) == most_bytes:
                continue
            with segment.path.open("rb") as file:
                file.seek(start + len(data) - segment.start)
                data += file.read(most_bytes - len(data))
        # A character that is cut at the end is left to the next part.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data)
        return LogPart(self.name, start, start + len(data) - len(decoder.getstate()[0]), text)


def _open(path: Path) -> BinaryIO:
    return open(path, "ab", opener=private_file)


def logs_of(folder: Path) -> list[JobLog]:
    """Return the logs in a job's folder: the driver's, then those of appliers by number."""
    names = {m["name"] for p in folder.glob("*.log") if (m := _NAMES.fullmatch(p.name))}
    order = sorted(names, key=lambda n: (n != DRIVER, int(n.partition("-")[2] or 0)))
    return [JobLog(folder, name) for name in order]


def forget(folder: Path) -> None:
    """Remove the logs of a job."""
    shutil.rmtree(folder, ignore_errors=True)


class Printer:
    """Keeps the prints of appliers in their logs; a log that cannot be written ends no job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, printed: Printed) -> None:
        """Add to the log of an applier."""
        try:
            JobLog(self._folder, f"applier-{printed.applier}").append(printed.text)
        except OSError as error:
            _LOG.warning("what applier %s printed is not kept: %s", printed.applier, error)


@contextlib.contextmanager
def bounded(log: JobLog) -> Iterator[None]:
    """Keep a log from growing without end that is stdout and stderr of this process."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            try:
                if os.fstat(1).st_size >= SEGMENT_BYTES:
                    log.take_over()
            except OSError as error:
                _LOG.warning("the log cannot go on in another file: %s", error)

    thread = threading.Thread(target=watch, name="geneva-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
