"""Compaction while a job runs: results move with their rows, nothing is computed twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.engine.commit import remap
from geneva.storage.lance import TableStorage
from tests.support.backfills import times, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table


def compacting_udf(uri: str, calls: CallLog, at: int, delete: str | None) -> geneva.UDF:
    """A UDF whose call for one row has another writer delete rows and compact."""

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == at and calls.counts[str(at)] == 1:
            import lance as other

            if delete is not None:
                other.dataset(uri).delete(delete)
            other.dataset(uri).optimize.compact_files(
                target_rows_per_fragment=60, materialize_deletions_threshold=0.0
            )
        return 2 * x

    return double


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("delete", [None, "x % 10 = 3"])
def test_compaction_during_a_job_recomputes_nothing(
    tmp_path: Path, calls: CallLog, stable: bool, delete: str | None
) -> None:
    table = make_table(tmp_path, rows=120, fragments=6, stable=stable)
    table.add_columns({"y": compacting_udf(table.storage.uri, calls, 110, delete)})
    result = table.backfill("y", executor="local", concurrency=1)
    assert calls.counts.most_common(1)[0][1] == 1, "a row was computed twice"
    assert len(calls) == 120
    live = [x for x in range(120) if not (delete and x % 10 == 3)]
    assert column(table, "y") == [2 * x for x in live]
    assert len(lance.dataset(table.storage.uri).get_fragments()) < 6
    assert result.rows_computed == len(live)
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})
    assert table.backfill("y", executor="local").rows_computed == 0
    assert not table.storage.objects.list("work"), "checkpoints were left behind"


def test_compaction_of_an_input_that_changed_before_it_is_recomputed(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    uri = table.storage.uri

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 35 and calls.counts["35"] == 1:
            import lance as other
            import pyarrow as pa

            changed = pa.table({"s": [f"{'abc'[i % 3]}{i}" for i in (1, 2)], "x": [1001, 1002]})
            merge = other.dataset(uri).merge_insert("s").when_matched_update_all()
            merge.write_mode("rewrite_columns").execute(changed)
            other.dataset(uri).optimize.compact_files(target_rows_per_fragment=100)
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", executor="local", concurrency=1)
    table.backfill("y", executor="local", concurrency=1)
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})
    assert sorted(column(table, "y")) == sorted(2 * x for x in column(table, "x"))


def test_two_compactions_in_a_row_recompute_nothing(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=120, fragments=6)
    uri = table.storage.uri

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 110 and calls.counts["110"] == 1:
            import lance as other

            for rows, gone in ((40, "x = 5"), (70, "x = 77"), (1000, "x = 119")):
                other.dataset(uri).delete(gone)
                other.dataset(uri).optimize.compact_files(
                    target_rows_per_fragment=rows, materialize_deletions_threshold=0.0
                )
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", executor="local", concurrency=1)
    assert set(calls.counts.values()) == {1}
    assert column(table, "y") == [2 * x for x in range(120) if x not in (5, 77, 119)]
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})


def test_wide_results_of_a_compacted_fragment_are_all_read_at_once(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(tmp_path, rows=400, fragments=4)
    uri, size = table.storage.uri, 10_000

    @geneva.udf
    def wide(x: int) -> str:
        calls(x)
        if x == 399 and calls.counts["399"] == 1:
            import lance as other

            other.dataset(uri).optimize.compact_files(target_rows_per_fragment=1000)
        return f"{x:05}" * (size // 5)

    table.add_columns({"y": wide})
    monkeypatch.setattr(remap, "_BYTES", 10 * size)
    read, read_rows = [], TableStorage.read_rows

    def weighed(self: TableStorage, *args: Any) -> pa.Table:
        read.append(read_rows(self, *args))
        return read[-1]

    monkeypatch.setattr(TableStorage, "read_rows", weighed)
    table.backfill("y", executor="local", concurrency=1)
    assert set(calls.counts.values()) == {1}
    assert sum(t.num_rows for t in read) == 400
    assert max(t.num_rows for t in read) == remap._FIRST_ROWS
    assert column(table, "y") == [f"{x:05}" * (size // 5) for x in range(400)]


@dataclass(frozen=True)
class Unsynced(TableStorage):
    """Has another writer compact, and fails, when the first commit is made durable."""

    done: list[int] = field(default_factory=list)

    def sync_version(self, snapshot: Any) -> None:
        if not self.done:
            self.done.append(snapshot.version)
            lance.dataset(self.uri).optimize.compact_files(target_rows_per_fragment=1000)
            raise OSError("not now")
        super().sync_version(snapshot)


def test_fragments_that_were_committed_and_compacted_at_once_count_as_lost(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    storage = Unsynced(table.storage.uri, table.storage.options)
    result = geneva.Table(table, storage=storage).backfill("y", executor="local", concurrency=1)
    assert storage.done
    assert (result.rows_computed, result.fragments_committed, result.notes) == (40, 4, ())
    assert xs(calls) == list(range(40))
    assert column(table, "y") == [2 * x for x in range(40)]
    assert not table.storage.objects.list("work")
    assert_table_invariants(table)


@pytest.mark.parametrize("first", ["compact", "exchange"])
def test_results_of_an_input_that_lost_its_name_are_moved_to_the_new_one(
    tmp_path: Path, calls: CallLog, first: str
) -> None:
    data = pa.table({"x": range(40), "w": range(100, 140)})
    table = make_table(tmp_path, data=data, fragments=4)
    uri = table.storage.uri

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 35 and calls.counts["35"] == 1:
            import lance as other

            for what in sorted(("compact", "exchange"), key=lambda w: w != first):
                if what == "compact":
                    other.dataset(uri).optimize.compact_files()
                    continue
                for old, new in (("x", "between"), ("w", "x"), ("between", "w")):
                    other.dataset(uri).alter_columns({"path": old, "name": new})
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", executor="local", concurrency=1, batch_size=1)
    table.backfill("y", executor="local")
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})
