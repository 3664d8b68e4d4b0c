"""Which rows are computed: every rule and worked example of the contract, one test each."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pytest

import geneva
from geneva.errors import JobError
from tests.support.backfills import CPUS, Gate, run, times, until, watched, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, database_of, make_table, pairs
from tests.support.writers import rewrite_column

DOUBLED = {"y": lambda row: 2 * row["x"]}


@pytest.fixture(params=[("local", False), ("local", True), ("ray", False)], ids=str)
def mode(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Executor, and whether rows keep their ids (what is planned then, no executor can tell)."""
    executor, stable = request.param
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    return executor, stable


def doubled(path: Path, calls: CallLog, **options: Any) -> geneva.Table:
    """Return a table of 40 rows in 4 fragments whose column y is 2 * x, not yet computed."""
    table = make_table(path, **{"rows": 40, "fragments": 4} | options)
    table.add_columns({"y": times(calls)})
    return table


def writer(table: geneva.Table) -> Any:
    """Return somebody else's handle on the table, which knows nothing of geneva."""
    return lancedb.connect(database_of(table)).open_table(table.name)


def versions_gone(table: geneva.Table) -> None:
    lance.dataset(table.storage.uri).cleanup_old_versions(older_than=dt.timedelta(0))


# --- rule 1: without where, what is missing or stale ----------------------------------------


def test_first_run_leaves_rows_out(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls, fragments=3)
    assert run(table, "y", executor).rows_computed == 40
    assert xs(calls) == list(range(40))
    assert column(table, "y") == [2 * i for i in range(40)]
    assert_table_invariants(table, DOUBLED)


def test_honest_null_is_taken_for_a_missing_value(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int | None:
        calls(x)
        return None if x % 2 else x

    table.add_columns({"y": y})
    assert run(table, "y", executor).rows_computed == 40
    assert column(table, "y") == [None if i % 2 else i for i in range(40)]
    xs(calls)
    assert run(table, "y", executor).rows_computed == 0
    assert run(table, "y", executor, where="x < 15").rows_computed == 15
    xs(calls)
    # the values of x < 15 and those carried over in their fragments are all still known
    assert run(table, "y", executor).rows_computed == 0
    writer(table).optimize()
    assert run(table, "y", executor).rows_computed == 0
    assert not len(calls)


def test_column_of_nothing_but_honest_nulls_is_computed_for_ever(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> str | None:
        calls(x)
        return None

    table.add_columns({"y": y})
    run(table, "y", executor)
    assert xs(calls) == list(range(20))
    assert run(table, "y", executor).rows_computed == 0
    assert not len(calls)


# --- rule 2: with where, whatever it selects ------------------------------------------------


def test_where_overwrites_other_rows_or_miscounts(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="x < 5")
    xs(calls)
    result = run(table, "y", executor, where="x < 12")
    assert (result.rows_computed, result.rows_overwritten) == (12, 5)
    assert xs(calls) == list(range(12))
    assert column(table, "y") == [2 * i if i < 12 else None for i in range(40)]
    assert_table_invariants(table, DOUBLED)


def test_null_filter_selects_no_row(tmp_path: Path, calls: CallLog, executor: str) -> None:
    data = pa.table({"x": pa.array(range(20)), "n": pa.array([None, 1] * 10, pa.int64())})
    table = doubled(tmp_path, calls, data=data, fragments=2)
    assert run(table, "y", executor, where="n > 0").rows_computed == 10
    assert xs(calls) == list(range(1, 20, 2))
    assert run(table, "y", executor, where="n is null or n < 0").rows_computed == 10


def test_and_is_null_overwrites(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="x < 5")
    xs(calls)
    result = run(table, "y", executor, where="x < 12 and y is null")
    assert (result.rows_computed, result.rows_overwritten) == (7, 0)
    assert xs(calls) == list(range(5, 12))
    assert run(table, "y", executor, where="x < 12 and y is null").rows_computed == 0
    assert_table_invariants(table, DOUBLED)


# --- rule 3: the same command again ---------------------------------------------------------


def test_same_command_reads_data_to_find_nothing_to_do(tmp_path: Path, calls: CallLog) -> None:
    table = doubled(tmp_path, calls)
    reads = CallLog(tmp_path / "reads")
    for options in ({"where": "x < 12"}, {}):
        table.backfill("y", executor="local", **options)
        xs(calls)
        for _ in range(2):  # also from the ledger of a call that itself did nothing
            again = watched(table, reads).backfill("y", executor="local", **options)
            assert (again.rows_computed, again.versions) == (0, ())
            assert not [k for k in reads.keys if k.startswith("scan")]
    assert not len(calls)


def test_same_filter_that_matched_nothing_is_scanned_for_ever(
    tmp_path: Path, calls: CallLog
) -> None:
    table = doubled(tmp_path, calls)
    reads = CallLog(tmp_path / "reads")
    table.backfill("y", executor="local", where="x > 1000")
    again = watched(table, reads).backfill("y", executor="local", where="x > 1000")
    assert again.rows_computed == 0
    assert not reads.keys


def test_two_overlapping_filters_overwrite_each_other_for_ever(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    assert run(table, "y", executor, where="x < 25").rows_computed == 25
    assert run(table, "y", executor, where="x >= 15").rows_computed == 25
    xs(calls)
    for where in ("x < 25", "x >= 15", "x < 25"):
        assert run(table, "y", executor, where=where).rows_computed == 0
    assert not len(calls)
    assert_table_invariants(table, DOUBLED)


def test_same_filter_written_otherwise_computes_again(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    assert run(table, "y", executor, where="x < 25 and s is not null").rows_computed == 25
    xs(calls)
    again = run(table, "y", executor, where='(("x")<25)  AND (s IS NOT NULL)')
    assert again.rows_computed == 0


def test_row_that_comes_to_match_the_filter_is_left_out(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    assert run(table, "y", executor, where="starts_with(s, 'a')").rows_computed == 14
    xs(calls)
    writer(table).update(where="x = 31", values={"s": "a new name"})
    run(table, "y", executor, where="starts_with(s, 'a')")
    found = xs(calls)
    assert 31 in found
    assert set(found) <= {31}  # the rows of other fragments are done
    assert pairs(table, "x", "y")[31] == 62
    assert_table_invariants(table, DOUBLED)


def test_row_that_no_longer_matches_the_filter_is_lost(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="starts_with(s, 'a')")
    writer(table).update(where="x = 30", values={"s": "b"})
    xs(calls)
    run(table, "y", executor, where="starts_with(s, 'a')")
    assert 30 not in xs(calls)
    assert pairs(table, "x", "y")[30] == 60


def test_filter_after_no_filter_forgets_what_it_computed(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    assert run(table, "y", executor, where="x < 10").rows_overwritten == 10
    xs(calls)
    for options in ({}, {"where": "x < 10"}, {}):
        assert run(table, "y", executor, **options).rows_computed == 0


# --- rule 4: force --------------------------------------------------------------------------


def test_force_leaves_out_what_was_recorded(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    for options, rows in (({}, 40), ({"where": "x < 10"}, 10), ({}, 40)):
        xs(calls)
        result = run(table, "y", executor, force=True, **options)
        assert (result.rows_computed, result.rows_overwritten) == (rows, rows)
        assert xs(calls) == list(range(rows))
    assert run(table, "y", executor).rows_computed == 0
    assert_table_invariants(table, DOUBLED)


def test_forced_run_in_parts_starts_over_with_each_part(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    for _ in range(4):
        assert run(table, "y", executor, force=True, num_frags=1).rows_computed == 10
    assert xs(calls) == list(range(40))
    # that run is complete: the same command begins another one
    assert run(table, "y", executor, force=True, num_frags=1).rows_computed == 10
    assert len(xs(calls)) == 10


def test_forced_run_that_goes_on_leaves_what_became_stale_since_it_began(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", "local")
    run(table, "y", "local", force=True, num_frags=1)
    rewrite_column(table.storage.uri, "x", lambda v: v + 100 * (v < 4), [0], "update")
    xs(calls)
    assert run(table, "y", executor, force=True).rows_computed == 40
    assert len(xs(calls)) == 40
    assert_table_invariants(table, DOUBLED)


def test_forced_run_that_failed_starts_over(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    mended = Gate(tmp_path / "mended")
    mended.open()

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        if x == 25 and not mended.is_open:
            raise ValueError("not yet mended")
        calls(x)
        return 2 * x

    table.add_columns({"y": y})
    run(table, "y", executor)
    Path(mended.path).unlink()
    xs(calls)
    with pytest.raises(JobError, match="not yet mended"):
        table.backfill("y", executor=executor, concurrency=1, batch_size=1, force=True)
    before = xs(calls)
    # Batches that were in flight when the row failed are finished and kept; an applier has begun
    # its next fragment by the time that the driver tells it to stop.
    assert list(range(25)) == before[:25]
    assert set(before[25:]) <= set(range(26, 40))
    mended.open()
    result = table.backfill("y", executor=executor, concurrency=1, batch_size=1, force=True)
    assert sorted(before + xs(calls)) == list(range(40))
    assert result.rows_overwritten == result.rows_computed
    assert_table_invariants(table, DOUBLED)


# --- rule 5: num_frags ----------------------------------------------------------------------


def test_num_frags_counts_fragments_without_work(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="x < 20")
    xs(calls)
    assert run(table, "y", executor, num_frags=1).rows_computed == 10
    assert xs(calls) == list(range(20, 30))
    assert run(table, "y", executor, num_frags=1).rows_computed == 10
    assert xs(calls) == list(range(30, 40))
    assert run(table, "y", executor, num_frags=1).rows_computed == 0


def test_num_frags_counts_fragments_where_the_filter_selects_nothing(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    result = run(table, "y", executor, where="x in (15, 35, 36)", num_frags=1)
    assert (result.rows_computed, result.fragments_committed) == (1, 1)
    assert run(table, "y", executor, where="x in (15, 35, 36)", num_frags=1).rows_computed == 2
    assert xs(calls) == [15, 35, 36]


# --- rule 6: deleted rows -------------------------------------------------------------------


def test_deleted_row_is_passed_to_the_udf(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    writer(table).delete("x in (0, 9, 13, 39) or (x >= 20 and x < 30)")
    left = [i for i in range(40) if i not in (0, 9, 13, 39) and not 20 <= i < 30]
    assert run(table, "y", executor, where="x < 15").rows_computed == 12
    assert run(table, "y", executor).rows_computed == len(left) - 12
    assert xs(calls) == left
    writer(table).delete("x = 1")
    assert run(table, "y", executor, where="x < 5", force=True).rows_computed == 3
    assert xs(calls) == [2, 3, 4]
    assert pairs(table, "x", "y") == {i: 2 * i for i in left if i != 1}
    assert_table_invariants(table, DOUBLED)


def test_deleting_rows_makes_others_stale(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    writer(table).delete("x % 3 = 0")
    assert run(table, "y", executor).rows_computed == 0
    assert_table_invariants(table, DOUBLED)


# --- rule 7: rows that wait -----------------------------------------------------------------


def chained(path: Path, calls: CallLog, **options: Any) -> geneva.Table:
    """Return a table where z = y + 1 and y = 2 * x, null for x = 3."""
    table = make_table(path, **{"rows": 40, "fragments": 4} | options)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int | None:
        calls(f"y{x}")
        return None if x == 3 else 2 * x

    @geneva.udf(num_cpus=CPUS)
    def z(y: int) -> int:
        calls(f"z{y}")
        return -1 if y is None else y + 1

    table.add_columns({"z": z, "y": y})
    return table


def passed(calls: CallLog, column_name: str) -> list[str]:
    found = [k[1:] for k in calls.keys if k[0] == column_name]
    return sorted(found)


def test_row_is_computed_before_its_input_is(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = chained(tmp_path, calls)
    result = run(table, "z", executor)
    assert (result.rows_computed, result.rows_waiting) == (0, 40)
    run(table, "y", "local", where="x < 15")
    result = run(table, "z", executor)
    assert (result.rows_computed, result.rows_waiting) == (15, 25)
    assert column(table, "z")[3] == -1  # an input that is null is a value like any other
    run(table, "y", "local")
    result = run(table, "z", executor)
    assert (result.rows_computed, result.rows_waiting) == (25, 0)
    assert set(calls.counts.values()) == {1}
    assert run(table, "z", executor).rows_computed == 0


def test_where_passes_rows_that_should_wait(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = chained(tmp_path, calls)
    run(table, "y", "local", where="x < 15")
    result = table.backfill("z", executor=executor, where="x < 20", concurrency=1)
    assert result.rows_computed == 15
    run(table, "y", "local")
    assert table.backfill("z", executor=executor, where="x < 20", concurrency=1).rows_computed == 5
    assert set(calls.counts.values()) == {1}


def test_inputs_as_is_waits(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = chained(tmp_path, calls)
    run(table, "y", "local", where="x < 10")
    result = run(table, "z", executor, inputs="as_is")
    assert (result.rows_computed, result.rows_waiting) == (40, 0)
    assert column(table, "z")[20:] == [-1] * 20
    # what was computed from a missing input is stale once the input is there
    run(table, "y", "local")
    calls.clear()
    assert run(table, "z", executor).rows_computed == 30
    assert column(table, "z") == [-1 if i == 3 else 2 * i + 1 for i in range(40)]


def test_row_whose_input_is_stale_is_passed_the_old_value(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = chained(tmp_path, calls)
    run(table, ["y", "z"], "local")
    table.alter_columns({"path": "y", "udf": times(calls, 3)})
    result = run(table, "z", executor, force=True)
    assert (result.rows_computed, result.rows_waiting) == (0, 40)
    calls.clear()
    result = run(table, ["z", "y"], executor)
    assert column(table, "z") == [3 * i + 1 for i in range(40)]
    assert result.rows_computed == 40 + 39  # y of x = 0 is the same with both UDFs


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("how", ["dropped", "renamed"])
def test_computed_input_cannot_be_read_once_its_own_input_is_gone(
    tmp_path: Path, calls: CallLog, how: str, compacted: bool
) -> None:
    table = chained(tmp_path, calls)
    run(table, "y", "local", num_frags=3)
    if compacted:
        writer(table).optimize()
    other = lance.dataset(table.storage.uri)
    if how == "dropped":
        other.drop_columns(["x"])
    else:
        other.alter_columns({"path": "x", "name": "w"})
    result = run(table, "z", "local")
    assert (result.rows_computed, result.rows_waiting) == (30, 10)
    assert table.coverage("z").totals["computed"] == 30
    assert column(table, "z")[:30] == [-1 if i == 3 else 2 * i + 1 for i in range(30)]
    assert run(table, "z", "local", inputs="as_is").rows_computed == 10


# --- rule 8: several columns (their shared reads: test_shared_reads.py) ---------------------


def test_columns_are_computed_in_the_order_given(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = chained(tmp_path, calls)
    result = run(table, ["z", "y"], executor)
    assert (result.rows_computed, result.rows_waiting) == (80, 0)
    assert set(result.columns) == {"y", "z"}
    assert column(table, "z") == [-1 if i == 3 else 2 * i + 1 for i in range(40)]
    assert run(table, ["z", "y"], executor).rows_computed == 0


# --- rule 9: the version that where sees ----------------------------------------------------


def test_filter_changes_its_mind_while_the_job_runs(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        calls(x)
        if x == 0:
            gate.wait()
        return 2 * x

    table.add_columns({"y": y})
    job = table.backfill_async(
        "y", where="s like 'a%'", commit_granularity=1, concurrency=1, batch_size=1,
        executor=executor,
    )  # fmt: skip
    until(lambda: calls.keys)
    other = writer(table)
    other.update(where="x = 30", values={"s": "b30"})  # matched when the job was planned
    other.update(where="x = 31", values={"s": "a31"})  # did not
    gate.open()
    job.wait(60)
    assert 30 in {int(k) for k in calls.keys}
    assert 31 not in {int(k) for k in calls.keys}
    calls.clear()
    run(table, "y", executor, where="s like 'a%'")
    assert 31 in xs(calls)
    assert_table_invariants(table, DOUBLED)


def test_filter_on_the_target_sees_what_the_job_wrote(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="x < 5")
    xs(calls)
    result = table.backfill(
        "y", where="y is null", commit_granularity=1, concurrency=1, executor=executor
    )
    assert (result.rows_computed, result.rows_overwritten) == (35, 0)
    assert xs(calls) == list(range(5, 40))


# --- the worked examples that no rule above has shown ---------------------------------------


def test_appended_rows_bring_old_ones_back(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    writer(table).add(pa.table({"x": pa.array(range(100, 110)), "s": ["n"] * 10}))
    assert run(table, "y", executor).rows_computed == 10
    assert xs(calls) == list(range(100, 110))
    assert_table_invariants(table, DOUBLED)


def test_other_filter_takes_the_values_of_the_first(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    a, b = ("starts_with(s, 'a')", "starts_with(s, 'b')")
    run(table, "y", executor, where=a)
    first = xs(calls)
    assert run(table, "y", executor, where=a).rows_computed == 0
    run(table, "y", executor, where=b)
    second = xs(calls)
    assert first == list(range(0, 40, 3))
    assert second == list(range(1, 40, 3))
    assert column(table, "y") == [None if i % 3 == 2 else 2 * i for i in range(40)]
    assert run(table, "y", executor).rows_computed == 13
    assert xs(calls) == list(range(2, 40, 3))


def test_changed_udf_leaves_old_values(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    table.alter_columns({"path": "y", "udf": times(calls, 3)})
    assert table.coverage("y").totals["stale"] == 40
    assert run(table, "y", executor).rows_computed == 40
    assert column(table, "y") == [3 * i for i in range(40)]
    assert table.coverage("y").totals["stale"] == 0


def test_embedding_command_misses_content_that_came_later(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = chained(tmp_path, calls)
    run(table, "y", "local", where="x < 15")
    assert run(table, "z", executor, where="y is not null").rows_computed == 14
    calls.clear()
    run(table, "y", "local", where="x >= 15 and x < 25")
    run(table, "z", executor, where="y is not null")
    assert passed(calls, "z") == sorted(str(2 * i) for i in range(15, 25))
    assert column(table, "z") == [2 * i + 1 if i < 25 and i != 3 else None for i in range(40)]


def test_stale_value_survives_another_writers_update(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    xs(calls)
    writer(table).update(where="x = 13", values={"x": 1013})
    assert pairs(table, "x", "y")[1013] == 26  # the old value came along
    assert table.coverage("y").totals["stale"] + table.coverage("y").totals["missing"] == 1
    assert run(table, "y", executor).rows_computed == 1
    assert xs(calls) == [1013]
    assert run(table, "y", executor).rows_computed == 0
    assert_table_invariants(table, DOUBLED)


def test_update_of_an_unrelated_column_makes_rows_stale(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    xs(calls)
    writer(table).update(where="x >= 5 and x < 25", values={"s": "z"})
    assert run(table, "y", executor).rows_computed == 0
    assert not len(calls)


def test_update_that_swaps_inputs_swaps_stale_values_unseen(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    xs(calls)
    # 3 becomes 4 and 4 becomes 3: every value of x and y is still there, but not side by side
    writer(table).update(where="x in (3, 4)", values_sql={"x": "7 - x"})
    run(table, "y", executor)
    assert xs(calls) == [3, 4]
    assert_table_invariants(table, DOUBLED)


def test_merge_insert_leaves_stale_or_missing_rows(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    data = pa.table({"id": pa.array(range(40)), "x": pa.array(range(40)), "s": ["a"] * 40})
    table = doubled(tmp_path, calls, data=data, stable=stable)
    run(table, "y", executor)
    xs(calls)
    new = pa.table({"id": pa.array([5, 6, 50]), "x": pa.array([5, 600, 5000]), "s": ["m"] * 3})
    # columns that merge_insert's source does not have must be given: y as the table has it
    full = new.append_column("y", pa.array([10, 12, None], pa.int64()))
    writer(table).merge_insert(
        "id"
    ).when_matched_update_all().when_not_matched_insert_all().execute(full)
    run(table, "y", executor)
    found = xs(calls)
    assert {600, 5000} <= set(found) <= {5, 600, 5000}
    assert pairs(table, "x", "y") == {x: 2 * x for x in pairs(table, "x", "y")}
    assert run(table, "y", executor).rows_computed == 0
    assert_table_invariants(table, DOUBLED)


def test_merge_insert_of_only_the_input_leaves_stale_rows(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    data = pa.table({"id": pa.array(range(40)), "x": pa.array(range(40))})
    table = doubled(tmp_path, calls, data=data, stable=stable)
    run(table, "y", executor)
    xs(calls)
    part = pa.table({"id": pa.array([6, 7]), "x": pa.array([600, 700])})
    lance.dataset(table.storage.uri).merge_insert("id").when_matched_update_all().execute(part)
    run(table, "y", executor)
    assert {600, 700} <= set(xs(calls))
    assert pairs(table, "x", "y") == {x: 2 * x for x in pairs(table, "x", "y")}
    assert run(table, "y", executor).rows_computed == 0
    assert_table_invariants(table, DOUBLED)


def test_input_column_dropped_and_added_again_keeps_stale_values(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    other = lance.dataset(table.storage.uri)
    other.add_columns({"x2": "x + 100"})
    other.drop_columns(["x"])
    other.alter_columns({"path": "x2", "name": "x"})
    assert run(table, "y", executor).rows_computed == 40
    assert xs(calls) == list(range(100, 140))
    assert_table_invariants(table, DOUBLED)


# --- compaction -----------------------------------------------------------------------------


def test_compaction_makes_values_stale(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    xs(calls)
    writer(table).optimize()
    assert len(table.storage.open().fragments) == 1
    assert run(table, "y", executor).rows_computed == 0
    assert table.coverage("y").totals["computed"] == 40
    assert not len(calls)


def test_compaction_forgets_what_a_filter_computed(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor, where="x < 15")
    writer(table).delete("x % 10 = 9")
    writer(table).optimize()
    xs(calls)
    assert run(table, "y", executor, where="x < 15").rows_computed == 0
    assert run(table, "y", executor).rows_computed == 22
    assert xs(calls) == [i for i in range(15, 40) if i % 10 != 9]
    assert_table_invariants(table, DOUBLED)


def test_compaction_after_an_update_hides_the_stale_row(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    xs(calls)
    writer(table).update(where="x = 13", values={"x": 1013})
    writer(table).optimize()
    writer(table).add(pa.table({"x": pa.array([77]), "s": ["n"]}))
    writer(table).optimize()
    assert run(table, "y", executor).rows_computed == 2
    assert xs(calls) == [77, 1013]
    assert_table_invariants(table, DOUBLED)


def test_chain_is_computed_again_after_compaction(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = chained(tmp_path, calls)
    run(table, ["y", "z"], "local")
    writer(table).optimize()
    calls.clear()
    assert run(table, ["y", "z"], executor).rows_computed == 0
    assert run(table, "y", "local", where="x < 4").rows_computed == 4
    # The inputs of four rows were computed again, to the same values; the others were carried over.
    assert run(table, "z", executor).rows_computed == 0
    table.update(where="x < 4", values_sql={"y": "y + 1000"})
    calls.clear()
    run(table, "z", executor)
    assert len(calls) == 3  # y of x = 3 is null still


# --- foreign, unverified, failed ------------------------------------------------------------


def test_correction_by_hand_is_overwritten(
    tmp_path: Path, calls: CallLog, mode: tuple[str, bool]
) -> None:
    executor, stable = mode
    table = doubled(tmp_path, calls, stable=stable)
    run(table, "y", executor)
    xs(calls)
    writer(table).update(where="x = 13", values={"y": -1})
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_foreign) == (0, 1)
    assert "somebody else wrote" in str(result)
    assert pairs(table, "x", "y")[13] == -1
    writer(table).optimize()
    assert run(table, "y", executor).rows_foreign == 1
    result = run(table, "y", executor, foreign="recompute")
    assert (result.rows_computed, result.rows_overwritten) == (1, 1)
    assert xs(calls) == [13]
    assert run(table, "y", executor).rows_foreign == 0
    assert_table_invariants(table, DOUBLED)


@pytest.mark.parametrize("options", [{"where": "x = 13"}, {"force": True}])
def test_where_or_force_keeps_a_foreign_value(
    tmp_path: Path, calls: CallLog, executor: str, options: dict[str, Any]
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    writer(table).update(where="x = 13", values={"y": -1})
    run(table, "y", executor, **options)
    assert pairs(table, "x", "y")[13] == 26
    assert run(table, "y", executor).rows_foreign == 0


def test_value_appended_with_its_row_is_overwritten(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    more = {"x": [100, 101], "s": ["n", "n"], "y": pa.array([-5, None], pa.int64())}
    writer(table).add(pa.table(more))
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_foreign) == (1, 1)
    assert xs(calls) == [101]
    assert pairs(table, "x", "y")[100] == -5
    assert run(table, "y", executor).rows_computed == 0


def test_binding_to_a_column_with_data_overwrites_it(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    data = pa.table({"x": pa.array(range(20)), "y": pa.array([7, None] * 10, pa.int64())})
    table = make_table(tmp_path, data=data, fragments=2)
    table.add_columns({"y": times(calls)})
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_foreign) == (10, 10)
    assert xs(calls) == list(range(1, 20, 2))
    assert column(table, "y") == [2 * i if i % 2 else 7 for i in range(20)]
    assert run(table, "y", executor).rows_computed == 0
    assert run(table, "y", executor, foreign="recompute").rows_computed == 10
    assert_table_invariants(table, DOUBLED)


def without_history(table: geneva.Table) -> None:
    """Compact, and forget all versions and all proofs, as if the table came from elsewhere."""
    writer(table).optimize()
    versions_gone(table)
    for ledger in table.storage.objects.list("ledger"):
        table.storage.objects.delete(ledger)


def test_values_without_history_are_recomputed(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="x < 30")
    without_history(table)
    xs(calls)
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_unverified) == (10, 30)
    assert "without history" in str(result)
    assert xs(calls) == list(range(30, 40))
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_unverified) == (0, 30)
    result = run(table, "y", executor, unverified="recompute")
    assert (result.rows_computed, result.rows_overwritten) == (30, 30)
    assert xs(calls) == list(range(30))
    assert run(table, "y", executor).rows_unverified == 0
    assert_table_invariants(table, DOUBLED)


def test_weekly_compaction_and_cleanup_recompute_a_column(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    writer(table).optimize()
    versions_gone(table)
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_unverified) == (0, 40)
    assert not len(calls)


def test_cleanup_alone_loses_what_is_known(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor, where="x < 15")
    run(table, "y", executor)
    versions_gone(table)
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_unverified) == (0, 0)
    assert table.coverage("y").totals["computed"] == 40


def test_failed_rows_are_tried_again_unasked_or_never(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    mended = Gate(tmp_path / "mended")

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        calls(x)
        if x % 10 == 7 and not mended.is_open:
            raise ValueError(f"cannot do {x}")
        return 2 * x

    @geneva.udf(num_cpus=CPUS)
    def z(y: int) -> int:
        return -1 if y is None else y + 1

    table.add_columns({"y": y})
    table.add_columns({"z": z})
    result = run(table, "y", executor, on_error="null")
    assert (result.rows_computed, result.rows_failed) == (40, 4)
    assert sorted(result.failures["input"].to_pylist()) == [f"x={i}" for i in (17, 27, 37, 7)]
    assert [pairs(table, "x", "y")[i] for i in (7, 17, 27, 37)] == [None] * 4
    xs(calls)

    result = run(table, "y", executor, on_error="null")
    assert (result.rows_computed, result.rows_failed_before) == (0, 4)
    assert "retry_failed=True" in str(result)
    assert run(table, "z", executor).rows_waiting == 0  # sees null
    assert pairs(table, "x", "z")[7] == -1

    mended.open()
    result = run(table, "y", executor, retry_failed=True)
    assert (result.rows_computed, result.rows_failed) == (4, 0)
    assert xs(calls) == [7, 17, 27, 37]
    assert column(table, "y") == [2 * i for i in range(40)]
    run(table, "z", executor)
    assert column(table, "z") == [2 * i + 1 for i in range(40)]
    assert run(table, "y", executor, retry_failed=True).rows_computed == 0


def test_filter_cannot_select_failed_rows_again(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    mended = Gate(tmp_path / "mended")

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        calls(x)
        if x == 7 and not mended.is_open:
            raise ValueError("no")
        return 2 * x

    table.add_columns({"y": y})
    run(table, "y", executor, on_error="null")
    mended.open()
    xs(calls)
    assert run(table, "y", executor, where="y is null").rows_computed == 1
    assert xs(calls) == [7]
    assert_table_invariants(table, DOUBLED)


# --- drop and add again, params -------------------------------------------------------------


def test_dropped_and_added_column_keeps_the_old_record(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    table.drop_columns(["y"])
    table.add_columns({"y": times(calls)})
    assert column(table, "y") == [None] * 40
    xs(calls)
    assert run(table, "y", executor).rows_computed == 40
    assert xs(calls) == list(range(40))


def test_params_of_one_call_are_taken_for_the_declared_ones(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)

    @geneva.udf(params={"factor": 2}, num_cpus=CPUS)
    def y(x: int, factor: int) -> int:
        calls(x)
        return factor * x

    table.add_columns({"y": y})
    run(table, "y", executor)
    assert run(table, "y", executor, params={"factor": 5}, where="x < 5").rows_computed == 5
    assert column(table, "y") == [5 * i if i < 5 else 2 * i for i in range(20)]
    assert run(table, "y", executor, params={"factor": 5}, where="x < 5").rows_computed == 0
    # of another digest than the column's: stale for the plain command
    assert run(table, "y", executor).rows_computed == 5
    assert_table_invariants(table, DOUBLED)


def test_renamed_column_is_computed_again(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = doubled(tmp_path, calls)
    run(table, "y", executor)
    xs(calls)
    lance.dataset(table.storage.uri).alter_columns({"path": "y", "name": "renamed"})
    assert run(table, "renamed", executor).rows_computed == 0
    assert run(table, "renamed", executor, where="x < 4").rows_computed == 4
    assert column(table, "renamed") == [2 * i for i in range(40)]


# --- only: at most these rows -----------------------------------------------------------------


def test_limit_to_rows_does_not_make_others_done(tmp_path: Path, calls: CallLog) -> None:
    table = doubled(tmp_path, calls)
    for _ in range(2):
        run(table, "y", "local", only=[(0, 3, 5), (2, 9, 99), (7, 0, 1)])
    assert xs(calls) == [3, 4, 29]  # the second time nothing is left of them
    assert run(table, "y", "local", where="x < 3", only=[(0, 5, 9)]).rows_computed == 0
    assert run(table, "y", "local", where="x < 3").rows_computed == 3
    assert run(table, "y", "local").rows_computed == 34
    assert_table_invariants(table, DOUBLED)
    assert column(table, "y") == [2 * i for i in range(40)]


def test_forced_run_of_some_rows_does_not_end_one_of_all(tmp_path: Path, calls: CallLog) -> None:
    table = doubled(tmp_path, calls)
    assert run(table, "y", "local", force=True, num_frags=1).rows_computed == 10
    assert run(table, "y", "local", force=True, only=[(0, 2, 4)]).rows_computed == 2
    assert run(table, "y", "local", force=True).rows_computed == 30  # the first one goes on
    assert column(table, "y") == [2 * i for i in range(40)]
