"""Columns that LanceDB fills itself: no UDF may be bound to them, and rows wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pytest

import geneva
from geneva.errors import ColumnError
from tests.support.calls import CallLog
from tests.support.tables import column, database

MANY = 40


@pytest.fixture
def table(tmp_path: Path) -> geneva.Table:
    """A table with x, an SQL column of it, and one of that."""
    db = lancedb.connect(database(tmp_path))
    made = db.create_table("t", pa.table({"x": range(MANY)}))
    made.add_columns(computed={"half": "x + 1", "more": "half * 10"})
    return geneva.connect(database(tmp_path)).open_table("t")


def refresh(table: geneva.Table, *names: str) -> None:
    for name in names:
        table.refresh_column(name)


def reading(calls: CallLog, name: str) -> geneva.UDF:
    @geneva.udf(data_type=pa.int64(), input_columns=[name])
    def of(value: Any) -> int:
        calls(value)
        return -value

    return of


def test_udf_is_not_bound_to_a_column_that_lancedb_fills(table: geneva.Table) -> None:
    refresh(table, "half")

    @geneva.udf
    def other(x: int) -> int:
        return x

    for bind in (
        lambda: table.add_columns({"half": other}),
        lambda: table.alter_columns({"path": "half", "udf": other}),
    ):
        with pytest.raises(ColumnError, match=r"'half' is filled by LanceDB .*'x \+ 1'"):
            bind()
    assert column(table, "half") == list(range(1, MANY + 1))


def test_rows_wait_until_the_sql_column_is_refreshed(table: geneva.Table, calls: CallLog) -> None:
    table.add_columns({"y": reading(calls, "half")})
    waiting = table.backfill("y", executor="local")
    assert (waiting.rows_computed, waiting.rows_waiting, len(calls)) == (0, MANY, 0)
    assert table.coverage("y").totals["waiting"] == MANY
    refresh(table, "half")
    assert table.backfill("y", executor="local").rows_computed == MANY
    table.add([{"x": 500}])
    waiting = table.backfill("y", executor="local")
    assert (waiting.rows_computed, waiting.rows_waiting) == (0, 1)
    refresh(table, "half")
    assert table.backfill("y", executor="local").rows_computed == 1
    assert column(table, "y")[-1] == -501
    assert set(calls.counts.values()) == {1}


def test_rows_wait_whose_inputs_changed_since_the_refresh(
    table: geneva.Table, calls: CallLog
) -> None:
    refresh(table, "half")
    table.add_columns({"y": reading(calls, "half")})
    lance.dataset(table.storage.uri).update({"x": "x + 1000"}, where="x < 3")
    found = table.backfill("y", executor="local")
    assert (found.rows_computed, found.rows_waiting) == (MANY - 3, 3)
    refresh(table, "half")
    assert table.backfill("y", executor="local").rows_computed == 3
    assert sorted(column(table, "y"))[:3] == [-1003, -1002, -1001]


def test_rows_wait_for_an_sql_column_of_one_that_is_not_refreshed(
    table: geneva.Table, calls: CallLog
) -> None:
    refresh(table, "half", "more")
    table.add_columns({"y": reading(calls, "more")})
    lance.dataset(table.storage.uri).update({"x": "1000"}, where="x = 0")
    found = table.backfill("y", executor="local")
    assert (found.rows_computed, found.rows_waiting) == (MANY - 1, 1)
    refresh(table, "half")
    assert table.backfill("y", executor="local").rows_waiting == 1
    refresh(table, "more")
    assert table.backfill("y", executor="local").rows_computed == 1
    assert min(column(table, "y")) == -10010


def test_rows_wait_for_a_udf_below_an_sql_column(tmp_path: Path, calls: CallLog) -> None:
    table = geneva.connect(database(tmp_path)).create_table("t", pa.table({"x": range(MANY)}))

    @geneva.udf
    def double(x: int) -> int:
        return 2 * x

    table.add_columns({"d": double})
    table.backfill("d", executor="local")
    table.add_columns(computed={"e": "d + 1"})
    refresh(table, "e")
    table.add_columns({"y": reading(calls, "e")})
    lance.dataset(table.storage.uri).update({"x": "500"}, where="x = 3")
    found = table.backfill("y", executor="local")
    assert (found.rows_computed, found.rows_waiting) == (MANY - 1, 1)
    table.backfill("d", executor="local")
    refresh(table, "e")
    table.backfill("y", executor="local")
    assert min(column(table, "y")) == -1001


def test_value_of_any_type_is_told_from_one_that_is_not_refreshed(
    tmp_path: Path, calls: CallLog
) -> None:
    db = lancedb.connect(database(tmp_path))
    data = pa.table({"x": [1, 2], "f": [float("nan"), -0.0], "t": ["a", None]})
    made = db.create_table("t", data)
    made.add_columns(
        computed={"g": "f * 2", "u": "upper(t)", "l": "make_array(x, 2)", "h": "f > 1"}
    )
    table = geneva.connect(database(tmp_path)).open_table("t")
    refresh(table, "g", "u", "l", "h")

    @geneva.udf
    def together(g: float, u: str, l: list[int], h: bool) -> str:  # noqa: E741
        calls(1)
        return f"{g} {u} {l} {h}"

    table.add_columns({"y": together})
    assert table.backfill("y", executor="local").rows_computed == 2


def test_embedding_column_is_no_target_and_its_missing_rows_wait(
    tmp_path: Path, calls: CallLog
) -> None:
    declared = b'[{"name": "e5", "model": {}, "source_column": "s", "vector_column": "v"}]'
    kind = pa.list_(pa.float32(), 2)
    schema = pa.schema(
        [("s", pa.string()), ("v", kind)], metadata={b"embedding_functions": declared}
    )
    rows = {"s": ["a", "b", None], "v": pa.array([[1, 2], None, None], kind)}
    lance.write_dataset(pa.table(rows, schema=schema), f"{database(tmp_path)}/t.lance")
    table = geneva.connect(database(tmp_path)).open_table("t")

    @geneva.udf(data_type=kind)
    def other(s: str) -> Any:
        return [0.0, 0.0]

    with pytest.raises(ColumnError, match="'v' is filled by LanceDB with the embedding function"):
        table.add_columns({"v": other})

    @geneva.udf(data_type=pa.int64())
    def length(v: Any) -> int:
        calls(1)
        return -1 if v is None else len(v)

    table.add_columns({"n": length})
    found = table.backfill("n", executor="local")
    assert (found.rows_computed, found.rows_waiting) == (2, 1)
    assert table.backfill("n", executor="local", inputs="as_is").rows_computed == 1
