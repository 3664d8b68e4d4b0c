"""Read the rows of a task that may have to be computed, with only the UDF's input columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from geneva.rows import IntArray
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import JobSettings, Task

_OFFSET = 0xFFFFFFFF  # the low half of a row address is the physical row in its fragment


def read(
    storage: TableStorage, snapshot: Snapshot, task: Task, settings: JobSettings
) -> Iterator[tuple[IntArray, pa.RecordBatch, int]]:
    """Yield (physical rows, inputs, rows read so far) in ascending order.

    Live rows only; those that the filter does not select, or that the plan says are done, are
    left out.
    """
    need = None if task.need is None else task.need.mask()
    for rows, batch, stop in _read_live(storage, snapshot, task, settings):
        if need is None:
            yield rows, batch, stop
            continue
        wanted = need[rows]
        if wanted.all():
            yield rows, batch, stop
        elif wanted.any():
            yield rows[wanted], batch.filter(pa.array(wanted)), stop


def _read_live(
    storage: TableStorage, snapshot: Snapshot, task: Task, settings: JobSettings
) -> Iterator[tuple[IntArray, pa.RecordBatch, int]]:
    names = list(settings.target.inputs)
    columns = {f"i{k}": column_path(snapshot.schema, n) for k, n in enumerate(names)}
    if settings.where is not None and task.whole:
        # Lance reads the filter's columns first and the inputs of the selected rows only.
        for batch in storage.scan(
            snapshot,
            task.fragment_id,
            columns,
            batch_rows=settings.read_rows,
            live_only=True,
            where=settings.where,
            readahead=settings.readahead,
        ):
            if batch.num_rows:
                rows = _addresses(batch) & _OFFSET
                yield rows, _inputs(batch, names), int(rows[-1]) + 1
        return
    masked = settings.where is not None
    cursor = task.start
    for batch in storage.scan(
        snapshot,
        task.fragment_id,
        {**columns, "m": settings.where} if settings.where is not None else columns,
        batch_rows=settings.read_rows,
        start=task.start,
        stop=None if task.whole else task.stop,
        readahead=settings.readahead,
    ):
        rows = np.arange(cursor, cursor + batch.num_rows, dtype=np.int64)
        cursor += batch.num_rows
        selected = _selected(batch, deleted=bool(task.deleted), masked=masked)
        inputs = _inputs(batch, names)
        if selected is None:
            yield rows, inputs, cursor
        elif selected.any():
            yield rows[selected], inputs.filter(pa.array(selected)), cursor


def _selected(
    batch: pa.RecordBatch, *, deleted: bool, masked: bool
) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
    chosen = None
    if deleted:
        chosen = batch.column("_rowaddr").is_valid().to_numpy(zero_copy_only=False)
    if masked:
        true = batch.column("m").fill_null(False).to_numpy(zero_copy_only=False)
        chosen = true if chosen is None else chosen & true
    return None if chosen is not None and chosen.all() else chosen


def _addresses(batch: pa.RecordBatch) -> IntArray:
    addresses: IntArray = batch.column("_rowaddr").to_numpy(zero_copy_only=False)
    return addresses.astype(np.int64)


def _inputs(batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [batch.column(f"i{k}") for k in range(len(names))], names=names
    )


def column_path(schema: pa.Schema, path: str) -> str:
    """Return a column or nested path as Lance quotes it; a name may itself hold dots."""
    parts = [path] if path in schema.names else path.split(".")
    return ".".join(f"`{p}`" for p in parts)
