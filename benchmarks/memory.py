"""How much memory does an applier take, whatever the size of a row?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Curve, Scale

_SIZES = {1_000: "1 KB", 100_000: "100 KB", 1_000_000: "1 MB", 10_000_000: "10 MB"}
_LARGEST = {50_000_000: "50 MB"}
_PLAIN = pa.field("blob", pa.large_binary())
# The kinds of column that hold large values, with the file format that has them.
_KINDS: dict[str, tuple[pa.Field, Any]] = {
    "plain": (_PLAIN, "2.2"),
    "blob v1": (_PLAIN.with_metadata({"lance-encoding:blob": "true"}), "2.1"),
    "blob v2": (lance.blob_field("blob"), "2.2"),
}


def run(scale: Scale) -> list[Answer]:
    """Peak resident memory of the largest applier, per kind of column and size of a row."""
    sizes = _SIZES if scale.quick else _SIZES | _LARGEST
    total_mb = 128 if scale.quick else 512
    reads = [_asked(kind, sizes, total_mb, returns=False) for kind in _KINDS]
    return [*reads, _asked("plain", sizes, total_mb, returns=True)]


def _asked(kind: str, sizes: dict[int, str], total_mb: int, *, returns: bool) -> Answer:
    points = {size: _peak_mb(kind, size, total_mb, returns=returns) for size in sizes}
    worst = max(points.values())
    does = "reads and returns" if returns else "reads"
    return Answer(
        f"peak memory of an applier that {does} values of 1 KB to {list(sizes.values())[-1]}, "
        f"{kind} columns",
        "<= 600 MB",
        f"{worst:.0f} MB",
        worst <= 600,
        ", ".join(f"{sizes[size]}: {peak:.0f} MB" for size, peak in points.items())
        + f"; {total_mb} MB of values each (64 MB at 1 KB); an idle applier is part of it",
        (Curve("blobs", f"{does} {kind}", {size / 1e6: peak for size, peak in points.items()}),),
    )


def _peak_mb(kind: str, size: int, total_mb: int, *, returns: bool) -> float:
    field, version = _KINDS[kind]
    rows = int((64 if size <= 1_000 else total_mb) * 1e6 / size)
    random = np.random.default_rng(7)

    def batches() -> Iterator[pa.RecordBatch]:  # this process need not hold it all
        step = max(1, 8_000_000 // size)
        for at in range(0, rows, step):
            values = [random.bytes(size) for _ in range(min(step, rows - at))]
            blobs = pa.array(values, pa.large_binary())
            yield pa.record_batch(
                [lance.blob_array(values) if kind == "blob v2" else blobs],
                schema=pa.schema([field]),
            )

    with tables.folder() as path:
        log = path / "peak.log"
        reader = pa.RecordBatchReader.from_batches(pa.schema([field]), batches())
        lance.write_dataset(
            reader,
            str(path / "t.lance"),
            data_storage_version=version,
            max_rows_per_file=-(-rows // 4),
            max_bytes_per_file=1 << 40,
        )
        tbl = tables.opened(path)
        tbl.add_columns({"c": udfs.peak(str(log), returns=returns)})
        tbl.backfill("c", progress=False)
        return max(int(s.split()[1]) for s in log.read_text().splitlines()) * 1024 / 1e6
