"""The size of a row, from a few that are sampled."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from geneva.storage.lance import Snapshot, TableStorage

_WIDE_ROW_BYTES = 64 << 10
_PROBE_ROWS = 64
_PROBED_FRAGMENTS = 3
_PLACE_BYTES = 16  # row id and address, which come with every row that is read


def bytes_per_row(
    storage: TableStorage, snapshot: Snapshot, columns: Sequence[str], fragments: Sequence[int]
) -> float:
    """Return the mean size of a row's inputs in memory, from samples of a few fragments.

    Where the types tell, nothing is read. Otherwise one row first, more only where rows are
    small: a sample must not itself take gigabytes.
    """
    widths = [_fixed_bits(snapshot.schema.field(c).type) for c in columns]
    if None not in widths:
        return _PLACE_BYTES + sum(w for w in widths if w is not None) / 8
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


def _fixed_bits(data_type: pa.DataType) -> int | None:
    """Return the bits that a value of a type takes, nulls aside, if all take the same."""
    if pa.types.is_fixed_size_list(data_type):
        each = _fixed_bits(data_type.value_type)
        return None if each is None else each * data_type.list_size
    if pa.types.is_struct(data_type):
        fields = [_fixed_bits(data_type.field(i).type) for i in range(data_type.num_fields)]
        return None if None in fields else sum(f for f in fields if f is not None)
    fixed = pa.types.is_primitive(data_type) or pa.types.is_decimal(data_type)
    return data_type.bit_width if fixed or pa.types.is_fixed_size_binary(data_type) else None
