"""Take over the column file of an attempt that finished it but died before the commit."""

from __future__ import annotations

import pyarrow as pa

from geneva.column.checkpoint.journal import Replay
from geneva.column.file import WORK_KEY, check_file, row_map_text
from geneva.errors import CorruptFileError
from geneva.model.types import ColumnFile, Counts, Target, Task, TaskDone
from geneva.storage.lance import Snapshot, TableStorage


def adopt(
    storage: TableStorage, snapshot: Snapshot, target: Target, task: Task, earlier: Replay
) -> TaskDone | None:
    """Return the outcome of such an attempt, if there is one and its file still fits."""
    fact = earlier.finish
    if fact is None or not task.assemble or fact["failed"]:
        return None  # which rows failed, and why, only the records tell; or they are tried again
    if (fact["target_file"], fact["selection"]) != (task.target_file, task.selection):
        return None  # it carries other values along, or leaves rows out that are wanted now
    schema = pa.schema([snapshot.schema.field(c) for c in target.columns])
    try:
        check_file(storage, fact["file"], task.rows, schema)
        footer = storage.read_footer(fact["file"])
        row_map = row_map_text(footer, fact["file"])
        if footer.metadata.get(WORK_KEY) != task.key:
            return None
    except (FileNotFoundError, CorruptFileError):
        return None  # cleaned up or torn by a power failure: the records are still there
    counts = Counts(
        computed=fact["computed"],
        replayed=fact["computed"],
        failed=fact["failed"],
        overwritten=fact["overwritten"],
    )
    file = ColumnFile(
        task.fragment_id,
        task.rows,
        fact["file"],
        row_map,
        task.sources,
        task.target_file,
        task.resume,
        task.deletion,
        task.live,
    )
    return TaskDone(
        task.key, task.fragment_id, task.start, task.stop, file, counts, (), task.resume
    )
