"""Rows that one update moves to several new fragments: each is paired with what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import geneva
from geneva.column.history import update as update_module
from geneva.column.history.moved import Key, between, keys
from tests.support.backfills import run, times
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, make_table, pairs

ROWS = 11


def update(
    uri: str,
    name: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    backwards: bool = False,
    merge: bool = False,
) -> None:
    """Set a column of all rows as Lance's own update does, in new fragments of four rows.

    With ``merge``, as its merge does: whole rows are written, in any order.
    """
    dataset = lance.dataset(uri)
    rows = [change(r) for r in dataset.to_table().to_pylist()]
    if backwards:
        rows.reverse()
    data = pa.Table.from_pylist(rows, dataset.schema)
    made = lance.fragment.write_fragments(data, dataset, max_rows_per_file=4, mode="append")
    fields = dataset.lance_schema.fields()
    written = [f.id() for f in fields if merge or f.name() == name]
    operation = lance.LanceOperation.Update(
        removed_fragment_ids=[f.fragment_id for f in dataset.get_fragments()],
        new_fragments=made,
        fields_for_preserving_frag_bitmap=written,
        update_mode="rewrite_rows",
    )
    assert len(made) == -(-len(rows) // 4)
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


@pytest.fixture
def table(tmp_path: Path, calls: CallLog) -> geneva.Table:
    data = pa.table({"x": range(ROWS), "views": [0] * ROWS})
    made = make_table(tmp_path, data=data, fragments=2)
    made.add_columns({"y": times(calls, 10)})
    run(made, "y", "local")
    calls.clear()
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Get the rows whose values were read, by fragment read."""
    found: list[int] = []

    def counted(*arguments: Any) -> Iterator[list[Key]]:
        for rows in keys(*arguments):
            found.append(len(rows))
            yield rows

    monkeypatch.setattr(update_module, "keys", counted)
    return found


def test_a_counter_recomputes_nothing_and_each_row_is_read_twice(
    table: geneva.Table, calls: CallLog, read: list[int]
) -> None:
    update(table.storage.uri, "views", lambda r: r | {"views": r["views"] + 1})
    assert table.backfill("y", executor="local", progress=False).rows_computed == 0
    assert len(calls) == 0
    assert sum(read) == 2 * ROWS  # what it was and what it is, not all for each new fragment
    assert pairs(table, "x", "y") == {x: 10 * x for x in range(ROWS)}
    assert_table_invariants(table)


@pytest.mark.parametrize("changed", [0, 3, 4, 6, 7, 10])
def test_the_one_row_whose_input_changed_is_computed_again(
    table: geneva.Table, calls: CallLog, changed: int
) -> None:
    update(table.storage.uri, "x", lambda r: r | {"x": 100 if r["x"] == changed else r["x"]})
    assert run(table, "y", "local").rows_computed == 1
    assert pairs(table, "x", "y") == {
        (100 if x == changed else x): 10 * (100 if x == changed else x) for x in range(ROWS)
    }
    assert_table_invariants(table)


def test_rows_in_another_order_are_found_by_their_values(
    table: geneva.Table, calls: CallLog, read: list[int]
) -> None:
    update(table.storage.uri, "views", lambda r: r | {"views": r["views"] + 1}, backwards=True)
    assert table.backfill("y", executor="local", progress=False).rows_computed == 0
    assert 2 * ROWS < sum(read) <= 3 * ROWS  # whether it keeps the order, and then all, once
    assert pairs(table, "x", "y") == {x: 10 * x for x in range(ROWS)}
    assert_table_invariants(table)


@pytest.mark.parametrize("rows", [40, 160])
@pytest.mark.parametrize("backwards", [False, True])
def test_rows_that_a_merge_removed_are_read_for_each_new_fragment(
    tmp_path: Path, calls: CallLog, read: list[int], rows: int, backwards: bool
) -> None:
    data = pa.table({"x": range(rows), "views": [0] * rows})
    table = make_table(tmp_path, data=data, fragments=5)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()

    def changed(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"views": 1, "x": -1 if row["x"] == 7 else row["x"]}

    update(table.storage.uri, "views", changed, backwards=backwards, merge=True)
    assert table.backfill("y", executor="local", progress=False).rows_computed == 1
    assert calls.keys == ["-1"]
    assert sum(read) == 2 * rows
    assert pairs(table, "x", "y") == {x: 10 * x for x in [-1, *range(rows)] if x != 7}
    assert_table_invariants(table)


@pytest.mark.parametrize("stable", [False, True])
def test_rows_that_a_merge_removed_are_read_more_than_once(
    tmp_path: Path, calls: CallLog, read: list[int], stable: bool
) -> None:
    data = pa.table({"x": range(ROWS), "v": range(ROWS)})
    table = make_table(tmp_path, data=data, fragments=3, stable=stable)

    @geneva.udf
    def y(v: int) -> int:
        calls(v)
        return 10 * v

    table.add_columns({"y": y})
    run(table, "y", "local")
    calls.clear()
    dataset = lance.dataset(table.storage.uri)
    new = dataset.to_table(filter="x < 8").to_pylist()
    new = [r | {"v": r["v"] + 100 * (r["x"] == 5)} for r in new[::-1]]
    merge = dataset.merge_insert("x").when_matched_update_all()
    merge.execute(pa.Table.from_pylist(new, dataset.schema))
    assert table.backfill("y", executor="local", progress=False).rows_computed == 1
    assert calls.keys == ["105"]
    assert sum(read) == 2 * 8
    assert pairs(table, "v", "y") == {v: 10 * v for v in [*range(ROWS), 105] if v != 5}
    assert_table_invariants(table)


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_flags_between_two_places(mask: list[bool], start: int, stop: int) -> None:
    kept = np.flatnonzero(between(np.array(mask, np.bool_), start, stop))
    assert kept.tolist() == np.flatnonzero(mask)[start:stop].tolist()
