"""What a power failure may leave of a folder, by the rules of POSIX.

A file's content is safe once the file was synced, a name once its folder was. Of all that came
later any part may be left: none of it, all of it, a beginning, a length without the bytes; and in
any order. `Disk` watches a folder and the syncs of this process (Lance makes none), and keeps for
each moment what is safe and what is only in memory. A `Moment` then builds what may be left.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.faults import FaultyStorage

_FOLDER = -1  # in place of an inode
Names = dict[str, dict[str, int]]  # folder -> name -> inode
Data = dict[int, bytes]  # by inode


@dataclass(frozen=True)
class Moment:
    """What is safe and what is in memory at one moment; ``what`` happens next."""

    what: str
    safe_names: Names
    safe_data: Data
    names: Names
    data: Data

    def build(self, root: Path, chance: random.Random | None) -> None:
        """Lay out what a power failure leaves: by chance, or nothing but what is safe."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        self._folder(root, "", chance)

    def _folder(self, at: Path, folder: str, chance: random.Random | None) -> None:
        safe, now = self.safe_names.get(folder, {}), self.names.get(folder, {})
        for name in sorted(safe.keys() | now.keys()):
            kept = now if chance is not None and chance.random() < 0.5 else safe
            inode = kept.get(name)
            if inode == _FOLDER:
                (at / name).mkdir()
                self._folder(at / name, os.path.join(folder, name), chance)
            elif inode is not None:
                (at / name).write_bytes(self._content(inode, chance))

    def _content(self, inode: int, chance: random.Random | None) -> bytes:
        safe = self.safe_data.get(inode, b"")
        content = self.data.get(inode, safe)
        if chance is None or not content.startswith(safe):
            return safe
        rest = content[len(safe) :]
        cut = chance.randrange(len(rest) + 1)
        left = [b"", rest, rest[:cut], bytes(len(rest)), rest[:cut] + bytes(len(rest) - cut)]
        return safe + chance.choice(left)


class Disk:
    """Watches a folder; all that is there at first is safe."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._held: dict[int, int] = {}  # an open inode's number is not given to another file
        self._names, self._data = self._look()
        self._safe_names = {f: dict(n) for f, n in self._names.items()}
        self._safe_data = dict(self._data)
        self.moments: list[Moment] = []

    def note(self, what: str) -> None:
        """Note what is safe and what is not, just before something happens."""
        with self._lock:
            self._names, self._data = self._look()
            moment = Moment(
                what,
                {f: dict(n) for f, n in self._safe_names.items()},
                dict(self._safe_data),
                self._names,
                self._data,
            )
            if not self.moments or _differ(self.moments[-1], moment):
                self.moments.append(moment)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of every sync."""
        with (
            patch.object(os, "fsync", self._noted(os.fsync)),
            patch.object(os, "fdatasync", self._noted(os.fdatasync)),
        ):
            yield
        self.note("the end")

    def close(self) -> None:
        """Let go of the files."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _noted(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            with self._lock:
                path = os.readlink(f"/proc/self/fd/{fd}")
                self.note(f"{sync.__name__} {path}")
                sync(fd)
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    folder = os.path.relpath(path, self._root).removeprefix(".")
                    self._safe_names[folder] = dict(self._names.get(folder, {}))
                elif status.st_ino in self._data:
                    self._safe_data[status.st_ino] = self._data[status.st_ino]
                self.note(f"after {sync.__name__} {path}")

        return call

    def _look(self) -> tuple[Names, Data]:
        names: Names = {}
        data: Data = {}
        for at, folders, files in os.walk(self._root):
            folder = os.path.relpath(at, self._root).removeprefix(".")
            names[folder] = dict.fromkeys(folders, _FOLDER)
            for name in files:
                with suppress(FileNotFoundError):
                    fd = os.open(os.path.join(at, name), os.O_RDONLY)
                    inode = os.fstat(fd).st_ino
                    names[folder][name] = inode
                    if self._held.setdefault(inode, fd) != fd:
                        os.close(fd)
        for inode, fd in self._held.items():
            data[inode] = os.pread(fd, os.fstat(fd).st_size, 0)
        return names, data


def _differ(before: Moment, after: Moment) -> bool:
    """Whether a power failure may leave something else now than it did before."""
    return (before.safe_names, before.safe_data, before.names, before.data) != (
        after.safe_names,
        after.safe_data,
        after.names,
        after.data,
    )


@dataclass(frozen=True)
class PoweredStorage(FaultyStorage):
    """Notes the state of the disk before every storage call."""

    disk: Any = None

    def tick(self, name: str) -> None:
        self.disk.note(name)
