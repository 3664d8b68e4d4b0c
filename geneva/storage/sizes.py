"""The size of a row, from a few that are sampled."""

from __future__ import annotations

from collections.abc import Sequence

from geneva.storage.lance import Snapshot, TableStorage

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
