"""Values that look fresh and are not, or look stale and are not, after what other writers did."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.errors import StorageError
from tests.support.backfills import run, times, xs
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

    def sync_file(self, name: str) -> None:
        super().sync_file(name)
        if self.meddle is not None:
            self.meddle()


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
