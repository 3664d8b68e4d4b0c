"""Storage that fails or kills its process at the n-th call, counted over all processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from geneva.storage.lance import TableStorage


class FaultError(OSError):
    """The fault that a test asked for."""


@dataclass(frozen=True)
class FaultyStorage(TableStorage):
    """Acts at one call: ``raise`` an OSError, or ``kill`` this process.

    Calls are counted by bytes appended to a file, so drivers and workers share one count.
    """

    counter: str = ""
    fail_at: int = 0
    mode: str = "raise"

    def tick(self, name: str) -> None:
        fd = os.open(self.counter, os.O_CREAT | os.O_APPEND | os.O_RDWR)
        try:
            os.write(fd, b".")
            n = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if n == self.fail_at:
            if self.mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise FaultError(f"fault injected at storage call {n} ({name})")

    @property
    def calls(self) -> int:
        return os.path.getsize(self.counter) if os.path.exists(self.counter) else 0

    def open(self, version: int | None = None) -> Any:
        self.tick("open")
        return super().open(version)

    def scan(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        self.tick("scan")
        return super().scan(*args, **kwargs)

    def create_file(self, *args: Any, **kwargs: Any) -> Any:
        self.tick("create_file")
        return _Faulty(super().create_file(*args, **kwargs), self, ("write", "close"))

    def read_footer(self, *args: Any, **kwargs: Any) -> Any:
        self.tick("read_footer")
        return super().read_footer(*args, **kwargs)

    def sync_files(self, names: Sequence[str]) -> None:
        self.tick("sync_files")
        super().sync_files(names)

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        self.tick("before publish")
        done = super().publish(*args, **kwargs)
        self.tick("after publish")  # the commit landed, the reply is lost
        return done

    def sync_version(self, snapshot: Any) -> None:
        self.tick("sync_version")
        super().sync_version(snapshot)

    def delete_file(self, name: str) -> None:
        self.tick("delete_file")
        super().delete_file(name)

    @property
    def objects(self) -> Any:
        return _Faulty(
            super().objects, self, ("put", "get", "list", "delete", "create_log", "read_log")
        )


class _Faulty:
    def __init__(self, inner: Any, storage: FaultyStorage, names: tuple[str, ...]) -> None:
        self._inner, self._storage, self._names = inner, storage, names

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if name not in self._names:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._storage.tick(name)
            result = value(*args, **kwargs)
            if name == "create_log":
                return _Faulty(result, self._storage, ("append", "sync"))
            return result

        return call
