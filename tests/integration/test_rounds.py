"""A job that plans more than once, or whose command is given again: what carries over is right."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest

import geneva
import geneva.engine.round
from geneva.errors import StorageError, TableChangedError, UdfFailedError
from geneva.model.types import JobState
from geneva.storage.lance import TableStorage
from tests.support.backfills import Gate, run, times, until, xs
from tests.support.calls import CallLog
from tests.support.faults import FaultError
from tests.support.tables import assert_table_invariants, column, make_table, pairs
from tests.support.writers import MeddledStorage, Once, rewrite_column

JOURNALED_S = 0.06  # a batch this slow is checkpointed


def slow(calls: CallLog, seconds: float, batch_size: int = 1) -> geneva.UDF:
    @geneva.udf(batch_size=batch_size)
    def ten_times(x: int) -> int:
        calls(x)
        time.sleep(seconds)
        return x * 10

    return ten_times


# --- pause ----------------------------------------------------------------------------------


def test_job_resumed_before_it_had_paused_ends_early(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=6, fragments=6)
    table.add_columns({"y": slow(calls, 0.4)})
    job = table.backfill_async("y", executor="local", concurrency=1)
    until(lambda: len(calls) == 2)
    job.pause()
    until(lambda: job.state in (JobState.PAUSING, JobState.PAUSED))
    job.resume()
    result = job.wait(60)
    assert (result.rows_computed, result.fragments_left) == (6, 0)
    assert column(table, "y") == [10 * x for x in range(6)]
    assert set(calls.counts.values()) == {1}


def test_job_paused_during_a_compaction_ends_early(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=12, fragments=6)
    table.add_columns({"y": slow(calls, JOURNALED_S)})
    job = table.backfill_async("y", executor="local", concurrency=1)
    until(lambda: len(calls) >= 3)
    job.pause()
    until(lambda: job.state == JobState.PAUSED)
    lance.dataset(table.storage.uri).optimize.compact_files()
    job.resume()
    assert job.wait(60).fragments_left == 0
    assert column(table, "y") == [10 * x for x in range(12)]
    assert run(table, "y", "local").rows_computed == 0


def test_job_breaks_on_a_task_that_outlived_the_pause(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geneva.engine.round, "_GRACE_S", 0.2)
    table = make_table(tmp_path, rows=6, fragments=3)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(batch_size=1)
    def stuck(x: int) -> int:
        calls(x)
        gate.wait()
        return x * 10

    table.add_columns({"y": stuck})
    job = table.backfill_async("y", executor="local", concurrency=1)
    until(lambda: len(calls) == 1)
    job.pause()
    until(lambda: job.state == JobState.PAUSED)
    job.resume()
    until(lambda: len(calls) == 2)  # the abandoned call is still out when the next round begins
    gate.open()
    result = job.wait(60)
    assert (result.rows_computed, result.fragments_left) == (6, 0)
    assert column(table, "y") == [10 * x for x in range(6)]
    assert_table_invariants(table, {"y": lambda row: 10 * row["x"]})


# --- other writers --------------------------------------------------------------------------


def test_forced_run_that_had_to_plan_again_forgets_its_place(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=10, fragments=5)
    table.add_columns({"y": times(calls, 10)})
    run(table, "y", "local")
    calls.clear()
    uri = table.storage.uri
    action = Once(uri, str(tmp_path / "acted"), _rewrite_first)
    table = geneva.Table(table, storage=MeddledStorage(uri, meddle=action))
    left = [
        table.backfill("y", executor="local", concurrency=1, force=True, num_frags=2).fragments_left
        for _ in range(3)
    ]
    assert action.ran
    assert left == [3, 1, 0]
    assert xs(calls) == [0, 1, *range(2, 10), 100, 101]  # 0 and 1: computed, then thrown away
    assert pairs(table, "x", "y") == {x: 10 * x for x in [100, 101, *range(2, 10)]}


def _rewrite_first(uri: str) -> None:
    rewrite_column(uri, "x", lambda v: v + 100, [0], "update")


@dataclass(frozen=True)
class CleanedStorage(TableStorage):
    """A cleanup removes the planned version before any worker opened it; they all miss it."""

    cleaned: Gate | None = None
    cleanup: Once | None = None

    def open(self, version: int | None = None) -> Any:
        if version is not None and self.cleaned is not None and self.cleanup is not None:
            self.cleanup()
            self.cleaned.wait()
        return super().open(version)


def test_one_cleanup_counts_as_a_fault_for_every_span_of_a_fragment(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=200, fragments=1)
    table.add_columns({"y": slow(calls, 0.01, batch_size=4)})
    gate = Gate(tmp_path / "cleaned")

    def clean_up(uri: str) -> None:
        lance.dataset(uri).delete("x = 199")
        lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))
        gate.open()

    uri = table.storage.uri
    cleanup = Once(uri, str(tmp_path / "acted"), clean_up)
    table = geneva.Table(table, storage=CleanedStorage(uri, cleaned=gate, cleanup=cleanup))
    table.backfill("y", executor="local", concurrency=4)
    assert cleanup.ran
    assert pairs(table, "x", "y") == {x: 10 * x for x in range(199)}


def test_drop_of_a_column_that_waits_for_its_turn_raises_a_key_error(
    tmp_path: Path, calls: CallLog
) -> None:
    gate = Gate(tmp_path / "gate")

    @geneva.udf
    def ten_times(x: int) -> int:
        calls(x)
        gate.wait()
        return x * 10

    table = make_table(tmp_path, rows=6, fragments=1)
    table.add_columns({"y": ten_times, "z": times(calls)})
    job = table.backfill_async(["y", "z"], executor="local", concurrency=1)
    until(lambda: len(calls) == 1)
    lance.dataset(table.storage.uri).drop_columns(["z"])
    gate.open()
    with pytest.raises(TableChangedError, match="'z'"):
        job.wait(60)
    assert column(table, "y") == [10 * x for x in range(6)]


# --- the command again, after a crash -------------------------------------------------------


class UnpublishedStorage(TableStorage):
    """Fails when column files are finished and not yet committed."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        raise FaultError("died before the commit")


def die_before_the_commit(table: geneva.Table, name: str, **options: Any) -> None:
    dying = geneva.Table(table, storage=UnpublishedStorage(table.storage.uri))
    with pytest.raises(StorageError, match="died before the commit"):
        dying.backfill(name, executor="local", concurrency=1, **options)


def test_finished_file_is_taken_up_for_a_command_that_asks_for_more_rows(
    tmp_path: Path, calls: CallLog
) -> None:
    @geneva.udf
    def one_more(y: int) -> int:
        calls(y)
        time.sleep(JOURNALED_S)
        return -1 if y is None else y + 1

    table = make_table(tmp_path, rows=6, fragments=1)
    table.add_columns({"y": times(calls, 10)})
    table.add_columns({"z": one_more})
    run(table, "y", "local", where="x < 3")
    die_before_the_commit(table, "z", where="x < 100")
    calls.clear()
    table.backfill("z", executor="local", concurrency=1, where="x < 100", inputs="as_is")
    assert column(table, "z") == [1, 11, 21, -1, -1, -1]
    assert set(calls.keys) <= {"0", "10", "20", "None"}
    again = table.backfill("z", executor="local", concurrency=1, where="x < 100", inputs="as_is")
    assert again.rows_computed == 0


def test_finished_file_is_taken_up_for_a_filter_that_selects_other_rows_now(
    tmp_path: Path, calls: CallLog
) -> None:
    @geneva.udf(name="chosen", version="1")
    def few(x: int) -> bool:
        return x < 3

    @geneva.udf(name="chosen", version="2")
    def every(x: int) -> bool:
        return True

    table = make_table(tmp_path, rows=6, fragments=1)
    table.add_columns({"chosen": few, "y": slow(calls, JOURNALED_S)})
    run(table, "chosen", "local")
    die_before_the_commit(table, "y", where="chosen")
    table.alter_columns({"path": "chosen", "udf": every})
    assert run(table, "chosen", "local").rows_computed == 6
    run(table, "y", "local", where="chosen")
    assert column(table, "y") == [10 * x for x in range(6)]
    assert run(table, "y", "local", where="chosen").rows_computed == 0


def test_retry_failed_after_a_crash_computes_checkpoints_again(
    tmp_path: Path, calls: CallLog
) -> None:
    gate = Gate(tmp_path / "repaired")

    @geneva.udf(batch_size=1)
    def breaks(x: int) -> int:
        calls(x)
        time.sleep(JOURNALED_S)
        if x == 6 and not gate.is_open:
            raise ValueError("not yet")
        return x * 10

    table = make_table(tmp_path, rows=8, fragments=1)
    table.add_columns({"y": breaks})
    with pytest.raises(UdfFailedError, match="not yet"):
        table.backfill("y", executor="local", concurrency=1)
    before = set(xs(calls)) - {6}
    assert before  # something was checkpointed
    gate.open()
    run(table, "y", "local", on_error="null", retry_failed=True)
    assert column(table, "y") == [10 * x for x in range(8)]
    assert set(xs(calls)) == set(range(8)) - before


def test_failed_row_is_retried_once_and_never_again(tmp_path: Path, calls: CallLog) -> None:
    gate = Gate(tmp_path / "repaired")

    @geneva.udf
    def flaky(x: int) -> int:
        calls(x)
        if x == 3 and not gate.is_open:
            raise ValueError("not yet")
        return x * 10

    table = make_table(tmp_path, rows=8, fragments=2)
    table.add_columns({"y": flaky})
    options = {"where": "x < 6", "on_error": "null"}
    assert run(table, "y", "local", **options).rows_failed == 1
    assert run(table, "y", "local", **options, retry_failed=True).rows_failed == 1
    gate.open()
    calls.clear()
    assert run(table, "y", "local", **options, retry_failed=True).rows_computed == 1
    assert set(xs(calls)) == {3}
    assert pairs(table, "x", "y") == {x: 10 * x if x < 6 else None for x in range(8)}
    assert run(table, "y", "local", **options, retry_failed=True).rows_computed == 0
