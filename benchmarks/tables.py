"""The tables that questions are asked of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

import geneva


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one question's tables, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="geneva-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def numbers(rows: int) -> pa.Table:
    """x: int64, counting."""
    return pa.table({"x": np.arange(rows, dtype=np.int64)})


def write(path: Path, data: pa.Table, fragments: int | Sequence[int], name: str = "t") -> str:
    """Write a table in so many fragments, or in fragments of these sizes; return its URI."""
    uri = str(path / f"{name}.lance")
    if isinstance(fragments, int):
        per_file = -(-data.num_rows // fragments)
        lance.write_dataset(data, uri, max_rows_per_file=per_file, max_rows_per_group=per_file)
        return uri
    at = 0
    for rows in fragments:
        lance.write_dataset(data.slice(at, rows), uri, mode="append" if at else "create")
        at += rows
    return uri


def table(
    path: Path, data: pa.Table, fragments: int | Sequence[int], name: str = "t"
) -> geneva.Table:
    """Write a table and open it."""
    write(path, data, fragments, name)
    return opened(path, name)


def append(path: Path, data: pa.Table, name: str = "t") -> None:
    """Add one fragment to a table, which need not exist."""
    uri = path / f"{name}.lance"
    lance.write_dataset(data, str(uri), mode="append" if uri.exists() else "create")


def opened(path: Path, name: str = "t") -> geneva.Table:
    """Open a table as users do."""
    return geneva.connect(str(path)).open_table(name)


def fresh(tbl: geneva.Table, udf: object, column: str = "c") -> Callable[[], None]:
    """Return what gives a round a column that nobody computed, of the same UDF."""

    def before() -> None:
        if column in tbl.schema.names:
            tbl.drop_columns([column])
        tbl.add_columns({column: udf})

    return before


def warm(tbl: geneva.Table, udf: object, column: str = "c") -> Callable[[], None]:
    """Like `fresh`, after a backfill that is not timed, so that appliers of this table are warm.

    How many is up to the engine: a job can be over before the second applier is up.
    """
    ready = fresh(tbl, udf, column)

    def before() -> None:
        ready()
        tbl.backfill(column, progress=False)
        ready()

    return before
