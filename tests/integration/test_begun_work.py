"""A compaction after a backfill was stopped: what it had begun is found in the new fragments."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest

import geneva
from geneva.column.file import ColumnFileName
from geneva.errors import GenevaError, StorageError, UdfFailedError
from geneva.storage.lance import TableStorage
from tests.support.backfills import run
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table

DOUBLED = {"y": lambda row: 2 * row["x"]}


def doubling(calls: CallLog, stop: str, at: int) -> geneva.UDF:
    """A UDF that fails on one row until a file is there."""

    @geneva.udf
    def double(x: int) -> int:
        import os

        if x == at and not os.path.exists(stop):
            raise RuntimeError("stopped")
        calls(x)
        return 2 * x

    return double


def begun(
    tmp_path: Path, calls: CallLog, at: int = 25, executor: str = "local", **options: Any
) -> tuple[geneva.Table, set[int]]:
    """Return a table of 4 x 10 rows whose backfill stopped at a row, and what it computed."""
    table = make_table(tmp_path, rows=40, fragments=4, stable=bool(options.pop("stable", False)))
    stop = tmp_path / "goes on"
    table.add_columns({"y": doubling(calls, str(stop), at)})
    with pytest.raises(UdfFailedError):
        run(table, "y", executor, concurrency=1, batch_size=1, **options)
    stop.touch()
    return table, {int(k) for k in calls.keys}


def compact(table: geneva.Table, rows: int = 1000) -> None:
    lance.dataset(table.storage.uri).optimize.compact_files(
        target_rows_per_fragment=rows, materialize_deletions_threshold=0.0
    )


def check_exactly_once(table: geneva.Table, calls: CallLog, live: int = 40) -> None:
    assert set(calls.counts.values()) == {1}
    assert len(column(table, "y")) == live
    assert_table_invariants(table, DOUBLED)
    assert not table.storage.objects.list("work")


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.parametrize("stable", [False, True])
def test_checkpoints_survive_a_compaction_that_deletes_rows(
    tmp_path: Path, calls: CallLog, request: pytest.FixtureRequest, executor: str, stable: bool
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    table, done = begun(tmp_path, calls, executor=executor, stable=stable)
    lance.dataset(table.storage.uri).delete("x in (3, 21, 39)")
    compact(table)
    result = run(table, "y", executor, concurrency=2, batch_size=1)
    assert done >= set(range(25))
    assert result.rows_replayed >= 4  # of the fragment that was begun; others were committed
    assert set(calls.counts.values()) == {1}
    assert_table_invariants(table, DOUBLED)
    assert not table.storage.objects.list("work")


def test_checkpoints_survive_chains_of_compactions_and_stops(
    tmp_path: Path, calls: CallLog
) -> None:
    table, _ = begun(tmp_path, calls, 5)
    for rows, gone, most in ((20, "x = 1", 1), (30, "x = 8", 1), (1000, "x = 30", None)):
        compact(table, rows)
        lance.dataset(table.storage.uri).delete(gone)
        compact(table, rows)
        run(table, "y", "local", concurrency=1, batch_size=1, num_frags=most)
    check_exactly_once(table, calls, 37)


def test_checkpoints_survive_a_compaction_whose_older_versions_are_gone(
    tmp_path: Path, calls: CallLog
) -> None:
    table, _ = begun(tmp_path, calls)
    compact(table)
    lance.dataset(table.storage.uri).cleanup_old_versions(older_than=dt.timedelta(0))
    run(table, "y", "local")
    check_exactly_once(table, calls)


def test_checkpoints_of_an_input_that_was_rewritten_on_the_way_are_not_used(
    tmp_path: Path, calls: CallLog
) -> None:
    from tests.support.writers import rewrite_column

    table, _ = begun(tmp_path, calls, 35)
    uri = table.storage.uri
    rewrite_column(uri, "x", lambda x: x + 100, [3], "update")
    compact(table)
    run(table, "y", "local")
    assert_table_invariants(table, DOUBLED)
    assert not table.storage.objects.list("work")


def test_checkpoints_of_a_filtered_run_survive_a_compaction(tmp_path: Path, calls: CallLog) -> None:
    table, _ = begun(tmp_path, calls, 26, where="x % 2 = 0")
    compact(table)
    run(table, "y", "local", where="x % 2 = 0")
    assert sorted(map(int, calls.keys)) == list(range(0, 40, 2))
    assert not table.storage.objects.list("work")


def test_failed_rows_stay_failed_over_a_compaction(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    stop = tmp_path / "goes on"

    @geneva.udf
    def picky(x: int) -> int:
        import os

        calls(x)
        if x == 13:
            raise ValueError("thirteen")
        if x == 27 and not os.path.exists(stop):
            os.kill(os.getpid(), 2)
        return 2 * x

    table.add_columns({"y": picky})
    with pytest.raises(GenevaError):
        run(
            table, "y", "local", concurrency=1, batch_size=1, on_error="null", commit_granularity=64
        )
    stop.touch()
    compact(table)
    result = run(table, "y", "local", on_error="null")
    assert calls.counts["13"] == 1
    assert result.rows_failed <= 1
    assert column(table, "y")[13] is None
    assert not table.storage.objects.list("work")


@dataclass(frozen=True)
class Unpublished(TableStorage):
    """Every commit fails."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no commit today")


def files(table: geneva.Table) -> list[str]:
    return [n for n in table.storage.list_files() if ColumnFileName.parse(n) is not None]


@pytest.mark.parametrize("batch_size", [None, 1])
def test_column_files_that_were_never_committed_survive_a_compaction(
    tmp_path: Path, calls: CallLog, batch_size: int | None
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    stop = tmp_path / "goes on"
    stop.touch()
    table.add_columns({"y": doubling(calls, str(stop), -1)})
    failing = geneva.Table(table, storage=Unpublished(table.storage.uri))
    with pytest.raises(StorageError):
        failing.backfill("y", executor="local", batch_size=batch_size)
    assert len(files(table)) == 4
    compact(table)
    run(table, "y", "local")
    check_exactly_once(table, calls)
    assert len(files(table)) == 1, "files of no version were left behind"


def test_share_of_a_begun_fragment_waits_for_the_call_that_takes_it(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=40, fragments=1)
    stop = tmp_path / "goes on"
    table.add_columns({"y": doubling(calls, str(stop), 30)})
    with pytest.raises(UdfFailedError):
        run(table, "y", "local", concurrency=1, batch_size=1)
    stop.touch()
    lance.dataset(table.storage.uri).delete("x = 0")
    compact(table, 13)  # one becomes several
    pieces = len(lance.dataset(table.storage.uri).get_fragments())
    for _ in range(pieces):
        run(table, "y", "local", num_frags=1)
    check_exactly_once(table, calls, 39)


def test_followers_of_a_shared_read_keep_their_checkpoints(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    stop, other = tmp_path / "goes on", CallLog(tmp_path / "other.log")

    @geneva.udf
    def triple(x: int) -> int:
        other(x)
        return 3 * x

    table.add_columns({"y": doubling(calls, str(stop), 25), "z": triple})
    with pytest.raises(UdfFailedError):
        table.backfill(["y", "z"], executor="local", concurrency=1, batch_size=1)
    stop.touch()
    assert len(other) > 10
    compact(table)
    table.backfill(["y", "z"], executor="local", concurrency=1, batch_size=1)
    assert set(calls.counts.values()) == set(other.counts.values()) == {1}
    assert_table_invariants(table, DOUBLED | {"z": lambda row: 3 * row["x"]})
    assert not table.storage.objects.list("work")
