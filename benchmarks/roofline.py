"""The limit: scan, x*2, one column file per fragment, one commit; one thread, nothing else.

Every other report says how far from this it is. No checkpoint, no fsync, no validation, no
provenance: the distance is what those cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceOperation
from lance.file import LanceFileWriter
from lance.fragment import DataFile

from benchmarks import tables
from benchmarks.measure import Answer, Curve, Scale, Side, alternate, growth

_BATCH_ROWS = 65_536


def loop(uri: str, where: str | None = None) -> None:
    """Fill a new int64 column ``r`` with x*2, where a filter is true."""
    dataset = lance.dataset(uri)
    dataset.add_columns([pa.field("r", pa.int64())])
    field_id = next(f.id() for f in dataset.lance_schema.fields() if f.name() == "r")
    schema = pa.schema([pa.field("r", pa.int64())])
    updated = []
    for fragment in dataset.get_fragments():
        name = f"{uuid4().hex}.lance"
        writer = LanceFileWriter(f"{uri}/data/{name}", schema, version=dataset.data_storage_version)
        for values in _values(dataset, fragment, where):
            writer.write_batch(pa.record_batch([values], schema=schema))
        writer.close()
        meta = fragment.metadata
        meta.files = [*meta.files, DataFile.create(dataset, name)]
        updated.append(meta)
    operation = LanceOperation.Update(
        updated_fragments=updated, fields_modified=[field_id], update_mode="rewrite_columns"
    )
    lance.LanceDataset.commit(uri, lance.Transaction(dataset.version, operation, str(uuid4())))


def _values(dataset: Any, fragment: Any, where: str | None) -> Iterator[pa.Array]:
    """Yield the new values of a fragment in physical order."""
    options = {"columns": ["x"], "fragments": [fragment], "batch_size": _BATCH_ROWS}
    if where is None:
        for batch in dataset.scanner(**options).to_batches():
            yield pc.multiply(batch.column(0), 2)
        return
    found = np.zeros(fragment.physical_rows, np.int64)
    null = np.ones(len(found), np.bool_)
    for batch in dataset.scanner(**options, filter=where, with_row_address=True).to_batches():
        rows = np.asarray(batch.column("_rowaddr"), np.uint64) & np.uint64(0xFFFFFFFF)
        found[rows] = np.from_dlpack(pc.multiply(batch.column("x"), 2))
        null[rows] = False
    yield pa.array(found, mask=null)


def reset(uri: str) -> None:
    """Take the column away again."""
    dataset = lance.dataset(uri)
    if "r" in dataset.schema.names:
        dataset.drop_columns(["r"])


def side(uri: str, where: str | None = None) -> Side:
    """The loop as one side of a comparison."""
    return Side(lambda: loop(uri, where), before=lambda: reset(uri))


def run(scale: Scale) -> list[Answer]:
    """Say how fast this machine is today."""
    sizes = [scale.rows(n) for n in (1_000_000, 3_000_000, 10_000_000)]
    points: dict[float, float] = {}
    for rows in sizes:
        with tables.folder() as path:
            uri = tables.write(path, tables.numbers(rows), 20)
            rounds = alternate({"R": side(uri)}, scale.rounds)
            points[rows] = rounds.median("R")
    figure = ", ".join(f"{rows:,} rows {s:.3f} s" for rows, s in points.items())
    return [
        Answer(
            "roofline R: scan, x*2, write, commit in one thread",
            "(the limit)",
            figure,
            None,
            growth(points),
            (Curve("rows", "roofline R", {n: n / s for n, s in points.items()}),),
        )
    ]
