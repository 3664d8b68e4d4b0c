"""Backfills cut into windows: slices of one job, in order, each fragment written once."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import geneva
from geneva import Windows
from geneva.errors import SettingError, UdfFailedError
from tests.support.backfills import CPUS, run
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, make_table

ROWS, PER_WINDOW = 400, 50
RANGE = range(50, 350)  # six of the eight windows' worth of rows


def windows(**others: Any) -> Windows:
    return Windows("ts", **{"start": 50, "end": 350, "step": PER_WINDOW} | others)


def table_of(path: Path, *, shuffled: bool, fragments: int = 8) -> geneva.Table:
    ts = np.arange(ROWS)
    if shuffled:
        np.random.default_rng(7).shuffle(ts)
    data = pa.table({"x": pa.array(ts, pa.int64()), "ts": ts})
    return make_table(path, data=data, fragments=fragments)


def logged(calls: CallLog) -> geneva.UDF:
    @geneva.udf(num_cpus=CPUS, name="logged")
    def next_of(x: int) -> int:
        calls(x)
        return x + 1

    return next_of


def values(table: geneva.Table) -> dict[int, int | None]:
    rows = lance.dataset(table.storage.uri).to_table(columns=["x", "y"])
    return dict(zip(rows["x"].to_pylist(), rows["y"].to_pylist(), strict=True))


def windows_in_order(keys: list[str]) -> list[int]:
    return [k for k, _ in itertools.groupby(int(x) // PER_WINDOW for x in keys)]


def column_files(table: geneva.Table) -> int:
    return sum(p.name.startswith("gv.") for p in Path(table.storage.uri, "data").iterdir())


shuffled = pytest.mark.parametrize("shuffled", [False, True], ids=["in_order", "shuffled"])


@shuffled
@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.disk(reason="counts files")
def test_rows_of_the_range_are_computed_once_window_by_window(
    tmp_path: Path, executor: str, calls: CallLog, shuffled: bool, order: str
):
    table = table_of(tmp_path, shuffled=shuffled)
    table.add_columns({"y": logged(calls)})
    asked = windows(order=order, commit="fragment")
    result = run(table, "y", executor, windows=asked, concurrency=2)
    assert result.rows_computed == len(RANGE)
    assert sorted(int(k) for k in calls.keys) == list(RANGE)
    expected = [1, 2, 3, 4, 5, 6]
    assert windows_in_order(calls.keys) == (expected if order == "forward" else expected[::-1])
    assert values(table) == {x: x + 1 if x in RANGE else None for x in range(ROWS)}
    touched = 8 if shuffled else 6
    assert result.fragments_committed == column_files(table) == touched
    assert [w.rows_computed for w in result.windows] == [PER_WINDOW] * 6
    assert_table_invariants(table)


@shuffled
def test_rows_outside_the_windows_are_left_to_the_next_call(
    tmp_path: Path, executor: str, calls: CallLog, shuffled: bool
):
    table = table_of(tmp_path, shuffled=shuffled)
    table.add_columns({"y": logged(calls)})
    assert run(table, "y", executor, windows=windows()).rows_outside == ROWS - len(RANGE)
    calls.clear()
    assert run(table, "y", executor, windows=windows()).rows_computed == 0
    assert run(table, "y", executor, windows=windows(step=25)).rows_computed == 0
    wider = run(table, "y", executor, windows=windows(start=0))
    assert wider.rows_computed == PER_WINDOW
    assert run(table, "y", executor).rows_computed == PER_WINDOW
    assert sorted(int(k) for k in calls.keys) == [*range(50), *range(350, 400)]
    assert values(table) == {x: x + 1 for x in range(ROWS)}
    assert_table_invariants(table)


def test_rebound_column_is_stale_whatever_range_was_asked_for_before(
    tmp_path: Path, calls: CallLog
):
    table = table_of(tmp_path, shuffled=True)
    table.add_columns({"y": logged(calls)})
    run(table, "y", "local")
    table.alter_columns({"path": "y", "udf": geneva.udf(lambda x: x + 2, data_type=pa.int64())})
    counts = [
        run(table, "y", "local", windows=windows(start=0, end=150)).rows_computed,
        run(table, "y", "local", windows=windows(start=0, end=350)).rows_computed,
        run(table, "y", "local").rows_computed,
    ]
    assert counts == [150, 200, 50]
    assert values(table) == {x: x + 2 for x in range(ROWS)}


@shuffled
def test_filter_and_windows_compute_the_rows_of_both(
    tmp_path: Path, executor: str, calls: CallLog, shuffled: bool
):
    table = table_of(tmp_path, shuffled=shuffled)
    table.add_columns({"y": logged(calls)})
    result = run(table, "y", executor, windows=windows(), where="x % 3 = 0")
    chosen = [x for x in RANGE if x % 3 == 0]
    assert sorted(int(k) for k in calls.keys) == chosen
    assert result.rows_computed == len(chosen)
    assert windows_in_order(calls.keys) == [1, 2, 3, 4, 5, 6]
    assert run(table, "y", executor, windows=windows(), where="x % 3 = 0").rows_computed == 0
    assert_table_invariants(table)


@pytest.mark.parametrize(("order", "first"), [("forward", 50), ("backward", 250)])
def test_num_frags_takes_the_first_fragments_in_the_order_of_windows(
    tmp_path: Path, calls: CallLog, order: str, first: int
):
    table = table_of(tmp_path, shuffled=False)
    table.add_columns({"y": logged(calls)})
    result = run(table, "y", "local", windows=windows(order=order), num_frags=2)
    assert sorted(int(k) for k in calls.keys) == list(range(first, first + 100))
    assert result.fragments_committed == 2


def test_windows_that_are_open_together_are_never_more_than_asked(tmp_path: Path, calls: CallLog):
    table = table_of(tmp_path, shuffled=True)
    table.add_columns({"y": logged(calls)})
    asked = windows(concurrency=2)
    table.backfill("y", executor="local", concurrency=4, windows=asked)
    seen = [int(x) // PER_WINDOW for x in calls.keys]
    last = {w: max(k for k, s in enumerate(seen) if s == w) for w in range(1, 7)}
    for k, w in enumerate(seen):
        assert sum(last[before] >= k for before in range(1, w)) < 2


def test_window_that_fails_stops_the_next_or_is_passed_over(tmp_path: Path):
    @geneva.udf(num_cpus=CPUS)
    def brittle(x: int) -> int:
        if x == 120:
            raise ValueError("bad")
        return x + 1

    for on_failure, done in (("stop", 50), ("continue", 250)):
        table = table_of(tmp_path / on_failure, shuffled=False)
        table.add_columns({"y": brittle})
        with pytest.raises(UdfFailedError, match="bad"):
            table.backfill(
                "y", executor="local", concurrency=1, windows=windows(on_failure=on_failure)
            )
        held = [x for x, y in values(table).items() if y is not None]
        assert len([x for x in held if not 100 <= x < 150]) == done
        assert_table_invariants(table)


def test_rows_without_a_value_are_the_last_window_or_none(tmp_path: Path, calls: CallLog):
    ts = [None if k % 4 == 0 else k for k in range(40)]
    data = pa.table({"x": range(40), "ts": pa.array(ts, pa.int64())})
    table = make_table(tmp_path, data=data, fragments=4)
    table.add_columns({"y": logged(calls)})
    skipping = run(table, "y", "local", windows=Windows("ts", start=0, end=40, step=10))
    assert (skipping.rows_computed, skipping.rows_null) == (30, 10)
    last = run(table, "y", "local", windows=Windows("ts", step=10, nulls="last"))
    assert last.rows_computed == 10
    states = [(w.key, w.state, w.windows) for w in last.windows]
    assert states == [("0", "SKIPPED", 4), ("(null)", "COMMITTED", 1)]


def test_column_that_is_filled_is_no_window_of_itself(tmp_path: Path, calls: CallLog):
    table = table_of(tmp_path, shuffled=False)
    table.add_columns({"y": logged(calls)})
    with pytest.raises(SettingError, match="'y'"):
        table.backfill("y", windows=Windows("y", start=0, end=10))


def test_range_without_a_row_succeeds_and_says_what_there_is(tmp_path: Path, calls: CallLog):
    table = table_of(tmp_path, shuffled=False)
    table.add_columns({"y": logged(calls)})
    result = run(table, "y", "local", windows=windows(start=1000, end=2000))
    assert result.rows_computed == 0
    assert any("0 to 399" in note for note in result.notes)


@shuffled
def test_killed_job_computes_nothing_twice_with_the_same_or_other_windows(
    tmp_path: Path, calls: CallLog, shuffled: bool
):
    table = table_of(tmp_path, shuffled=shuffled)

    @geneva.udf(num_cpus=CPUS, version="1")
    def stops(x: int) -> int:
        if x == 220 and not (tmp_path / "go").exists():
            raise RuntimeError("stop here")
        calls(x)
        return x + 1

    table.add_columns({"y": stops})
    options: dict[str, Any] = {"executor": "local", "checkpoint_size": 1, "batch_size": 1}
    with pytest.raises(UdfFailedError):
        table.backfill("y", windows=windows(), **options)
    before = len(calls)
    assert before >= 150
    (tmp_path / "go").touch()
    resumed = table.backfill("y", windows=windows(), **options)
    assert [w.rows_computed for w in resumed.windows] == [w.rows_planned for w in resumed.windows]
    assert resumed.rows_replayed + len(calls) - before == resumed.rows_computed
    for asked in (windows(step=20), windows(start=0, end=400), None):
        more = {} if asked is None else {"windows": asked}
        table.backfill("y", **options, **more)
    assert calls.counts == {str(x): 1 for x in range(ROWS)}
    assert values(table) == {x: x + 1 for x in range(ROWS)}
    assert_table_invariants(table)


def test_row_that_another_writer_moves_into_the_range_is_computed_next(
    tmp_path: Path, calls: CallLog
):
    table = table_of(tmp_path, shuffled=False)
    table.add_columns({"y": logged(calls)})
    options: dict[str, Any] = {"windows": windows(), "where": "x >= 0"}
    assert run(table, "y", "local", **options).rows_computed == len(RANGE)
    moved = lance.dataset(table.storage.uri).merge_insert("x").when_matched_update_all()
    moved.write_mode("rewrite_columns").execute(pa.table({"x": [3, 390], "ts": [60, 70]}))
    table.refresh()
    calls.clear()
    assert run(table, "y", "local", **options).rows_computed == 2
    assert sorted(int(k) for k in calls.keys) == [3, 390]


def test_rows_whose_window_is_still_to_be_computed_wait(tmp_path: Path, calls: CallLog):
    table = table_of(tmp_path, shuffled=False)
    hour = geneva.udf(lambda ts: ts // 10, data_type=pa.int64(), name="hour")
    table.add_columns({"hour": hour, "y": logged(calls)})
    asked = Windows("hour", start=0, end=20, step=5)
    result = run(table, "y", "local", windows=asked)
    assert result.rows_computed == 0
    run(table, "hour", "local")
    assert run(table, "y", "local", windows=asked).rows_computed == 200
    assert windows_in_order(calls.keys) == [0, 1, 2, 3]


def test_bar_names_the_open_windows(tmp_path: Path):
    table = make_table(tmp_path, rows=40, fragments=4)

    @geneva.udf(input_columns=["x"])
    def slowly(x: int) -> int:
        time.sleep(0.03)  # a task takes longer than the bar's next look
        return x

    table.add_columns({"y": slowly})
    shown: list[str] = []

    def see(progress: Any) -> None:
        if progress.windows and progress.windows not in shown:
            shown.append(progress.windows)

    windows = Windows("x", start=0, end=40, step=20, order="backward")
    table.backfill("y", windows=windows, executor="local", concurrency=1, progress=see)
    assert shown == ["window 20 (1 of 2)", "window 0 (2 of 2)"]
