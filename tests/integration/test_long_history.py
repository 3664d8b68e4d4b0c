"""However many versions lie between two backfills, a plan needs no more of the stack."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from tests.support.backfills import run
from tests.support.tables import assert_table_invariants, make_table

CHAIN = 300
FRAMES = 200  # left to a caller that is deep in others' code itself
LONGER = 10_000


@geneva.udf
def twice(x: int) -> int:
    return 2 * x


@geneva.udf
def thrice(twice: int) -> int:
    return twice + twice // 2


@contextmanager
def few_frames() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def upsert(dataset: Any, rows: list[dict[str, Any]], **write: Any) -> None:
    schema = pa.schema([f for f in dataset.schema if f.name in rows[0]])
    merge = dataset.merge_insert("id").when_matched_update_all()
    merge = merge.write_mode(write["mode"]) if write else merge.when_not_matched_insert_all()
    merge.execute(pa.Table.from_pylist(rows, schema))


def append(dataset: Any, i: int) -> None:
    dataset.insert(pa.table({"id": [1000 + i], "x": [i], "views": [0]}))


def append_and_compact(dataset: Any, i: int) -> None:
    append(dataset, i)
    dataset.optimize.compact_files()


def update(dataset: Any, i: int) -> None:
    dataset.update({"views": str(i)}, where="id = 3")


def update_others(dataset: Any, i: int) -> None:
    dataset.update({"views": str(i)}, where=f"id = {i % 10}")


def update_and_compact(dataset: Any, i: int) -> None:
    update_others(dataset, i)
    dataset.optimize.compact_files(materialize_deletions_threshold=0.0)


def update_input(dataset: Any, i: int) -> None:
    dataset.update({"x": str(i)}, where="id = 3")


def correct(dataset: Any, i: int) -> None:
    dataset.update({"twice": str(-1 - i)}, where="id = 3")


def delete(dataset: Any, i: int) -> None:
    dataset.delete(f"id = {i}")


def merge(dataset: Any, i: int) -> None:
    upsert(dataset, [r | {"views": i} for r in dataset.to_table(filter="id < 3").to_pylist()])


def merge_corrections(dataset: Any, i: int) -> None:
    upsert(dataset, [r | {"twice": -i} for r in dataset.to_table(filter="id < 3").to_pylist()])


def merge_in_place(dataset: Any, i: int) -> None:
    upsert(dataset, [{"id": 3, "twice": -i}], mode="rewrite_columns")


def insert_by_merge(dataset: Any, i: int) -> None:
    upsert(dataset, [{"id": 1000 + i, "x": i, "views": 0}])


def toggle_column(dataset: Any, i: int) -> None:
    if "extra" in dataset.schema.names:
        dataset.drop_columns(["extra"])
    else:
        dataset.add_columns({"extra": "x + 1"})


def index(dataset: Any, i: int) -> None:
    dataset.create_scalar_index("views", "BTREE", replace=True)


def rename(dataset: Any, i: int) -> None:
    old = next(n for n in dataset.schema.names if n.startswith("views"))
    dataset.alter_columns({"path": old, "name": f"views{i}"})


def restore(dataset: Any, i: int) -> None:
    lance.dataset(dataset.uri, version=dataset.version - i % 2).restore()


def tag(dataset: Any, i: int) -> None:
    dataset.tags.create(f"t{i}", dataset.version)
    dataset.update_metadata({"i": str(i)})


KINDS: list[Callable[[Any, int], None]] = [
    append,
    append_and_compact,
    update,
    update_others,
    update_and_compact,
    update_input,
    correct,
    delete,
    merge,
    merge_corrections,
    merge_in_place,
    insert_by_merge,
    toggle_column,
    index,
    rename,
    restore,
    tag,
]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)


def long_history(path: Path, kind: Callable[[Any, int], None], count: int) -> geneva.Table:
    rows = max(10, count if kind is delete else 10)
    data = pa.table({"id": range(rows), "x": range(rows), "views": [0] * rows})
    table = make_table(path, data=data, fragments=2)
    table.add_columns({"twice": twice})
    table.add_columns({"thrice": thrice})
    run(table, ["twice", "thrice"], "local")
    for i in range(count):
        kind(lance.dataset(table.storage.uri), i)
    table.refresh()
    return table


def check(table: geneva.Table) -> None:
    # Each plan walks the whole chain; that of the second column walks the first one's as well.
    with few_frames():
        table.backfill("twice", executor="local", concurrency=1, progress=False)
        told = table.plan_backfill("thrice").rows_compute
    done = table.backfill("thrice", executor="local", concurrency=1, progress=False)
    assert done.rows_computed == told
    rows = lance.dataset(table.storage.uri).to_table().to_pylist()
    assert all(r["twice"] in (2 * r["x"], r["twice"] if r["twice"] <= 0 else None) for r in rows)
    assert all(r["thrice"] == r["twice"] + r["twice"] // 2 for r in rows)
    assert_table_invariants(table)


@by_kind
def test_chain_of_hundreds_of_versions_is_planned_in_few_frames(
    tmp_path: Path, kind: Callable[[Any, int], None]
) -> None:
    check(long_history(tmp_path, kind, CHAIN))


@pytest.mark.crash
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [update, merge_corrections, append_and_compact, rename])
def test_chain_of_ten_thousand_versions_is_planned_in_few_frames(
    tmp_path: Path, kind: Callable[[Any, int], None]
) -> None:
    check(long_history(tmp_path, kind, LONGER))
