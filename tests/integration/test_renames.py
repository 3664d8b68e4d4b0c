"""Columns that are renamed keep their place in what is computed; what cannot be proven is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pytest

import geneva
from geneva.errors import ColumnError, CorruptFileError, TableError
from tests.support.backfills import run
from tests.support.calls import CallLog
from tests.support.tables import column, make_table

both_executors = pytest.mark.parametrize(
    "executor", ["local", pytest.param("ray", marks=pytest.mark.ray)]
)


def rename(table: geneva.Table, path: str, new: str) -> None:
    lance.dataset(table.storage.uri).alter_columns({"path": path, "name": new})


def doubling(calls: CallLog) -> geneva.UDF:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    return double


@pytest.fixture
def table(tmp_path: Path) -> geneva.Table:
    rows = [{"x": i, "s": {"a": i, "deep": {"b": -i}}, "w": "w"} for i in range(20)]
    return make_table(tmp_path, data=pa.Table.from_pylist(rows), fragments=2)


def append(table: geneva.Table, **values: Any) -> None:
    schema = lance.dataset(table.storage.uri).schema
    types = pa.schema([schema.field(k) for k in values])
    lance.write_dataset(pa.Table.from_pylist([values], types), table.storage.uri, mode="append")


@both_executors
def test_renamed_input_is_read_under_its_new_name_and_nothing_is_stale(
    table: geneva.Table, calls: CallLog, request: pytest.FixtureRequest, executor: str
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    table.add_columns({"y": doubling(calls)})
    run(table, "y", executor)
    rename(table, "x", "number")
    assert table.coverage("y").totals["computed"] == 20
    assert run(table, "y", executor).rows_computed == 0
    append(table, number=70)
    assert table.plan_backfill("y").rows_compute == 1
    assert run(table, "y", executor).rows_computed == 1
    assert column(table, "y")[-1] == 140
    rename(table, "number", "once_more")
    append(table, once_more=80)
    assert run(table, "y", executor, where="once_more > 75").rows_computed == 1


@pytest.mark.parametrize("path", ["s.a", "s.deep.b"])
def test_renamed_field_within_a_struct_is_followed(
    table: geneva.Table, calls: CallLog, path: str
) -> None:
    @geneva.udf(input_columns=[path], data_type=pa.int64())
    def double(a: int) -> int:
        calls(a)
        return 2 * a

    table.add_columns({"y": double})
    table.backfill("y", executor="local")
    before = column(table, "y")
    rename(table, path, "renamed")
    assert table.backfill("y", executor="local").rows_computed == 0
    rename(table, "s", "t")
    assert table.backfill("y", executor="local").rows_computed == 0
    renamed = {"a": 5, "deep": {"b": 6}}
    inner = renamed if path == "s.a" else renamed["deep"]
    inner["renamed"] = inner.pop(path[-1])
    append(table, t=renamed)
    assert table.backfill("y", executor="local").rows_computed == 1
    assert column(table, "y") == [*before, 2 * inner["renamed"]]
    assert len(calls) == 21


def test_field_that_the_udf_sees_by_name_makes_values_stale_when_it_is_renamed(
    table: geneva.Table,
) -> None:
    @geneva.udf(input_columns=["s"], data_type=pa.string())
    def keys(s: dict[str, Any]) -> str:
        return ",".join(sorted(s))

    table.add_columns({"y": keys})
    table.backfill("y", executor="local")
    rename(table, "s", "t")
    assert table.backfill("y", executor="local").rows_computed == 0
    rename(table, "t.a", "c")
    assert table.backfill("y", executor="local").rows_computed == 20
    assert set(column(table, "y")) == {"c,deep"}


def test_renamed_computed_input_is_followed_and_comes_first(
    table: geneva.Table, calls: CallLog
) -> None:
    @geneva.udf
    def text(y: int) -> str:
        return str(y)

    table.add_columns({"y": doubling(calls), "z": text})
    table.backfill(["y", "z"], executor="local")
    rename(table, "y", "doubled")
    append(table, x=70)
    waiting = table.backfill("z", executor="local")
    assert (waiting.rows_computed, waiting.rows_waiting) == (0, 1)
    table.backfill(["z", "doubled"], executor="local")
    assert column(table, "z")[-1] == "140"
    assert len(calls) == 21


@pytest.mark.parametrize("kind", ["record batch", "numpy"])
def test_udf_sees_the_names_that_it_was_bound_to(table: geneva.Table, kind: str) -> None:
    import numpy as np

    @geneva.udf(input_columns=["x"], data_type=pa.int64())
    def of_batch(batch: pa.RecordBatch) -> pa.Array:
        return pa.array([2 * v.as_py() for v in batch["x"]])

    @geneva.udf(data_type=pa.int64())
    def of_numpy(x: np.ndarray) -> np.ndarray:
        return 2 * x

    table.add_columns({"y": of_batch if kind == "record batch" else of_numpy})
    rename(table, "x", "number")
    assert table.backfill("y", executor="local").rows_computed == 20
    assert column(table, "y") == [2 * i for i in range(20)]


def test_columns_that_share_a_read_follow_a_rename_together(
    table: geneva.Table, calls: CallLog
) -> None:
    @geneva.udf(data_type=pa.int64())
    def less(x: int, w: str) -> int:
        return -x

    @geneva.udf(data_type=pa.int64(), input_columns=["w", "x"])
    def more(word: str, number: int) -> int:
        return number + len(word)

    table.add_columns({"y": less, "z": more})
    rename(table, "x", "number")
    table.backfill(["y", "z"], executor="local")
    assert column(table, "y") == [-i for i in range(20)]
    assert column(table, "z") == [i + 1 for i in range(20)]


def test_renamed_struct_of_several_columns_goes_on(table: geneva.Table) -> None:
    kind = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))])

    @geneva.udf(data_type=kind)
    def both(x: int) -> Any:
        return {"a": x, "b": [x]}

    table.add_columns({("p", "q"): both})
    rename(table, "x", "number")
    rename(table, "q", "list")
    assert table.backfill(["p"], executor="local").rows_computed == 20
    assert column(table, "list")[3] == [3]


def test_begun_work_goes_on_after_a_rename(table: geneva.Table, calls: CallLog) -> None:
    @geneva.udf
    def fails_once(x: int) -> int:
        if x == 15 and "failed" not in calls.keys:
            calls("failed")
            raise RuntimeError("once")
        calls(x)
        return x

    table.add_columns({"y": fails_once})
    with pytest.raises(geneva.GenevaError):
        table.backfill("y", executor="local", concurrency=1, batch_size=1)
    rename(table, "x", "number")
    table.backfill("y", executor="local", concurrency=1, batch_size=1)
    assert set(calls.counts.values()) == {1}
    assert column(table, "y") == list(range(20))


def test_column_that_got_the_id_of_a_dropped_one_is_not_read_in_its_place(
    table: geneva.Table, calls: CallLog
) -> None:
    uri = table.storage.uri
    lance.dataset(uri).add_columns(pa.schema([pa.field("y", pa.int64())]))
    lance.dataset(uri).add_columns({"last": "x + 1"})

    @geneva.udf(input_columns=["last"], data_type=pa.int64())
    def double(last: int) -> int:
        calls(last)
        return 2 * last

    table.alter_columns({"path": "y", "udf": double})
    lance.dataset(uri).drop_columns(["last"])
    lance.dataset(uri).add_columns({"other": "x + 1000"})
    ids = {f.name(): f.id() for f in lance.dataset(uri).lance_schema.fields()}
    assert ids["other"] > ids["y"], "the id is one that may have been given out twice"
    with pytest.raises(ColumnError, match="no column 'last'"):
        table.backfill("y", executor="local")
    assert not len(calls)


def test_dropped_input_is_an_error_and_not_another_column(
    table: geneva.Table, calls: CallLog
) -> None:
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local")
    lance.dataset(table.storage.uri).drop_columns(["x"])
    lance.dataset(table.storage.uri).add_columns({"v": "cast(1 as bigint) + char_length(w)"})
    with pytest.raises(ColumnError, match="no column 'x'"):
        table.backfill("y", executor="local", force=True)
    assert len(calls) == 20


def test_column_added_again_under_the_old_name_is_read_by_its_name(
    table: geneva.Table, calls: CallLog
) -> None:
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local")
    rename(table, "x", "old")
    lance.dataset(table.storage.uri).add_columns({"x": "old + 100"})
    assert table.backfill("y", executor="local").rows_computed == 20
    assert column(table, "y") == [2 * (i + 100) for i in range(20)]


def test_overwritten_table_is_not_read_by_the_ids_of_the_old_one(
    table: geneva.Table, calls: CallLog
) -> None:
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local")
    data = lance.dataset(table.storage.uri).to_table(columns=["w", "y"])
    data = data.append_column("v", pa.array(range(20), pa.int64())).select(["v", "w", "y"])
    lance.write_dataset(data, table.storage.uri, mode="overwrite")
    with pytest.raises(ColumnError, match="no column 'x'"):
        table.backfill("y", executor="local", force=True)
    assert len(calls) == 20


# --- retyped, copied, cloned --------------------------------------------------------------


def test_retyped_column_is_told_to_have_lost_its_udf(table: geneva.Table, calls: CallLog) -> None:
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local")
    lance.dataset(table.storage.uri).alter_columns({"path": "y", "data_type": pa.int32()})
    said = r"UDF 'double' was bound to it until version \d+, .* from int64 to int32"
    for ask in (
        lambda: table.backfill("y", executor="local"),
        lambda: table.plan_backfill("y"),
        lambda: table.coverage("y"),
    ):
        with pytest.raises(ColumnError, match=said):
            ask()

    @geneva.udf(data_type=pa.int32())
    def double(x: int) -> int:
        return 2 * x

    table.alter_columns({"path": "y", "udf": double})
    assert table.backfill("y", executor="local", foreign="recompute").rows_computed == 20


def test_column_that_never_was_computed_is_not_told_to_have_been(table: geneva.Table) -> None:
    with pytest.raises(ColumnError, match="is not computed: no UDF is bound"):
        table.backfill("w", executor="local")


def test_shallow_clone_finds_the_udf_of_its_original(table: geneva.Table, calls: CallLog) -> None:
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local")
    uri = table.storage.uri
    db = geneva.connect(uri.rsplit("/", 1)[0])
    db.clone_table("clone", uri)
    clone = db.open_table("clone")
    append(clone, x=70, w="w", s={"a": 1, "deep": {"b": 1}})
    assert clone.load_udf("y").name == "double"
    clone.backfill("y", executor="local")
    assert column(clone, "y") == [*range(0, 40, 2), 140]
    assert column(table, "y") == list(range(0, 40, 2))


@pytest.mark.disk(reason="it copies folders")
def test_copied_folder_goes_on_and_one_without_its_udfs_says_what_to_copy(
    table: geneva.Table, calls: CallLog
) -> None:
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local", num_frags=1)
    original = Path(table.storage.uri)
    shutil.copytree(original, original.with_name("copy.lance"))
    partial = original.with_name("partial.lance")
    shutil.copytree(original, partial, ignore=shutil.ignore_patterns("_backfill"))
    db = geneva.connect(str(original.parent))
    copied, without = db.open_table("copy"), db.open_table("partial")
    assert copied.backfill("y", executor="local").rows_computed == 10
    with pytest.raises(CorruptFileError, match=r"copy _backfill/udfs/[0-9a-f]+ from the original"):
        without.backfill("y", executor="local")
    without.alter_columns({"path": "y", "udf": doubling(calls)})
    assert without.backfill("y", executor="local").rows_computed == 10
    assert len(calls) == 30


def test_table_with_a_write_ahead_log_is_refused(tmp_path: Path, calls: CallLog) -> None:
    ids = pa.schema([pa.field("id", pa.int64(), nullable=False), ("x", pa.int64())])
    data = pa.table({"id": [1, 2], "x": [1, 2]}, ids)
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns({"y": doubling(calls)})
    table.backfill("y", executor="local")
    inner = lancedb.connect(str(table.storage.uri).rsplit("/", 1)[0]).open_table("t")
    inner.set_unenforced_primary_key("id")
    inner.set_lsm_write_spec(lancedb.LsmWriteSpec.unsharded())
    for ask in (
        lambda: table.backfill("y", executor="local"),
        lambda: table.plan_backfill("y"),
        lambda: table.coverage("y"),
        lambda: table.add_columns({"z": doubling(calls)}),
    ):
        with pytest.raises(TableError, match="LSM write spec"):
            ask()
    inner.unset_lsm_write_spec()
    assert table.backfill("y", executor="local").rows_computed == 0
