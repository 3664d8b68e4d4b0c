"""Rows that a backfill leaves as they are are counted by every backfill, not by the first alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pytest

import geneva
from tests.support.backfills import run
from tests.support.tables import make_table

WHERE = "x % 3 < 2"


@geneva.udf
def twice(x: int) -> int:
    if x == 4:
        raise ValueError("four")
    return 2 * x


def lose_history(table: geneva.Table) -> None:
    dataset = lance.dataset(table.storage.uri)
    dataset.update({"s": "'q'"}, where="x < 10")
    dataset.optimize.compact_files()
    lance.dataset(table.storage.uri).cleanup_old_versions(older_than=dt.timedelta(0))
    table.refresh()


def correct(table: geneva.Table) -> None:
    lance.dataset(table.storage.uri).update({"y": "-1"}, where="x % 3 = 2")
    table.refresh()


def nothing(table: geneva.Table) -> None:
    pass


@pytest.mark.parametrize(
    ("happens", "kept"),
    [(lose_history, "rows_unverified"), (correct, "rows_foreign"), (nothing, "rows_failed")],
)
def test_kept_rows_are_counted_by_each_backfill_with_a_filter(
    tmp_path: Path, happens: Callable[[geneva.Table], None], kept: str
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": twice})
    run(table, "y", "local", where=WHERE, on_error="null")
    happens(table)
    planned, told = [], []
    for _ in range(3):
        planned.append(getattr(table.plan_backfill("y", where=WHERE, on_error="null"), kept, 0))
        result = run(table, "y", "local", where=WHERE, on_error="null")
        told.append(getattr(result, kept if kept != "rows_failed" else "rows_failed_before"))
    assert planned[0] > 0 or kept == "rows_failed"
    assert planned == planned[:1] * 3
    assert told[0] > 0
    assert told == told[:1] * 3


def test_input_that_is_upserted_after_a_cleanup_makes_its_row_stale(tmp_path: Path) -> None:
    data = pa.table({"id": range(24), "x": range(100, 124)})
    table = make_table(tmp_path, data=data, fragments=3)
    table.add_columns({"y": geneva.udf(lambda x: 2 * x, data_type=pa.int64())})
    run(table, "y", "local")
    uri = table.storage.uri

    def upsert(ids: list[int], xs: list[int]) -> None:
        merge = lance.dataset(uri).merge_insert("id").when_matched_update_all()
        merge.write_mode("rewrite_columns").execute(pa.table({"id": ids, "x": xs}))

    upsert([3, 14], [7, 8])
    run(table, "y", "local")
    lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=8)
    lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))
    upsert([3, 14], [9, 8])  # of row 14, what it has
    table.refresh()
    assert run(table, "y", "local").rows_computed == 1
    rows = lance.dataset(uri).to_table().to_pylist()
    assert all(r["y"] == 2 * r["x"] for r in rows)
