"""How much memory does an applier take when a row is a megabyte?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale


def run(scale: Scale) -> list[Answer]:
    """Peak resident memory of the largest applier, at three blob sizes and the same total."""
    total = 128 if scale.quick else 512
    points = {mb: _peak_mb(mb, total) for mb in (0.1, 1, 8)}
    at_one = points[1]
    return [
        Answer(
            f"peak memory of an applier, 1 MB blobs, {total} of them",
            "<= 600 MB",
            f"{at_one:.0f} MB",
            at_one <= 600,
            ", ".join(f"blobs of {mb:g} MB: {peak:.0f} MB" for mb, peak in points.items())
            + "; an idle applier is part of it",
            tuple(points.items()),
        )
    ]


def _peak_mb(blob_mb: float, total_mb: int) -> float:
    rows, size = int(total_mb / blob_mb), int(blob_mb * 1e6)
    noise = np.random.default_rng(7).bytes(size)
    with tables.folder() as path:
        log = path / "peak.log"
        for _ in range(4):  # in pieces: this process need not hold it all
            part = pa.table({"blob": pa.array([noise] * (rows // 4), pa.large_binary())})
            tables.append(path, part)
        tbl = tables.opened(path)
        tbl.add_columns({"c": udfs.peak(str(log))})
        tbl.backfill("c", progress=False)
        return max(int(s.split()[1]) for s in log.read_text().splitlines()) * 1024 / 1e6
