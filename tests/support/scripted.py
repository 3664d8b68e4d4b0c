"""A table of very many fragments, and an executor that computes nothing: the driver alone."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata

import geneva
from geneva.column.file import ColumnFileBuilder
from geneva.model.types import (
    ColumnFile,
    Counts,
    JobSettings,
    Printed,
    Task,
    TaskDone,
    TaskEvent,
    Workers,
)
from geneva.storage.lance import TableStorage
from geneva.udf import UDF

_LINKS = 10_000  # names of one file; file systems allow 32,000 or more
_SLOTS = 16


def many_fragments(path: Path, fragments: int) -> geneva.Table:
    """Return a table of one-row fragments that all refer to one data file, with a column ``c``."""
    uri = str(path / "t.lance")
    lance.write_dataset(pa.table({"x": pa.array([1], pa.int64())}), uri)
    files = lance.dataset(uri).get_fragments()[0].metadata.files
    more = [
        FragmentMetadata(id=0, files=files, physical_rows=1, deletion_file=None)
        for _ in range(fragments - 1)
    ]
    lance.LanceDataset.commit(uri, lance.LanceOperation.Append(more), read_version=1)
    table = geneva.connect(str(path)).open_table("t")
    table.add_columns({"c": geneva.udf(_one, version="1")})
    return table


def _one(x: int) -> int:
    return 1


class ScriptedExecutor:
    """Ends every task at once, with another name of a column file that it wrote before."""

    def start(
        self, storage: TableStorage, udfs: object, settings: JobSettings, appliers: int
    ) -> ScriptedAppliers:
        """Keep what column files are written with."""
        return ScriptedAppliers(storage, settings)

    def capacity(self, udf: UDF, appliers: int) -> int:
        """One applier: nothing is split."""
        return 1


class ScriptedAppliers:
    """Those of one round."""

    def __init__(self, storage: TableStorage, settings: JobSettings) -> None:
        self._storage, self._settings = storage, settings
        self._events: deque[TaskEvent] = deque()
        self._file: ColumnFile | None = None
        self._links = 0

    def free_slots(self, waiting: int) -> int:
        """Take a few tasks at a time, as appliers do."""
        return _SLOTS - len(self._events)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Carry the tasks out."""
        for task in tasks:
            counts = Counts(computed=task.rows)
            file = self._linked(task)
            self._events.append(
                TaskDone(task.key, task.fragment_id, 0, task.rows, file, counts, window=task.window)
            )

    def wait(self, timeout_s: float) -> list[TaskEvent]:
        """Return the tasks that were submitted."""
        found = list(self._events)
        self._events.clear()
        return found

    def workers(self) -> Workers:
        """One, and ready."""
        return Workers(1, 1, 0)

    def cancel(self) -> None:
        """Nothing runs."""

    def close(self, *, kill: bool) -> list[Printed]:
        """Nothing is held."""
        return []

    def _linked(self, task: Task) -> ColumnFile:
        if self._file is None or self._links == _LINKS:
            self._file, self._links = self._written(task), 0
        folder = self._storage.path / "data"
        head, _, suffix = self._file.name.rsplit(".", 2)
        name = f"{head}.{uuid4().hex}.{suffix}"
        os.link(folder / self._file.name, folder / name)
        self._links += 1
        row_map, sources = self._file.row_map_text, task.sources
        return ColumnFile(task.fragment_id, task.rows, name, row_map, sources, task.target_file)

    def _written(self, task: Task) -> ColumnFile:
        snapshot = self._storage.open(task.version)
        builder = ColumnFileBuilder(self._storage, snapshot, self._settings.target, task)
        rows = np.arange(task.rows)
        values = pa.array(np.ones(task.rows, np.int64))
        builder.add(rows, [values], np.zeros(0, np.int64))
        return builder.finish()
