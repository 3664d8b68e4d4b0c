"""Where the inputs of a UDF come from: columns, defaults, settings, and what a call names."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import geneva
from geneva.errors import ColumnError, SettingError, TableError, UdfError, UdfFailedError
from geneva.udf import from_reference
from tests.support.backfills import run
from tests.support.tables import assert_table_invariants, column, make_table

ROWS = pa.table({"a": [1, 2], "b": [10, 20], "text": ["x", "yy"]})


def made_of(path: Path, rows: pa.Table) -> geneva.Table:
    return make_table(path, data=rows, fragments=1)


@pytest.fixture
def table(tmp_path: Path) -> geneva.Table:
    return made_of(tmp_path, ROWS)


@geneva.udf
def shout(text: str, mark: str = "!") -> str:
    return text + mark


def computed(tbl: geneva.Table, made: Any, **options: Any) -> list[Any]:
    tbl.add_columns({"c": made})
    tbl.backfill("c", executor="local", progress=False, **options)
    assert_table_invariants(tbl)
    return column(tbl, "c")


def plus(a: int, k: int = 5) -> int:
    return a + k


def middle(a: int, k: int = 5, b: int = 7) -> int:
    return a + k + b


def keyword(*, a: int, k: int = 5) -> int:
    return a + k


def star(a: int, *more: int) -> int:
    return a + sum(more)


def double_star(**row: Any) -> int:
    return int(row["a"] + row["b"])


def array(a: pa.Array, k: int = 5) -> pa.Array:
    return pa.array([v + k for v in a.to_pylist()])


def numpy_array(a: np.ndarray, k=5) -> np.ndarray:  # type: ignore[no-untyped-def]  # on purpose
    return a + k


def batch_and_setting(batch: pa.RecordBatch, k: int = 5) -> pa.Array:
    return pa.array([v + k for v in batch["a"].to_pylist()])


async def awaited(a: int, k: int = 5) -> int:
    return a + k


class Model:
    def __init__(self, by: int = 5) -> None:
        self.by = by

    def __call__(self, a: int, k: int = 0, b: int = 7) -> int:
        return a + self.by + k + b


INT = pa.int64()


@pytest.mark.parametrize(
    ("made", "values"),
    [
        (geneva.udf(plus), [6, 7]),
        (geneva.udf(middle), [16, 27]),
        (geneva.udf(keyword), [6, 7]),
        (geneva.udf(awaited), [6, 7]),
        (geneva.udf(data_type=INT)(array), [6, 7]),
        (geneva.udf(data_type=INT)(numpy_array), [6, 7]),
        (geneva.udf(data_type=INT, input_columns=["a"])(batch_and_setting), [6, 7]),
        (geneva.udf(functools.partial(plus, k=6)), [7, 8]),
        (geneva.udf(star), [1, 2]),
        (geneva.udf(input_columns=["a", "b", "b"])(star), [21, 42]),
        (geneva.udf(input_columns=["a", "b"])(double_star), [11, 22]),
        (geneva.udf(input_columns=["b"])(plus), [15, 25]),
        ((geneva.udf(plus), ["b"]), [15, 25]),
        ((plus, ["b", "a"]), [11, 22]),
        ((geneva.udf(middle), ("b", "a")), [18, 29]),
        ((Model, ["b"]), [22, 32]),
        ((geneva.udf(Model)(1), ["b", "a", "a"]), [13, 25]),
    ],
)
def test_parameters_are_columns_where_there_are_such(
    table: geneva.Table, made: Any, values: list[int]
) -> None:
    assert computed(table, made) == values


def test_default_that_is_no_column_is_a_setting_of_the_call(table: geneva.Table) -> None:
    assert computed(table, shout) == ["x!", "yy!"]
    assert table.computed_columns()["c"].inputs == ("text",)
    table.backfill("c", executor="local", params={"mark": "?"})
    assert column(table, "c") == ["x?", "yy?"]
    assert table.backfill("c", executor="local", params={"mark": "?"}).rows_computed == 0
    again = from_reference(f"{__name__}:shout", {"mark": "!"})
    assert again.digest == table.computed_columns()["c"].digest


def test_default_that_is_a_column_is_read_and_no_setting(tmp_path: Path) -> None:
    tbl = made_of(tmp_path, pa.table({"text": ["x"], "mark": ["+"]}))
    assert computed(tbl, shout) == ["x+"]
    with pytest.raises(SettingError, match="mark"):
        tbl.backfill("c", executor="local", params={"mark": "?"})


def test_parameter_without_a_default_is_a_column(table: geneva.Table) -> None:
    def f(text: str, lang: str) -> str:
        return text + lang

    with pytest.raises(ColumnError, match="lang"):
        table.add_columns({"c": geneva.udf(f)})


def test_record_batch_udf_reads_all_that_no_udf_computes(table: geneva.Table) -> None:
    table.add_columns({"done": geneva.udf(plus)})

    @geneva.udf(data_type=pa.string())
    def names(batch: pa.RecordBatch) -> pa.Array:
        return pa.array([",".join(batch.schema.names)] * batch.num_rows)

    assert computed(table, names) == ["a,b,text"] * 2
    assert table.computed_columns()["c"].inputs == ("a", "b", "text")
    table.alter_columns({"path": "c", "udf": (names, ["b"])})
    table.backfill("c", executor="local")
    assert column(table, "c") == ["b", "b"]


def test_columns_of_a_pair_are_checked(table: geneva.Table) -> None:
    with pytest.raises(UdfError, match="takes the parameters a, k"):
        table.add_columns({"c": (geneva.udf(plus), ["a", "b", "text"])})
    with pytest.raises(UdfError, match="list of names"):
        table.add_columns({"c": (geneva.udf(plus), "a")})
    with pytest.raises(ColumnError, match="missing"):
        table.add_columns({"c": (geneva.udf(plus), ["missing"])})


def test_pair_rebinds_as_another_udf(table: geneva.Table) -> None:
    assert computed(table, geneva.udf(plus)) == [6, 7]
    table.alter_columns({"path": "c", "udf": (geneva.udf(plus), ["b"])})
    assert table.backfill("c", executor="local").rows_computed == 2
    assert column(table, "c") == [15, 25]


def test_lengths_of_time_are_seconds_or_timedeltas(table: geneva.Table) -> None:
    table.add_columns({"c": geneva.udf(plus)})
    job = table.backfill_async(
        "c",
        executor="local",
        progress=False,
        timeout=dt.timedelta(minutes=1),
        resource_timeout=dt.timedelta(minutes=1),
    )
    assert job.result(timeout=dt.timedelta(minutes=1)).rows_computed == 2
    assert job.done()
    with pytest.raises(SettingError, match="timeout"):
        table.backfill("c", executor="local", timeout=dt.timedelta(seconds=-1))


def test_failed_job_is_done_and_its_result_raises(table: geneva.Table) -> None:
    @geneva.udf
    def bad(a: int) -> int:
        raise ValueError("no")

    table.add_columns({"c": bad})
    job = table.backfill_async("c", executor="local", progress=False)
    with pytest.raises(UdfFailedError):
        job.result()
    assert job.done()


def test_asynchronous_table_is_refused_by_name(tmp_path: Path) -> None:
    async def make() -> Any:
        connection = await lancedb.connect_async(str(tmp_path))
        return await connection.create_table("t", [{"x": 1}])

    inner = asyncio.run(make())
    with pytest.raises(TableError, match=r"AsyncTable.*geneva\.connect"):
        geneva.Table(inner)


class Embedding:
    def compute_source_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [[0.0] for _ in texts]


@pytest.mark.parametrize("thing", [Embedding(), 5, None, ["a"]])
def test_what_is_no_udf_is_refused_by_its_type(table: geneva.Table, thing: Any) -> None:
    with pytest.raises(UdfError, match=rf"'c'.*{type(thing).__name__}"):
        table.add_columns({"c": thing})
    with pytest.raises(UdfError, match="neither a UDF"):
        table.add_columns({"d": geneva.udf(plus), "c": thing})
    assert "d" not in table.schema.names


def test_both_executors_call_with_the_same_inputs(tmp_path: Path, executor: Any) -> None:
    tbl = made_of(tmp_path, ROWS)
    tbl.add_columns({"c": shout, "d": (geneva.udf(middle), ["b", "a"])})
    run(tbl, ["c", "d"], executor)
    assert (column(tbl, "c"), column(tbl, "d")) == (["x!", "yy!"], [18, 29])


def test_namespace_holds_tables_as_a_database_does(tmp_path: Path) -> None:
    db = geneva.connect(str(tmp_path))
    db.create_namespace(["team"])
    tbl = db.create_table("t", ROWS, namespace_path=["team"])
    assert computed(tbl, shout) == ["x!", "yy!"]
