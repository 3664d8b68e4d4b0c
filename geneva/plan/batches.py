"""Rows per read batch, from the bytes of a few sampled rows."""

from __future__ import annotations

from collections.abc import Sequence

from geneva.storage.lance import Snapshot, TableStorage

_READ_BYTES = 16 << 20
_MAX_ROWS = 65_536
_WIDE_ROW_BYTES = 64 << 10
_PROBE_ROWS = 64
_PROBED_FRAGMENTS = 3


def bytes_per_row(
    storage: TableStorage, snapshot: Snapshot, columns: Sequence[str], fragments: Sequence[int]
) -> float:
    """Return the mean size of a row's inputs in memory, from samples of a few fragments.

    One row first, more only where rows are small: a sample must not itself take gigabytes.
    """
    step = max(1, len(fragments) // _PROBED_FRAGMENTS)
    size, rows = 0, 0
    for fragment in fragments[::step][:_PROBED_FRAGMENTS]:
        probe = 1
        while True:
            got = 0
            last = min(probe, snapshot.fragments[fragment].rows)
            for batch in storage.scan(
                snapshot, fragment, list(columns), batch_rows=probe, stop=last
            ):
                got += batch.nbytes
                rows += batch.num_rows
            size += got
            if probe >= _PROBE_ROWS or got / probe > _WIDE_ROW_BYTES:
                break
            probe = _PROBE_ROWS
    return size / max(rows, 1)


def read_rows(row_bytes: float) -> tuple[int, int | None]:
    """Return (rows per read batch, batches read ahead or ``None`` for Lance's default)."""
    rows = int(min(_MAX_ROWS, max(1, _READ_BYTES / max(row_bytes, 1.0))))
    return rows, (1 if row_bytes > _WIDE_ROW_BYTES else None)
