"""Small real Lance tables, and what must hold of any table after any backfill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileSession

import geneva
from geneva.column.binding import bindings_of
from geneva.column.file import ColumnFileName, read_row_map
from tests.support.s3 import Bucket

_bucket: Bucket | None = None


def use(bucket: Bucket | None) -> None:
    """Say where tables lie from now on: in a bucket, or on the disk."""
    global _bucket
    _bucket = bucket


def database(path: Path | str) -> str:
    """Return the database of a folder: the folder itself, or on S3 a prefix of that name."""
    return str(path) if _bucket is None else f"{_bucket.uri}{path}"


def database_of(table: geneva.Table | str) -> str:
    """Return the database that a table, or the table at a URI, lies in."""
    uri = table if isinstance(table, str) else table.storage.uri
    return uri.rsplit("/", 1)[0]


def make_table(
    path: Path,
    *,
    rows: int = 100,
    fragments: int = 4,
    stable: bool = False,
    data: pa.Table | None = None,
    ray: dict[str, Any] | None = None,
    name: str = "t",
) -> geneva.Table:
    """Create a table with columns x (0..rows), s (text) and so many fragments."""
    if data is None:
        data = pa.table(
            {
                "x": pa.array(range(rows), pa.int64()),
                "s": [f"{'abc'[i % 3]}{i}" for i in range(rows)],
            }
        )
    per_file = -(-data.num_rows // fragments)
    lance.write_dataset(
        data,
        f"{database(path)}/{name}.lance",
        max_rows_per_file=per_file,
        max_rows_per_group=per_file,
        enable_stable_row_ids=stable,
        data_storage_version="stable",
    )
    options = None if _bucket is None else _bucket.options()
    db = geneva.connect(database(path), storage_options=options, ray=ray or {})
    return db.open_table(name)


def flushing(table: geneva.Table) -> geneva.Table:
    """Return the same table; on an object store too, each batch is written down when it is done."""
    return geneva.Table(table, storage=replace(table.storage, flush_s=0.0))


def files_of(table: geneva.Table) -> list[str]:
    """Return the paths of all files below a table."""
    return list(LanceFileSession(table.storage.uri).list())


def column(table: geneva.Table, name: str) -> list[Any]:
    """Return a column's values as every reader sees them now."""
    return lance.dataset(table.storage.uri).to_table(columns=[name])[name].to_pylist()


def pairs(table: geneva.Table, key: str, value: str) -> dict[Any, Any]:
    """Return key -> value of the latest version."""
    t = lance.dataset(table.storage.uri).to_table(columns=[key, value])
    return dict(zip(t[key].to_pylist(), t[value].to_pylist(), strict=True))


def assert_table_invariants(
    table: geneva.Table, expected: dict[str, Callable[[dict[str, Any]], Any]] | None = None
) -> None:
    """Check what must hold whatever happened.

    The table reads whole, Lance finds it valid, every column file has its fragment's rows and a
    row map of that length, and computed values (``expected``: column -> function of a row) are
    right wherever they are not null.
    """
    dataset = lance.dataset(table.storage.uri)
    dataset.validate()
    content = dataset.to_table()
    assert content.num_rows == dataset.count_rows()
    snapshot = table.storage.open()
    for fragment in snapshot.fragments.values():
        for file in fragment.files:
            if ColumnFileName.parse(file.path) is not None:
                footer = table.storage.read_footer(file.path)
                assert footer.rows == fragment.rows
                row_map = read_row_map(table.storage, file.path)
                assert row_map.rows == fragment.rows
    for name, function in (expected or {}).items():
        assert name in bindings_of(snapshot.schema)
        for row in content.to_pylist():
            if row[name] is not None:
                assert row[name] == function(row), (name, row)
