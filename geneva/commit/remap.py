"""Carry results over to the fragments that a compaction made of the ones they were computed for.

A compaction lays the live rows of old fragments out, in order, as new fragments. Where each step
since the plan was one, and the inputs stayed what they were, a result moves with its row: it is
written as a checkpoint of the new fragment's task, which replays it and computes only the rest.
What cannot be proven is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import numpy as np
import pyarrow as pa

from geneva.checkpoint.journal import Journal
from geneva.checkpoint.key import log_path
from geneva.column.marks import group_subtree, supplier
from geneva.column.provenance import History
from geneva.rows import RowStatus
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.types import ColumnFile, Target, Task, stored_type

_ROWS = 8192  # read at once
_FIRST_ROWS = 64  # the same, before it is known how wide they are
_BYTES = 16 << 20  # the same, where they are


def remap(
    storage: TableStorage,
    history: History,
    target: Target,
    lost: Sequence[ColumnFile],
    tasks: Sequence[Task],
) -> dict[str, tuple[str, ...]]:
    """Write the results of vanished fragments as checkpoints of the tasks that took their place.

    Returns
    -------
    dict
        Work key of a task -> the log that was written for it.
    """
    files = {f.fragment_id: f for f in lost}
    snapshot = history.snapshot
    by_field = {f.id: f for f in snapshot.fields.values()}
    inputs = [by_field[i].subtree for f in lost for i, _ in f.sources if i in by_field]
    subtree = group_subtree(snapshot, target.columns[0])

    def computed_for(then: Snapshot, fragment: FragmentInfo) -> bool:
        """Whether a fragment, as it was then, is one that a lost file was computed for."""
        file = files.get(fragment.id)
        return (
            file is not None
            and fragment.rows == file.rows
            and supplier(fragment, subtree) == (file.target_file or "")
            and all(
                i in by_field and supplier(fragment, by_field[i].subtree) == path
                for i, path in file.sources
            )
        )

    written: dict[str, tuple[str, ...]] = {}
    for task in tasks:
        fragment = snapshot.fragments[task.fragment_id]
        old_ids, old_rows = history.origins(
            snapshot, fragment, target.columns[0], list(dict.fromkeys(inputs)), computed_for
        )
        journal = Journal(
            storage.objects,
            log_path(target.incarnation, task.key, uuid4().hex),
            target.data_types,
        )
        read = [i for i, _ in task.sources]
        for file in lost:
            if [i for i, _ in file.sources] != read:
                continue  # columns exchanged their names: it is of other inputs
            at = np.flatnonzero(old_ids == file.fragment_id)
            _copy(storage, target, file, old_rows[at], at, journal)
        if journal.created:
            journal.sync()  # the files that it was copied from are removed next
            journal.close()
            written[task.key] = (journal.path,)
    return written


def _copy(
    storage: TableStorage,
    target: Target,
    file: ColumnFile,
    old_rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    new_rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    journal: Journal,
) -> None:
    """Checkpoint those values of a lost file that its own job computed."""
    row_map = file.row_map
    newest = max(c.generation for c in row_map.classes)
    computed = row_map.mask(lambda c: c.status is RowStatus.COMPUTED and c.generation == newest)
    fresh = computed[old_rows]
    old_rows, new_rows = old_rows[fresh], new_rows[fresh]
    start, step = 0, _FIRST_ROWS
    while start < len(old_rows):
        part = slice(start, start + step)
        values = storage.read_rows(file.name, old_rows[part].tolist())
        start += values.num_rows
        step = max(1, min(_ROWS, _BYTES * values.num_rows // max(values.nbytes, 1)))
        arrays = [
            _whole(values[c]).cast(stored_type(t))
            if pa.types.is_dictionary(t)
            else _whole(values[c])
            for c, t in zip(target.columns, target.data_types, strict=True)
        ]
        journal.append(new_rows[part], arrays, None)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
