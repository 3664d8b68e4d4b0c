"""Values that look fresh and are not, or look stale and are not, after what other writers did."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.column.history import moved
from geneva.errors import StorageError
from geneva.storage.lance import TableStorage
from tests.support.backfills import CPUS, run, times, watched, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table, pairs
from tests.support.writers import MeddledStorage, Once, rewrite_column

both_row_ids = pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable_ids"])


@geneva.udf
def ten_times(x: int) -> int:
    return x * 10


@geneva.udf
def one_more(y: int) -> int:
    return y + 1


def chain(path: Path, data: dict[str, list], fragments: int) -> geneva.Table:
    """Make a table with y = 10 * x and z = y + 1, both computed."""
    table = make_table(path, data=pa.table(data), fragments=fragments)
    table.add_columns({"y": ten_times})
    table.add_columns({"z": one_more})
    for name, rows in (("y", len(data["x"])), ("z", len(data["x"]))):
        assert run(table, name, "local").rows_computed == rows
    return table


# --- stale values that pass for fresh -------------------------------------------------------


@both_row_ids
@pytest.mark.parametrize("how", ["update", "replacement"])
def test_input_rewritten_in_a_fragment_of_moved_rows_leaves_old_values(
    tmp_path: Path, calls: CallLog, how: str, stable: bool
) -> None:
    data = pa.table({"id": range(4), "x": [1, 2, 3, 4], "tag": ["a"] * 4})
    table = make_table(tmp_path, data=data, fragments=2, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()
    table.update(where="id < 2", values={"tag": "b"})
    uri = table.storage.uri
    rewrite_column(uri, "x", lambda v: v + 100, [_last_fragment(uri)], how)
    run(table, "y", "local")
    assert xs(calls) == [101, 102]
    assert pairs(table, "x", "y") == {101: 1010, 102: 1020, 3: 30, 4: 40}


@both_row_ids
@pytest.mark.parametrize("how", ["update", "replacement"])
def test_input_rewritten_in_a_compacted_fragment_leaves_old_values(
    tmp_path: Path, calls: CallLog, how: str, stable: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=2, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()
    uri = table.storage.uri
    lance.dataset(uri).optimize.compact_files()
    rewrite_column(uri, "x", lambda v: v + 100, [_last_fragment(uri)], how)
    run(table, "y", "local")
    assert xs(calls) == [100, 101, 102, 103]
    assert pairs(table, "x", "y") == {x: 10 * x for x in range(100, 104)}


def _first_fragment(uri: str) -> int:
    return min(f.fragment_id for f in lance.dataset(uri).get_fragments())


def _last_fragment(uri: str) -> int:
    return max(f.fragment_id for f in lance.dataset(uri).get_fragments())


def test_moved_twins_of_different_freshness_are_taken_for_each_other(tmp_path: Path) -> None:
    # Rows 0 and 2 look the same to the UDF of z; only that of row 2 was computed from an older y.
    table = chain(tmp_path, {"id": [0, 1, 2, 3], "x": [1, 2, 0, 3], "tag": ["a"] * 4}, 2)
    table.update(where="id = 2", values={"x": 1})
    assert run(table, "y", "local").rows_computed == 1
    table.update(where="id in (0, 2)", values={"tag": "b"})
    run(table, "y", "local")
    run(table, "z", "local")
    assert pairs(table, "id", "z") == {0: 11, 1: 21, 2: 11, 3: 31}
    assert run(table, "z", "local").rows_computed == 0


def test_results_carried_over_a_compaction_outlive_a_rewritten_input(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=8, fragments=2)
    table.add_columns({"y": times(calls, 10)})
    uri = table.storage.uri
    action = Once(uri, str(tmp_path / "acted"), _compact_then_rewrite)
    table = geneva.Table(table, storage=OpenedAfter(uri, meddle=action))
    table.backfill("y", executor="local", concurrency=1)
    assert action.ran
    assert pairs(table, "x", "y") == {x: 10 * x for x in range(100, 108)}
    calls.clear()
    assert run(table, "y", "local").rows_computed == 0
    assert_table_invariants(table, {"y": lambda row: 10 * row["x"]})


def _compact_then_rewrite(uri: str) -> None:
    lance.dataset(uri).optimize.compact_files()
    rewrite_column(uri, "x", lambda v: v + 100, [_last_fragment(uri)], "update")


class OpenedAfter(MeddledStorage):
    """Lets the other writer act when a file is finished, before the engine looks what is new."""

    def sync_files(self, names: Sequence[str]) -> None:
        super().sync_files(names)
        if self.meddle is not None:
            self.meddle()


@both_row_ids
@pytest.mark.parametrize("between", ["nothing", "update"])
def test_restore_there_and_back_hides_an_updated_input(
    tmp_path: Path, calls: CallLog, between: str, stable: bool
) -> None:
    data = pa.table({"id": range(4), "x": range(4), "tag": ["a"] * 4})
    table = make_table(tmp_path, data=data, fragments=1, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()
    uri = table.storage.uri
    before = lance.dataset(uri).version
    table.update(where="id < 2", values={"x": 9})
    updated = lance.dataset(uri).version
    lance.dataset(uri, version=before).restore()
    table.checkout_latest()
    if between == "update":
        table.update(where="id = 3", values={"tag": "b"})
    lance.dataset(uri, version=updated).restore()
    table.checkout_latest()
    if between == "nothing":
        table.update(where="id in (0, 2)", values={"tag": "c"})
    run(table, "y", "local")
    assert pairs(table, "id", "y") == {0: 90, 1: 90, 2: 20, 3: 30}


@both_row_ids
@pytest.mark.parametrize("where", [None, "id = 0"])
def test_row_that_was_deleted_when_nothing_was_left_to_do_is_restored_stale(
    tmp_path: Path, calls: CallLog, where: str | None, stable: bool
) -> None:
    data = pa.table({"id": range(4), "x": range(4)})
    table = make_table(tmp_path, data=data, fragments=1, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    table.update(where="id < 2", values={"x": 9})
    run(table, "y", "local", where="id = 1")
    uri = table.storage.uri
    stale = lance.dataset(uri).version
    lance.dataset(uri).delete("id = 0")
    assert run(table, "y", "local", where=where).rows_computed == 0
    lance.dataset(uri, version=stale).restore()
    run(table, "y", "local", where=where)
    assert pairs(table, "id", "y") == {0: 90, 1: 90, 2: 20, 3: 30}


@both_row_ids
@pytest.mark.parametrize("how", ["rewritten", "rebound"])
def test_trusted_value_outlives_what_happened_after_the_history_was_lost(
    tmp_path: Path, calls: CallLog, how: str, stable: bool
) -> None:
    data = pa.table({"id": range(4), "x": range(4), "tag": ["a"] * 4})
    table = make_table(tmp_path, data=data, fragments=1, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    table.update(where="id < 3", values={"tag": "b"})
    uri = table.storage.uri
    lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))
    if how == "rewritten":
        rewrite_column(uri, "x", lambda v: v + 100 * (v == 1), [_last_fragment(uri)], "update")
    else:
        assert run(table, "y", "local").rows_unverified == 3
        table.alter_columns({"path": "y", "udf": times(calls, 10, version="2")})
    calls.clear()
    run(table, "y", "local")
    assert xs(calls) == ([101] if how == "rewritten" else [0, 1, 2, 3])
    assert all(y == 10 * x for x, y in pairs(table, "x", "y").items())


@pytest.mark.parametrize("before", ["known", "compacted", "unknown"])
@pytest.mark.parametrize("later", ["nothing", "compacted", "partly computed"])
def test_computed_input_that_was_rewritten_before_a_cleanup_leaves_old_values(
    tmp_path: Path, before: str, later: str
) -> None:
    table = make_table(tmp_path, rows=8, fragments=2)
    uri = table.storage.uri
    table.add_columns({"y": ten_times})
    run(table, "y", "local")
    if before != "known":
        lance.dataset(uri).optimize.compact_files()
    if before == "unknown":
        _clean_up(uri)
    table.checkout_latest()
    table.add_columns({"z": one_more})
    run(table, "z", "local")
    _clean_up(uri)
    assert run(table, "z", "local").rows_computed == 0
    fragment = lance.dataset(uri).get_fragments()[0]
    rewrite_column(uri, "y", lambda v: v + 1000, [fragment.fragment_id], "update")
    _clean_up(uri)
    if later == "compacted":
        lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=100, num_threads=1)
        lance.dataset(uri).delete("x = 7")
        lance.dataset(uri).optimize.compact_files(materialize_deletions_threshold=0.0)
    if later == "partly computed":
        run(table, "y", "local", where="x = 0")
    assert run(table, "z", "local").rows_computed > 0
    assert all(z == y + 1 for y, z in pairs(table, "y", "z").items())
    assert run(table, "z", "local").rows_computed == 0
    _clean_up(uri)
    assert run(table, "z", "local").rows_computed == 0


def _clean_up(uri: str) -> None:
    lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))


def test_computed_value_is_taken_for_a_persons_beside_it(tmp_path: Path, calls: CallLog) -> None:
    data = pa.table({"id": range(3), "x": [1, 1, 2], "tag": ["a"] * 3})
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    table.update(where="id = 1", values={"y": 777})
    dataset = lance.dataset(table.storage.uri)
    swapped = dataset.to_table(filter="id < 2").take([1, 0])  # a merge keeps the source's order
    swapped = swapped.set_column(2, "tag", pa.array(["b", "b"]))
    dataset.merge_insert("id").when_matched_update_all().execute(swapped)
    assert run(table, "y", "local").rows_foreign == 1
    table.checkout_latest()
    table.update(where="id = 0", values={"x": 5})
    run(table, "y", "local")
    assert pairs(table, "id", "y") == {0: 50, 1: 777, 2: 20}


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("how", ["compacted", "updated", "rewritten"])
def test_renamed_column_of_moved_rows_passes_for_a_persons(
    tmp_path: Path, calls: CallLog, how: str, stable: bool
) -> None:
    table = make_table(tmp_path, rows=12, fragments=3, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    uri = table.storage.uri
    if how == "compacted":
        table.optimize()
    elif how == "updated":
        table.update(where="x < 2", values={"s": "seen"})
    else:
        rewrite_column(uri, "y", lambda v: v, [0], "update")
    lance.dataset(uri).alter_columns({"path": "y", "name": "z"})
    calls.clear()
    first = run(table, "z", "local")
    assert (first.rows_computed, first.rows_foreign) == (0, 0)
    table.update(where="x = 1", values={"x": 100})
    run(table, "z", "local")
    assert xs(calls) == [100]
    assert all(z == 10 * x for x, z in pairs(table, "x", "z").items())


@pytest.mark.parametrize("again", [False, True])
def test_input_that_was_renamed_before_the_oldest_version_ends_every_backfill(
    tmp_path: Path, calls: CallLog, again: bool
) -> None:
    table = make_table(tmp_path, rows=12, fragments=3)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    uri = table.storage.uri
    lance.dataset(uri).alter_columns({"path": "x", "name": "w"})
    table.optimize()
    lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))
    if again:
        lance.dataset(uri).alter_columns({"path": "w", "name": "x"})
        assert run(table, "y", "local").rows_unverified == 12
        calls.clear()
        table.update(where="x = 1", values={"x": 100})
    else:

        @geneva.udf(num_cpus=CPUS)
        def renamed(w: int) -> int:
            calls(w)
            return 10 * w

        table.alter_columns({"path": "y", "udf": renamed})
        calls.clear()
    run(table, "y", "local")
    assert xs(calls) == ([100] if again else list(range(12)))


def test_passing_read_error_is_remembered_as_lost_history(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(tmp_path, rows=8, fragments=1)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()
    table.update(where="x = 3", values={"x": 99})

    def broken(self: object, version: int) -> None:
        raise OSError("connection reset by peer")

    with monkeypatch.context() as fault:
        fault.setattr(lance.LanceDataset, "read_transaction", broken)
        with pytest.raises((StorageError, OSError), match="connection reset"):
            table.backfill("y", executor="local", concurrency=1)
    result = run(table, "y", "local")
    assert (result.rows_computed, result.rows_unverified) == (1, 0)
    assert xs(calls) == [99]


# --- fresh values that pass for stale -------------------------------------------------------


@both_row_ids
@pytest.mark.parametrize("compacted", [False, True])
def test_rows_beside_a_rewritten_input_are_computed_again(
    tmp_path: Path, calls: CallLog, compacted: bool, stable: bool
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()
    uri = table.storage.uri
    rewrite_column(uri, "x", lambda v: v + 100 * (v == 3), [0], "update")
    rewrite_column(uri, "x", lambda v: v, [1], "replacement")
    if compacted:
        lance.dataset(uri).optimize.compact_files()
    run(table, "y", "local")
    assert xs(calls) == [103]
    rewrite_column(uri, "x", lambda v: v + 100 * (v == 4), [_first_fragment(uri)], "update")
    run(table, "y", "local")
    assert xs(calls) == [104]
    assert all(y == 10 * x for x, y in pairs(table, "x", "y").items())
    assert run(table, "y", "local").rows_computed == 0


def test_rewritten_input_of_equal_values_is_read_by_every_later_plan(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    rewrite_column(table.storage.uri, "x", lambda v: v, [0, 1], "update")
    assert run(table, "y", "local").rows_computed == 0
    reads = CallLog(tmp_path / "reads")
    assert run(watched(table, reads), "y", "local").rows_computed == 0
    assert reads.keys == []


def test_input_computed_again_to_the_same_values_makes_its_readers_stale(tmp_path: Path) -> None:
    table = chain(tmp_path, {"x": list(range(20))}, 2)
    assert run(table, "y", "local", force=True).rows_computed == 20
    assert run(table, "z", "local").rows_computed == 0


@both_row_ids
@pytest.mark.parametrize("column", ["x", "status"])
def test_rows_of_a_filter_are_computed_again_when_its_column_was_rewritten_in_place(
    tmp_path: Path, calls: CallLog, column: str, stable: bool
) -> None:
    data = pa.table({"x": range(8), "status": ["new"] * 8})
    table = make_table(tmp_path, data=data, fragments=1, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    assert run(table, "y", "local", where="status = 'new'").rows_computed == 8
    rewrite_column(table.storage.uri, column, lambda v: v, [0], "update")
    assert run(table, "y", "local", where="status = 'new'").rows_computed == 0


def test_rows_that_were_computed_under_many_filters_end_every_backfill(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    table.add_columns({"y": times(calls, 10)})
    for day in range(64):
        assert run(table, "y", "local", where=f"x < {100 + day}").rows_computed == 4
    calls.clear()
    rewrite_column(table.storage.uri, "x", lambda v: v + 100 * (v == 3), [0], "update")
    run(table, "y", "local")
    assert xs(calls) == [103]
    assert run(table, "y", "local", where="x < 100").rows_computed == 0


def test_cleanup_after_compaction_computes_a_chain_again(tmp_path: Path) -> None:
    table = chain(tmp_path, {"x": list(range(20))}, 4)
    lance.dataset(table.storage.uri).optimize.compact_files()
    for name in ("z", "y"):
        assert run(table, name, "local").rows_computed == 0
    lance.dataset(table.storage.uri).cleanup_old_versions(older_than=dt.timedelta(0))
    for name in ("z", "y"):
        assert run(table, name, "local").rows_computed == 0


@both_row_ids
def test_rows_that_left_the_filter_are_computed_again_without_one(
    tmp_path: Path, calls: CallLog, stable: bool
) -> None:
    data = pa.table({"x": range(8), "status": ["new"] * 8})
    table = make_table(tmp_path, data=data, fragments=1, stable=stable)
    table.add_columns({"y": times(calls, 10)})
    assert run(table, "y", "local", where="status = 'new'").rows_computed == 8
    table.update(values={"status": "done"})
    assert run(table, "y", "local").rows_computed == 0
    assert column(table, "y") == [10 * x for x in range(8)]


def test_deleted_row_that_failed_is_still_reported(tmp_path: Path) -> None:
    @geneva.udf
    def picky(x: int) -> int:
        if x == 3:
            raise ValueError("not three")
        return x * 10

    table = make_table(tmp_path, rows=8, fragments=1)
    table.add_columns({"y": picky})
    assert run(table, "y", "local", on_error="null").rows_failed == 1
    assert run(table, "y", "local").rows_failed_before == 1
    lance.dataset(table.storage.uri).delete("x = 3")
    assert run(table, "y", "local").rows_failed_before == 0


def test_zero_that_became_a_negative_one_is_taken_for_the_same(tmp_path: Path) -> None:
    table = make_table(tmp_path, data=pa.table({"x": [0.0, 1.0, 2.0, None]}), fragments=1)

    @geneva.udf
    def sign(x: float | None) -> float:
        return 0.0 if x is None else math.copysign(1.0, x)

    table.add_columns({"y": sign})
    assert run(table, "y", "local").rows_computed == 4
    rewrite_column(table.storage.uri, "x", lambda v: -0.0 if v == 0 else v, [0], "update")
    assert run(table, "y", "local").rows_computed == 1
    assert column(table, "y")[0] == -1.0


def test_zero_in_a_list_that_became_a_negative_one_is_taken_for_the_same(tmp_path: Path) -> None:
    data = pa.table({"x": pa.array([[0.0], [1.0], None], pa.list_(pa.float64()))})
    table = make_table(tmp_path, data=data, fragments=1)

    @geneva.udf
    def sign(x: list[float] | None) -> float:
        return 0.0 if x is None else math.copysign(1.0, x[0])

    table.add_columns({"y": sign})
    assert run(table, "y", "local").rows_computed == 3
    change = {0.0: [-0.0], 1.0: [1.0]}
    rewrite_column(table.storage.uri, "x", lambda v: v and change[v[0]], [0], "update")
    assert run(table, "y", "local").rows_computed == 1
    assert column(table, "y") == [-1.0, 1.0, 0.0]


def of_bits(kind: pa.DataType) -> geneva.UDF:
    """Return a UDF whose value is that of all bits of its input."""

    @geneva.udf(data_type=pa.int64(), num_cpus=CPUS)
    def bits(x: pa.Array) -> pa.Array:
        return (x.flatten() if pa.types.is_list(kind) else x).view(pa.int64())

    return bits


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (pa.time64("ns"), 1000, 1001),
        (pa.timestamp("ns"), 1000, 1001),
        (pa.timestamp("s", "UTC"), 10**14, 10**14 + 1),
        (pa.list_(pa.time64("ns")), [1000], [1001]),
    ],
    ids=str,
)
def test_value_that_python_does_not_tell_from_another_is_taken_for_the_same(
    tmp_path: Path, kind: pa.DataType, old: Any, new: Any
) -> None:
    data = pa.table({"id": range(3), "x": pa.array([old] * 3, kind)})
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns({"y": of_bits(kind)})
    assert run(table, "y", "local").rows_computed == 3
    was = column(table, "y")[0]
    changed = pa.table({"id": range(2), "x": pa.array([old, new], kind)})
    merge = lance.dataset(table.storage.uri).merge_insert("id").when_matched_update_all()
    merge.execute(changed)
    assert run(table, "y", "local").rows_computed == 1
    assert pairs(table, "id", "y")[1] != was


@pytest.mark.parametrize(
    ("kind", "wider"),
    [
        (pa.int32(), pa.int64()),
        (pa.float32(), pa.float64()),
        (pa.timestamp("us"), pa.timestamp("ns")),
    ],
    ids=str,
)
def test_computed_value_that_got_a_wider_type_is_taken_for_a_persons(
    tmp_path: Path, kind: pa.DataType, wider: pa.DataType
) -> None:
    def value(kind: pa.DataType, factor: int) -> geneva.UDF:
        @geneva.udf(data_type=kind, version=str(factor), num_cpus=CPUS)
        def scaled(x: pa.Array) -> pa.Array:
            halves = pa.compute.divide(x.cast(pa.float64()), 2)
            return pa.compute.multiply(halves, 2 * factor).cast(pa.int64()).cast(kind)

        return scaled

    table = make_table(tmp_path, rows=8, fragments=2)
    table.add_columns({"y": value(kind, 1)})
    run(table, "y", "local")
    lance.dataset(table.storage.uri).alter_columns({"path": "y", "data_type": wider})
    table.alter_columns({"path": "y", "udf": value(wider, 3)})
    assert run(table, "y", "local").rows_computed == 8


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        (pa.list_(pa.float32(), 2), lambda v: [1.0, v]),
        (pa.list_(pa.float64()), lambda v: [v]),
        (pa.struct([pa.field("a", pa.float64())]), lambda v: {"a": v}),
        (pa.list_(pa.struct([pa.field("a", pa.float32())])), lambda v: [{"a": v}]),
    ],
    ids=["vector", "list", "struct", "list of structs"],
)
def test_nested_zero_that_became_a_negative_one_is_taken_for_the_same(
    tmp_path: Path, kind: pa.DataType, wrap: Any
) -> None:
    x = pa.array([wrap(0.0), wrap(1.0), wrap(2.0), None], kind)  # Arrow finds a NaN to differ
    table = make_table(tmp_path, data=pa.table({"x": x}), fragments=1)

    @geneva.udf(data_type=pa.string())
    def shown(x: Any) -> str:
        return str(x)

    table.add_columns({"y": shown})
    assert run(table, "y", "local").rows_computed == 4
    negative = {str(wrap(0.0)): wrap(-0.0)}
    rewrite_column(table.storage.uri, "x", lambda v: negative.get(str(v), v), [0], "update")
    assert run(table, "y", "local").rows_computed == 1
    assert "-0.0" in column(table, "y")[0]


@dataclass(frozen=True)
class Weighed(TableStorage):
    """Notes the bytes of each batch that is read."""

    seen: list[int] = field(default_factory=list)

    def scan(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        for batch in super().scan(*args, **kwargs):
            self.seen.append(batch.nbytes)
            yield batch


def test_wide_rows_that_an_update_moved_are_compared_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, rows = 20_000, 200
    texts = [f"{k:06}" * (size // 6) for k in range(rows)]
    data = pa.table({"x": range(rows), "s": texts})
    table = make_table(tmp_path, data=data, fragments=1)

    @geneva.udf
    def length(s: str) -> int:
        return len(s)

    table.add_columns({"n": length})
    table.backfill("n", executor="local", concurrency=1)
    monkeypatch.setattr(moved, "_BYTES", 20 * size)
    table.update(where="x < 100", values={"x": -1})
    seen: list[int] = []
    plan = geneva.Table(
        table, storage=Weighed(table.storage.uri, table.storage.options, seen=seen)
    ).plan_backfill("n")
    assert plan.rows_compute == 0
    assert 0 < max(seen) < 80 * size


# --- fields within a struct ----------------------------------------------------------------------


@geneva.udf(data_type=pa.string())
def whole(m: dict) -> str:
    return repr(m)


@geneva.udf(input_columns=["m.a"])
def plus_ten(a: int) -> int:
    return a + 10


def of_structs(path: Path, udf: geneva.UDF) -> geneva.Table:
    data = pa.table({"id": range(6), "m": [{"a": i, "b": 100 + i} for i in range(6)]})
    table = make_table(path, data=data, fragments=2)
    table.add_columns({"y": udf})
    assert run(table, "y", "local").rows_computed == 6
    assert run(table, "y", "local").rows_computed == 0
    return table


def test_values_of_a_struct_are_stale_when_a_field_of_it_is_dropped(tmp_path: Path) -> None:
    table = of_structs(tmp_path, whole)
    table.drop_columns(["m.b"])
    assert run(table, "y", "local").rows_computed == 6
    assert column(table, "y") == [repr({"a": i}) for i in range(6)]
    assert run(table, "y", "local").rows_computed == 0


def test_values_of_a_field_are_stale_when_another_takes_its_name(tmp_path: Path) -> None:
    table = of_structs(tmp_path, plus_ten)
    table.alter_columns({"path": "m.a", "rename": "z"})
    table.alter_columns({"path": "m.b", "rename": "a"})
    table.add_columns({"y": plus_ten})  # bound again: the old values are no fresher for that
    assert run(table, "y", "local").rows_computed == 6
    assert column(table, "y") == [110 + i for i in range(6)]
    assert run(table, "y", "local").rows_computed == 0


def test_a_field_that_is_not_read_may_go(tmp_path: Path) -> None:
    table = of_structs(tmp_path, plus_ten)
    table.drop_columns(["m.b"])
    assert run(table, "y", "local").rows_computed == 0


def test_checkpoints_of_a_field_are_not_those_of_another_with_its_name(tmp_path: Path) -> None:
    calls = CallLog(tmp_path / "calls.log")

    @geneva.udf(input_columns=["m.a"], num_cpus=CPUS)
    def until_four(a: int) -> int:
        calls(a)
        if a == 4:
            raise ValueError("enough")
        return a + 10

    data = pa.table({"m": [{"a": i, "b": 100 + i} for i in range(6)]})
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns({"y": until_four})
    with pytest.raises(geneva.errors.UdfFailedError):
        run(table, "y", "local", batch_size=1)
    assert table.plan_backfill("y").rows_compute == 6
    table.alter_columns({"path": "m.a", "rename": "z"})
    table.alter_columns({"path": "m.b", "rename": "a"})
    result = run(table, "y", "local", batch_size=1)
    assert (result.rows_computed, result.rows_replayed) == (6, 0)
    assert column(table, "y") == [110 + i for i in range(6)]


def test_values_are_stale_when_a_field_moves_to_the_place_and_name_of_a_dropped_one(
    tmp_path: Path,
) -> None:
    m = [{"a": i, "b": 100 + i, "c": 200 + i} for i in range(6)]
    table = make_table(tmp_path, data=pa.table({"m": m}), fragments=2)
    table.add_columns({"y": plus_ten})
    assert run(table, "y", "local").rows_computed == 6
    for name, first in (("b", 100), ("c", 200)):
        table.drop_columns(["m.a"])
        table.alter_columns({"path": f"m.{name}", "rename": "a"})
        assert run(table, "y", "local").rows_computed == 6
        assert column(table, "y") == [first + 10 + i for i in range(6)]
        assert run(table, "y", "local").rows_computed == 0


def test_fields_of_one_name_on_the_way_down_are_told_apart(tmp_path: Path) -> None:
    @geneva.udf(input_columns=["m.a.a"])
    def deep(a: int) -> int:
        return a

    m = [{"a": {"a": i}, "b": {"a": 100 + i}} for i in range(4)]
    table = make_table(tmp_path, data=pa.table({"m": m}), fragments=1)
    table.add_columns({"y": deep})
    run(table, "y", "local")
    table.alter_columns({"path": "m.a", "rename": "z"})
    table.alter_columns({"path": "m.b", "rename": "a"})
    assert run(table, "y", "local").rows_computed == 4
    assert column(table, "y") == [100 + i for i in range(4)]


def test_a_column_bound_to_other_inputs_goes_by_their_fields(tmp_path: Path) -> None:
    @geneva.udf(input_columns=["n.b"])
    def other(b: int) -> int:
        return b

    data = {"m": [{"a": i} for i in range(4)], "n": [{"b": i, "q": i} for i in range(4)]}
    table = make_table(tmp_path, data=pa.table(data), fragments=1)
    table.add_columns({"y": plus_ten})
    table.add_columns({"y": other})
    assert run(table, "y", "local").rows_computed == 4
    table.drop_columns(["n.q"])
    assert run(table, "y", "local").rows_computed == 0


def test_a_column_that_reads_itself_notices_other_fields_too(tmp_path: Path) -> None:
    @geneva.udf(input_columns=["m.a", "y"], reads_own_output=True)
    def again(a: int, y: int | None) -> int:
        return a + (y or 0)

    m = [{"a": i, "b": 100 + i} for i in range(4)]
    table = make_table(tmp_path, data=pa.table({"m": m}), fragments=1)
    table.add_columns({"y": again})
    run(table, "y", "local")
    table.alter_columns({"path": "m.a", "rename": "z"})
    table.alter_columns({"path": "m.b", "rename": "a"})
    assert run(table, "y", "local").rows_computed == 4


def test_values_whose_struct_lost_a_field_and_went_itself_are_read_as_they_are(
    tmp_path: Path,
) -> None:
    @geneva.udf
    def length(y: str) -> int:
        return len(y)

    table = of_structs(tmp_path, whole)
    table.drop_columns(["m.b"])
    assert run(table, "y", "local").rows_computed == 6
    table.drop_columns(["m"])
    table.add_columns({"z": length})
    assert run(table, "z", "local").rows_computed == 6


def test_rows_are_looked_at_again_when_another_field_takes_the_name_in_their_filter(
    tmp_path: Path,
) -> None:
    m = [{"a": i, "b": 100 + i} for i in range(6)]
    table = make_table(tmp_path, data=pa.table({"x": range(6), "m": m}), fragments=1)
    table.add_columns({"y": ten_times})
    assert run(table, "y", "local", where="m.a = 103").rows_computed == 0
    table.drop_columns(["m.a"])
    table.alter_columns({"path": "m.b", "rename": "a"})
    assert run(table, "y", "local", where="m.a = 103").rows_computed == 1
    assert column(table, "y") == [None, None, None, 30, None, None]
    assert run(table, "y", "local", where="m.a = 103").rows_computed == 0


def exchange(table: geneva.Table, one: str, other: str) -> None:
    """Give each of two columns the other's name."""
    for path, name in ((one, "between"), (other, one), ("between", other)):
        lance.dataset(table.storage.uri).alter_columns({"path": path, "name": name})


@pytest.mark.parametrize("where", [None, "x >= 0"])
def test_inputs_of_one_udf_that_exchange_their_names(tmp_path: Path, where: str | None) -> None:
    @geneva.udf
    def both(x: int, w: int) -> int:
        return 1000 * x + w

    data = pa.table({"x": range(4), "w": range(100, 104)})
    table = make_table(tmp_path, data=data, fragments=2)
    table.add_columns({"y": both})
    for _ in range(2):
        assert run(table, "y", "local", where=where).rows_computed == 4
        assert_table_invariants(table, {"y": lambda r: 1000 * r["x"] + r["w"]})
        assert run(table, "y", "local", where=where).rows_computed == 0
        exchange(table, "x", "w")
    assert table.coverage("y").totals["stale"] == 4


def test_columns_of_a_filter_that_exchange_their_names(tmp_path: Path) -> None:
    data = pa.table({"x": range(6), "v": range(6), "w": range(5, -1, -1)})
    table = make_table(tmp_path, data=data, fragments=2)
    table.add_columns({"y": ten_times})
    where = "v < 2 and w > 0"
    assert run(table, "y", "local", where=where).rows_computed == 2
    exchange(table, "v", "w")
    assert run(table, "y", "local", where=where).rows_computed == 2
    assert column(table, "y") == [0, 10, None, None, 40, 50]


def test_values_proven_by_comparison_wait_for_ever_when_the_history_is_gone(
    tmp_path: Path,
) -> None:
    table = chain(tmp_path, {"x": [1, 2, 3, 4]}, 2)
    assert run(table, "y", "local", force=True).rows_computed == 4
    assert run(table, "z", "local").rows_computed == 0
    lance.dataset(table.storage.uri).cleanup_old_versions(older_than=dt.timedelta(0))
    assert table.coverage("z").totals["computed"] == 4
    table.add_columns({"w": geneva.udf(_less_one)})
    result = run(table, "w", "local")
    assert (result.rows_computed, result.rows_waiting) == (4, 0)
    assert column(table, "w") == [10, 20, 30, 40]


def test_rows_wait_for_ever_for_an_input_with_a_failed_row_when_the_history_is_gone(
    tmp_path: Path,
) -> None:
    @geneva.udf
    def y(x: int) -> int | None:
        if x == 3:
            raise ValueError
        return None if x == 4 else x

    @geneva.udf
    def z(y: int | None) -> int:
        return (y or 0) + 1

    table = make_table(tmp_path, rows=8, fragments=2)
    table.add_columns({"y": y})
    table.add_columns({"z": z})
    table.backfill("y", executor="local", on_error="null")
    lance.dataset(table.storage.uri).optimize.compact_files()
    assert run(table, "y", "local").rows_computed == 0
    lance.dataset(table.storage.uri).cleanup_old_versions(older_than=dt.timedelta(0))
    result = run(table, "z", "local")
    assert (result.rows_computed, result.rows_waiting) == (8, 0)
    assert column(table, "z") == [1, 2, 3, 1, 1, 6, 7, 8]


def _less_one(z: int) -> int:
    return z - 1
