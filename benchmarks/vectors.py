"""Vectors are the usual result: what does the engine add to writing them?"""

from __future__ import annotations

from uuid import uuid4

import lance
import pyarrow as pa
from lance import LanceOperation
from lance.file import LanceFileWriter
from lance.fragment import DataFile

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Rounds, Scale, Side, alternate, growth

_BATCH_ROWS = 1_024  # what the Lance writer takes fastest


def run(scale: Scale) -> list[Answer]:
    """384 floats a row from a UDF at zero cost, against a loop that only writes them."""
    judged = scale.rows(100_000)
    found = {n: _measured(n, scale) for n in (scale.rows(30_000), judged, scale.rows(300_000))}
    grows = growth({rows: r.median("geneva") for rows, r in found.items()})
    answers = []
    for rows, rounds in found.items():
        ratio = rounds.ratio("geneva", "write-only loop")
        answers.append(
            Answer(
                f"384-float vectors, {rows:,} rows, UDF at zero cost",
                "<= 1.5x the write-only loop" if rows == judged else "(no bar)",
                f"{ratio:.2f}x",
                ratio <= 1.5 if rows == judged else None,
                f"{rounds.text()}; {grows}",
            )
        )
    return answers


def _measured(rows: int, scale: Scale) -> Rounds:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        uri = tables.write(path, tables.numbers(rows), 20, "loop")
        block = udfs.vectors(65_536)
        return alternate(
            {
                "write-only loop": Side(lambda: _write(uri, block), before=lambda: _reset(uri)),
                "geneva": Side(
                    lambda: tbl.backfill("c", progress=False),
                    before=tables.fresh(tbl, udfs.Vectors()),
                ),
            },
            scale.rounds,
        )


def _write(uri: str, block: pa.Array) -> None:
    schema = pa.schema([pa.field("v", block.type)])
    dataset = lance.dataset(uri)
    dataset.add_columns(schema)
    field_ids = [f.id() for f in dataset.lance_schema.fields() if f.name() == "v"]
    updated = []
    for fragment in dataset.get_fragments():
        name = f"{uuid4().hex}.lance"
        writer = LanceFileWriter(f"{uri}/data/{name}", schema, version=dataset.data_storage_version)
        meta = fragment.metadata
        for at in range(0, meta.physical_rows, _BATCH_ROWS):
            part = block.slice(at, min(_BATCH_ROWS, meta.physical_rows - at))
            writer.write_batch(pa.record_batch([part], schema=schema))
        writer.close()
        meta.files = [*meta.files, DataFile.create(dataset, name)]
        updated.append(meta)
    operation = LanceOperation.Update(
        updated_fragments=updated, fields_modified=field_ids, update_mode="rewrite_columns"
    )
    lance.LanceDataset.commit(uri, lance.Transaction(dataset.version, operation, str(uuid4())))


def _reset(uri: str) -> None:
    dataset = lance.dataset(uri)
    if "v" in dataset.schema.names:
        dataset.drop_columns(["v"])
