"""Backfills that are made to die, in a process of their own, and what must hold afterwards."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

import geneva
from geneva.column.file import ColumnFileName
from geneva.engine.clean import clean
from geneva.storage.lance import TableStorage
from tests.support.backfills import until
from tests.support.calls import CallLog
from tests.support.faults import FaultyStorage
from tests.support.tables import assert_table_invariants, database, make_table, pairs


@dataclass(frozen=True)
class Scene:
    """A table with a computed column y = 2 * x, never backfilled, that can be had afresh.

    Attributes
    ----------
    in_flight
        Rows that may be in flight when a process dies: those may be computed again.
    db
        The database of the table; by default ``path``, on whichever store the test is run.
    """

    path: Path
    rows: int
    fragments: int
    in_flight: int
    arguments: dict[str, Any]
    ray: dict[str, Any] = field(default_factory=dict)
    db: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "db", self.db or database(self.path))

    @property
    def calls(self) -> CallLog:
        return CallLog(self.path / "calls.log")

    @property
    def pids(self) -> CallLog:
        """The processes that called the UDF."""
        return CallLog(self.path / "pids.log")

    @property
    def counter(self) -> Path:
        return self.path / "storage-calls"

    @property
    def uri(self) -> str:
        return f"{self.db}/t.lance"

    @property
    def storage(self) -> TableStorage:
        """The table's storage; on an object store each batch is flushed, as on a disk."""
        return TableStorage(self.uri, flush_s=0.0)

    def build(self, pause_s: float = 0.0, together: int = 1) -> Scene:
        """Make the table; its UDF takes whole batches and ``pause_s`` for each.

        No call ends before so many processes (``together``) have called it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        table = make_table(self.path, rows=self.rows, fragments=self.fragments)
        calls, pids = self.calls, self.pids

        @geneva.udf(data_type=pa.int64())
        def double(x: np.ndarray) -> np.ndarray:
            calls(*x.tolist())
            pids(os.getpid())
            until(lambda: len(pids.counts) >= together)
            time.sleep(pause_s)
            return 2 * x

        table.add_columns({"y": double})
        if table.storage.local:
            shutil.copytree(self.uri, self.path / "fresh")
        return self

    def reset(self) -> None:
        """Bring a table on a disk back to where nothing was computed."""
        shutil.rmtree(self.uri)
        shutil.copytree(self.path / "fresh", self.uri)
        self.calls.clear()
        self.pids.clear()
        self.counter.unlink(missing_ok=True)

    def table(self, storage: TableStorage | None = None) -> geneva.Table:
        opened = geneva.connect(self.db, ray=self.ray).open_table("t")
        return geneva.Table(opened, storage=storage or self.storage, ray=self.ray)

    def backfill(self, fail_at: int | None = None, mode: str = "raise") -> geneva.BackfillResult:
        storage = None
        if fail_at is not None:
            storage = FaultyStorage(self.uri, counter=str(self.counter), fail_at=fail_at, mode=mode)
        return self.table(storage).backfill("y", progress=False, **self.arguments)

    def storage_calls(self) -> int:
        """Count the storage calls of an undisturbed run."""
        self.backfill(fail_at=0)
        made = self.counter.stat().st_size
        assert self.storage.objects.list("work") == [], "checkpoints are left behind"
        self.reset()
        return made

    def run_in_child(self, fail_at: int | None = None, mode: str = "kill") -> int:
        """Backfill in another process to its end; return its exit code."""
        child = self.start_child(fail_at, mode)
        child.join(60)
        if child.is_alive():  # a fork can deadlock in Lance's runtime; then it is killed as well
            kill(child)
        assert child.exitcode is not None
        return int(child.exitcode)

    def start_child(self, fail_at: int | None = None, mode: str = "kill") -> Any:
        """Start a backfill in another process."""
        child = processes().Process(target=_backfill, args=(self, fail_at, mode))
        child.start()
        return child

    def wait_for_calls(self, count: int, timeout_s: float = 120.0) -> None:
        """Wait until the UDF was called with so many rows in all."""
        deadline = time.monotonic() + timeout_s
        while len(self.calls) < count:
            assert time.monotonic() < deadline, f"{len(self.calls)} rows of {count} were computed"
            time.sleep(0.01)

    def wait_until_quiet(self) -> None:
        """Wait until orphaned workers have noticed that their driver is gone."""
        before = -1
        while before != len(self.calls):
            before = len(self.calls)
            time.sleep(1.5)

    def check_finished(self, deaths: int = 1) -> int:
        """Run the same command to its end and check all that must hold after ``deaths`` deaths.

        Returns
        -------
        int
            Rows that were computed a second time.
        """
        self.backfill()
        assert pairs(self.table(), "x", "y") == {i: 2 * i for i in range(self.rows)}
        made = self.calls.counts
        assert set(made) == {str(i) for i in range(self.rows)}
        again = made.total() - self.rows
        assert again <= deaths * self.in_flight, {k: n for k, n in made.items() if n > 1}
        assert self.backfill().rows_computed == 0
        assert self.calls.counts == made
        self.check_commits()
        assert_table_invariants(self.table(), {"y": lambda row: 2 * row["x"]})
        return again

    def check_commits(self) -> None:
        """Check that every fragment got one column file of ours, in one version.

        Where windows are committed as they end, it got one for each that it has rows of.
        """
        dataset = lance.dataset(self.uri)
        files: dict[int, set[str]] = {}
        for version in dataset.versions():
            for fragment in lance.dataset(self.uri, version=version["version"]).get_fragments():
                for file in fragment.data_files():
                    if ColumnFileName.parse(file.path) is not None:
                        files.setdefault(fragment.fragment_id, set()).add(file.path)
        windows = self.arguments.get("windows")
        if windows is None or windows.commit == "fragment":
            assert {f: len(names) for f, names in files.items()} == dict.fromkeys(
                range(self.fragments), 1
            )
        assert sorted(files) == list(range(self.fragments))
        # A death between a commit and the removal of its checkpoints leaves them to clean().
        clean(self.storage, 0)
        assert self.storage.objects.list("work") == []
        ours = {n for n in self.storage.list_files() if ColumnFileName.parse(n) is not None}
        assert ours == {name for names in files.values() for name in names}


def _backfill(scene: Scene, fail_at: int | None, mode: str) -> None:
    os.environ["LANCE_LOG"] = "error"
    scene.backfill(fail_at, mode)
    if scene.arguments.get("executor") == "ray":
        import ray

        ray.shutdown()


def processes() -> Any:
    """Children fork from a clean server that has imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.crashing", "lancedb", "pandas", "datafusion"])
    return context


def kill(child: Any) -> None:
    """Kill a child as the kernel would, and wait for it."""
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()


def kill_pids(pids: set[int]) -> None:
    """Kill processes that a test's UDF told of, those that are gone aside."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
