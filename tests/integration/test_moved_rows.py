"""Rows that one update moves to several new fragments: each is paired with what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import geneva
from geneva.column import provenance
from geneva.column.moved import between, keys
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
) -> None:
    """Set a column of all rows as Lance's own update does, in new fragments of four rows."""
    dataset = lance.dataset(uri)
    rows = [change(r) for r in dataset.to_table().to_pylist()]
    if backwards:
        rows.reverse()
    data = pa.Table.from_pylist(rows, dataset.schema)
    made = lance.fragment.write_fragments(data, dataset, max_rows_per_file=4, mode="append")
    operation = lance.LanceOperation.Update(
        removed_fragment_ids=[f.fragment_id for f in dataset.get_fragments()],
        new_fragments=made,
        fields_for_preserving_frag_bitmap=[dataset.lance_schema.field(name).id()],
        update_mode="rewrite_rows",
    )
    assert len(made) == 3
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

    def counted(*arguments: Any) -> Any:
        rows = keys(*arguments)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(provenance, "keys", counted)
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
    assert sum(read) > 2 * ROWS
    assert pairs(table, "x", "y") == {x: 10 * x for x in range(ROWS)}
    assert_table_invariants(table)


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_flags_between_two_places(mask: list[bool], start: int, stop: int) -> None:
    kept = np.flatnonzero(between(np.array(mask, np.bool_), start, stop))
    assert kept.tolist() == np.flatnonzero(mask)[start:stop].tolist()
