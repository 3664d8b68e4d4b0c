"""Other writers while a backfill runs: a real one acts, while rows are computed or at the commit.

``compute``: during the first UDF call; the engine finds the change when it opens the latest
version. ``commit``: after it opened that, so the commit itself meets the conflict.
"""

from __future__ import annotations

import datetime as dt
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.engine.commit import publish
from geneva.errors import (
    JobCancelledError,
    JobTimeoutError,
    StorageError,
    SupersededError,
    TableChangedError,
)
from geneva.model.types import JobState
from geneva.storage.lance import TableStorage
from geneva.storage.values import CommitConflict
from tests.support.backfills import times, until, xs
from tests.support.calls import CallLog
from tests.support.tables import (
    assert_table_invariants,
    column,
    database,
    database_of,
    make_table,
    pairs,
)
from tests.support.writers import (
    Action,
    ContestedStorage,
    MeddledStorage,
    Once,
    rewrite_column,
    unaware,
)

ROWS, FRAGMENTS = 40, 4
ALL = {i: 2 * i for i in range(ROWS)}
DOUBLED = {"y": lambda row: 2 * row["x"]}

both_moments = pytest.mark.parametrize("moment", ["compute", "commit"])


@dataclass
class Case:
    table: geneva.Table
    calls: CallLog
    meddle: Once

    def backfill(self, **arguments: Any) -> geneva.BackfillResult:
        """Run the job that is meddled with; the other writer must really have acted."""
        arguments = {"executor": "local", "concurrency": 1} | arguments
        try:
            return self.table.backfill("y", **arguments)
        finally:
            assert self.meddle.ran

    def again(self, **arguments: Any) -> geneva.BackfillResult:
        fresh = geneva.connect(database_of(self.table)).open_table("t")
        return fresh.backfill("y", executor="local", concurrency=1, **arguments)

    def settle(self, computed: int) -> None:
        """Run the same command until nothing is left; check the rows it computed."""
        assert self.again().rows_computed == computed
        assert self.again().rows_computed == 0
        values = pairs(self.table, "x", "y")
        assert values == {x: 2 * x for x in values}
        assert_table_invariants(self.table, DOUBLED)

    @property
    def uri(self) -> str:
        return self.table.storage.uri

    @property
    def computed_once(self) -> bool:
        return self.calls.counts == {str(i): 1 for i in range(ROWS)}


def start(
    path: Path,
    calls: CallLog,
    action: Action,
    moment: str,
    *,
    stable: bool = False,
    data: pa.Table | None = None,
) -> Case:
    table = make_table(path, rows=ROWS, fragments=FRAGMENTS, stable=stable, data=data)
    uri = table.storage.uri
    meddle = Once(uri, str(path / "acted"), action)
    during = meddle if moment == "compute" else Once(uri, "", None)

    @geneva.udf
    def double(x: int) -> int:
        during()
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    if moment == "commit":
        table = geneva.Table(table, storage=MeddledStorage(uri, meddle=meddle))
    return Case(table, calls, meddle)


def append(uri: str) -> None:
    more = {"x": list(range(100, 110)), "s": ["n"] * 10}
    lance.write_dataset(pa.table(more), uri, mode="append")


# --- rows ---------------------------------------------------------------------------------


@both_moments
def test_append_neither_stops_the_job_nor_joins_it(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    case = start(tmp_path, calls, append, moment)
    result = case.backfill()
    assert result.rows_computed == ROWS
    assert pairs(case.table, "x", "y") == ALL | {i: None for i in range(100, 110)}
    assert case.computed_once
    case.settle(10)


@both_moments
def test_append_joins_a_job_that_asked_for_new_rows(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    case = start(tmp_path, calls, append, moment)
    assert case.backfill(include_new=True).rows_computed == ROWS + 10
    case.settle(0)
    assert set(case.calls.counts.values()) == {1}


@both_moments
def test_delete_in_the_same_fragments_costs_no_call_and_holds(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def delete(uri: str) -> None:
        lance.dataset(uri).delete("x % 3 = 1")

    case = start(tmp_path, calls, delete, moment)
    case.backfill()
    assert pairs(case.table, "x", "y") == {i: 2 * i for i in range(ROWS) if i % 3 != 1}
    assert case.computed_once
    case.settle(0)


@both_moments
def test_delete_of_a_whole_fragment_does_not_bring_it_back(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def delete(uri: str) -> None:
        lance.dataset(uri).delete("x < 10")

    case = start(tmp_path, calls, delete, moment)
    case.backfill()
    assert pairs(case.table, "x", "y") == {i: 2 * i for i in range(10, ROWS)}
    assert case.computed_once
    case.settle(0)


@both_moments
def test_delete_of_every_row_leaves_an_empty_table(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def delete(uri: str) -> None:
        lance.dataset(uri).delete("true")

    case = start(tmp_path, calls, delete, moment)
    case.backfill()
    assert column(case.table, "y") == []
    case.settle(0)


@both_moments
@pytest.mark.parametrize("stable", [False, True])
def test_update_of_an_input_leaves_just_the_moved_rows_for_the_next_run(
    tmp_path: Path, calls: CallLog, moment: str, stable: bool
) -> None:
    def update(uri: str) -> None:
        lance.dataset(uri).update({"x": "x + 1000"}, where="x in (3, 17)")

    case = start(tmp_path, calls, update, moment, stable=stable)
    case.backfill()
    kept = {x: y for x, y in pairs(case.table, "x", "y").items() if x < 1000}
    assert kept == {i: 2 * i for i in range(ROWS) if i not in (3, 17)}
    case.settle(2)
    assert case.calls.counts == {str(i): 1 for i in [*range(ROWS), 1003, 1017]}


@both_moments
def test_update_of_another_column_loses_no_row(tmp_path: Path, calls: CallLog, moment: str) -> None:
    def update(uri: str) -> None:
        lance.dataset(uri).update({"s": "'changed'"}, where="x in (3, 17)")

    case = start(tmp_path, calls, update, moment)
    case.backfill()
    case.settle(2)  # moved before they had a value
    assert pairs(case.table, "x", "s")[17] == "changed"


@both_moments
def test_merge_insert_of_old_and_new_rows_leaves_just_those(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def merge(uri: str) -> None:
        new = pa.table({"x": [5, 25, 500], "s": ["m"] * 3, "y": pa.nulls(3, pa.int64())})
        builder = lance.dataset(uri).merge_insert("x")
        builder.when_matched_update_all().when_not_matched_insert_all().execute(new)

    case = start(tmp_path, calls, merge, moment)
    case.backfill()
    assert {x for x, y in pairs(case.table, "x", "y").items() if y is None} <= {5, 25, 500}
    # The writer gave the matched rows a null of its own: its value, kept until asked otherwise.
    case.again(foreign="recompute")
    case.settle(0)


@both_moments
def test_insert_only_merge_conflicts_with_nothing(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def merge(uri: str) -> None:
        new = pa.table({"x": [5, 500], "s": ["m"] * 2})
        lance.dataset(uri).merge_insert("x").when_not_matched_insert_all().execute(new)

    case = start(tmp_path, calls, merge, moment)
    case.backfill()
    assert case.computed_once
    case.settle(1)


# --- compaction ---------------------------------------------------------------------------


def compact(uri: str) -> None:
    lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=1000)


@both_moments
@pytest.mark.parametrize("stable", [False, True])
def test_compaction_loses_no_value(
    tmp_path: Path, calls: CallLog, moment: str, stable: bool
) -> None:
    case = start(tmp_path, calls, compact, moment, stable=stable)
    case.backfill()
    assert pairs(case.table, "x", "y") == ALL
    assert len(lance.dataset(case.uri).get_fragments()) == 1
    assert max(case.calls.counts.values()) <= 2
    case.settle(0)


@both_moments
def test_compaction_that_also_removes_deleted_rows_shifts_no_value(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def delete_and_compact(uri: str) -> None:
        lance.dataset(uri).delete("x % 4 = 2")
        compact(uri)

    case = start(tmp_path, calls, delete_and_compact, moment)
    case.backfill()
    assert pairs(case.table, "x", "y") == {i: 2 * i for i in range(ROWS) if i % 4 != 2}
    case.settle(0)


def test_compaction_between_two_commits_of_a_job_keeps_the_committed_ones(
    tmp_path: Path, calls: CallLog
) -> None:
    case = start(tmp_path, calls, append, "compute")
    table = case.table

    @geneva.udf
    def late(x: int) -> int:
        if x == 25:
            compact(uri)
        return 2 * x

    uri = case.uri
    table.alter_columns({"path": "y", "udf": late})
    table.backfill("y", executor="local", concurrency=1, batch_size=10, commit_granularity=1)
    assert pairs(table, "x", "y") == ALL
    assert table.backfill("y", executor="local").rows_computed == 0
    assert_table_invariants(table, DOUBLED)


@both_moments
def test_compaction_and_cleanup_at_once_leave_a_job_that_finishes(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def both(uri: str) -> None:
        compact(uri)
        lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))

    case = start(tmp_path, calls, both, moment)
    case.backfill(batch_size=2)
    assert pairs(case.table, "x", "y") == ALL
    case.settle(0)


# --- other columns ------------------------------------------------------------------------


@both_moments
def test_added_column_costs_no_call(tmp_path: Path, calls: CallLog, moment: str) -> None:
    def add(uri: str) -> None:
        lance.dataset(uri).add_columns({"z": "x + 1"})

    case = start(tmp_path, calls, add, moment)
    assert case.backfill().rows_computed == ROWS
    assert case.computed_once
    assert pairs(case.table, "x", "z") == {i: i + 1 for i in range(ROWS)}
    case.settle(0)


@both_moments
def test_another_column_backfilled_in_the_same_fragments_loses_neither(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def other(uri: str) -> None:
        @geneva.udf
        def triple(x: int) -> int:
            return 3 * x

        table = geneva.connect(database_of(uri)).open_table("t")
        table.add_columns({"z": triple})
        table.backfill("z", executor="local", concurrency=1)

    case = start(tmp_path, calls, other, moment)
    case.backfill()
    assert case.computed_once
    assert pairs(case.table, "x", "z") == {i: 3 * i for i in range(ROWS)}
    case.settle(0)
    assert case.table.backfill("z", executor="local").rows_computed == 0


@both_moments
def test_drop_of_another_column_costs_no_call(tmp_path: Path, calls: CallLog, moment: str) -> None:
    def drop(uri: str) -> None:
        lance.dataset(uri).drop_columns(["s"])

    case = start(tmp_path, calls, drop, moment)
    case.backfill()
    assert case.computed_once
    assert "s" not in lance.dataset(case.uri).schema.names
    case.settle(0)


@both_moments
def test_rename_of_another_column_costs_no_call(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def rename(uri: str) -> None:
        lance.dataset(uri).alter_columns({"path": "s", "name": "text"})

    case = start(tmp_path, calls, rename, moment)
    case.backfill()
    assert case.computed_once
    assert pairs(case.table, "x", "text")[0] == "a0"
    case.settle(0)


@both_moments
def test_rename_of_the_input_commits_what_was_computed_from_it(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def rename(uri: str) -> None:
        lance.dataset(uri).alter_columns({"path": "x", "name": "number"})

    case = start(tmp_path, calls, rename, moment)
    case.backfill()
    assert case.computed_once
    assert pairs(case.table, "number", "y") == ALL
    assert_table_invariants(case.table)


@both_moments
@pytest.mark.parametrize("indexed", ["x", "y"])
def test_index_created_meanwhile_answers_with_the_new_values(
    tmp_path: Path, calls: CallLog, moment: str, indexed: str
) -> None:
    def index(uri: str) -> None:
        lance.dataset(uri).create_scalar_index(indexed, "BTREE")

    case = start(tmp_path, calls, index, moment)
    case.backfill()
    assert case.computed_once
    dataset = lance.dataset(case.uri)
    for i in range(0, ROWS, 7):
        assert dataset.to_table(filter=f"y = {2 * i}")["x"].to_pylist() == [i]
        assert dataset.to_table(filter=f"x = {i}")["y"].to_pylist() == [2 * i]
    case.settle(0)


@both_moments
def test_config_and_tags_conflict_with_nothing(tmp_path: Path, calls: CallLog, moment: str) -> None:
    def configure(uri: str) -> None:
        dataset = lance.dataset(uri)
        dataset.update_config({"owner": "somebody"})
        dataset.tags.create("before", dataset.version)

    case = start(tmp_path, calls, configure, moment)
    case.backfill()
    assert case.computed_once
    assert lance.dataset(case.uri).config()["owner"] == "somebody"
    case.settle(0)


# --- the same column ----------------------------------------------------------------------


@both_moments
def test_second_backfill_of_the_same_column_never_mixes_values(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def same(uri: str) -> None:
        table = unaware(uri)
        table.backfill("y", executor="local", concurrency=1)

    case = start(tmp_path, calls, same, moment)
    result = case.backfill()
    assert max(case.calls.counts.values()) <= 2
    assert pairs(case.table, "x", "y") == ALL
    assert result.rows_failed == 0
    dataset = lance.dataset(case.uri)
    names = [f.path for g in dataset.get_fragments() for f in g.data_files()]
    assert sum(n.startswith("gv.") for n in names) == FRAGMENTS
    case.settle(0)


def test_second_backfill_with_another_filter_keeps_the_rows_of_both(
    tmp_path: Path, calls: CallLog
) -> None:
    def same(uri: str) -> None:
        table = unaware(uri)
        table.backfill("y", where="x % 2 = 1", executor="local", concurrency=1)

    case = start(tmp_path, calls, same, "commit")
    case.backfill(where="x % 2 = 0", batch_size=2)
    assert pairs(case.table, "x", "y") == ALL
    assert case.computed_once  # what the other one forestalled was replayed, not computed again
    assert case.again(where="x % 2 = 1").rows_computed == 0
    assert case.again(where="x % 2 = 0").rows_computed == 0
    case.settle(0)


def test_two_jobs_started_at_once_share_the_work_without_harm(
    tmp_path: Path, calls: CallLog
) -> None:
    case = start(tmp_path, calls, append, "never")
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    def job() -> None:
        table = geneva.connect(database(tmp_path)).open_table("t")
        barrier.wait()
        try:
            table.backfill("y", executor="local", concurrency=2, commit_granularity=1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=job) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert pairs(case.table, "x", "y") == ALL
    assert case.computed_once
    for version in lance.dataset(case.uri).versions():
        past = lance.dataset(case.uri, version=version["version"])
        if "y" in past.schema.names:
            rows = past.to_table(columns=["x", "y"]).to_pylist()
            assert all(row["y"] in (None, 2 * row["x"]) for row in rows)
    case.settle(0)


@both_moments
def test_value_written_by_a_person_meanwhile_is_not_overwritten(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def correct(uri: str) -> None:
        lance.dataset(uri).update({"y": "-1"}, where="x = 5")

    case = start(tmp_path, calls, correct, moment)
    case.backfill()
    again = case.again()
    assert again.rows_computed == 0
    assert again.rows_foreign == 1
    assert pairs(case.table, "x", "y") == ALL | {5: -1}
    assert_table_invariants(case.table)


# --- inputs -------------------------------------------------------------------------------


@both_moments
@pytest.mark.parametrize("how", ["rewrite", "replacement"])
def test_value_computed_from_a_rewritten_input_is_never_committed(
    tmp_path: Path, calls: CallLog, moment: str, how: str
) -> None:
    def rewrite(uri: str) -> None:
        rewrite_column(uri, "x", lambda v: v + 1000, [1], how)

    case = start(tmp_path, calls, rewrite, moment)
    case.backfill()
    expected = {i + 1000 if 10 <= i < 20 else i for i in range(ROWS)}
    assert pairs(case.table, "x", "y") == {i: 2 * i for i in expected}
    counts = case.calls.counts
    assert all(counts[str(i)] == 1 for i in range(ROWS) if not 10 <= i < 20)
    assert all(counts[str(i + 1000)] == 1 for i in range(10, 20))
    case.settle(0)


@both_moments
def test_partial_merge_insert_of_an_input_never_leaves_an_old_value(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    keys = pa.table({"k": range(ROWS), "x": range(ROWS), "s": ["t"] * ROWS})

    def merge(uri: str) -> None:
        new = pa.table({"k": [3, 33], "x": [3003, 3033]})
        lance.dataset(uri).merge_insert("k").when_matched_update_all().execute(new)

    case = start(tmp_path, calls, merge, moment, data=keys)
    case.backfill()
    assert_table_invariants(case.table, DOUBLED)
    case.again()
    values = pairs(case.table, "x", "y")
    assert values == {x: 2 * x for x in values}
    assert {3003, 3033} < set(values)
    assert case.again().rows_computed == 0


@both_moments
def test_rewritten_filter_column_does_not_commit_rows_of_the_old_filter_as_settled(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def rewrite(uri: str) -> None:
        rewrite_column(uri, "s", lambda v: "b" + v[1:], [0], "rewrite")

    case = start(tmp_path, calls, rewrite, moment)
    case.backfill(where="starts_with(s, 'b')")
    case.again(where="starts_with(s, 'b')")
    values = pairs(case.table, "s", "y")
    assert all(y is not None for s, y in values.items() if s.startswith("b"))
    assert case.again(where="starts_with(s, 'b')").rows_computed == 0
    assert_table_invariants(case.table, DOUBLED)


# --- the target ---------------------------------------------------------------------------


@both_moments
def test_dropped_target_is_an_error_and_writes_nothing(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def drop(uri: str) -> None:
        lance.dataset(uri).drop_columns(["y"])

    case = start(tmp_path, calls, drop, moment)
    before = lance.dataset(case.uri).version
    with pytest.raises(TableChangedError, match="'y' was dropped"):
        case.backfill()
    assert lance.dataset(case.uri).version == before + 1
    assert lance.dataset(case.uri).schema.names == ["x", "s"]
    assert_table_invariants(case.table)


@both_moments
def test_target_dropped_and_added_again_gets_no_value_of_the_old_one(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def replace(uri: str) -> None:
        @geneva.udf
        def minus(x: int) -> int:
            return -x

        table = geneva.connect(database_of(uri)).open_table("t")
        table.drop_columns(["y"])
        table.add_columns({"y": minus})

    case = start(tmp_path, calls, replace, moment)
    with pytest.raises(TableChangedError, match="'y' was dropped"):
        case.backfill()
    assert set(column(case.table, "y")) == {None}
    assert case.again().rows_computed == ROWS
    assert pairs(case.table, "x", "y") == {i: -i for i in range(ROWS)}


@both_moments
def test_retyped_target_is_an_error_and_writes_nothing(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def retype(uri: str) -> None:
        lance.dataset(uri).alter_columns({"path": "y", "data_type": pa.int32()})

    case = start(tmp_path, calls, retype, moment)
    with pytest.raises(TableChangedError, match=r"int64 to int32|'y' was dropped"):
        case.backfill()
    dataset = lance.dataset(case.uri)
    assert dataset.schema.field("y").type == pa.int32()
    assert set(column(case.table, "y")) == {None}
    dataset.validate()


@both_moments
def test_renamed_target_is_an_error_and_writes_nothing(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def rename(uri: str) -> None:
        lance.dataset(uri).alter_columns({"path": "y", "name": "other"})

    case = start(tmp_path, calls, rename, moment)
    with pytest.raises(TableChangedError, match="'y' was dropped, renamed"):
        case.backfill()
    # Renaming conflicts with nothing: a commit that had passed its checks lands by field id.
    values = pairs(case.table, "x", "other")
    assert values in (dict.fromkeys(ALL), ALL)
    assert moment == "commit" or values == dict.fromkeys(ALL)


@both_moments
def test_rebound_target_gets_no_value_of_the_old_udf(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def rebind(uri: str) -> None:
        @geneva.udf
        def minus(x: int) -> int:
            return -x

        table = geneva.connect(database_of(uri)).open_table("t")
        table.alter_columns({"path": "y", "udf": minus})

    case = start(tmp_path, calls, rebind, moment)
    with pytest.raises(SupersededError, match="bound to another UDF"):
        case.backfill()
    # Binding conflicts with nothing: a commit that had passed its checks lands, known as stale.
    assert moment == "commit" or set(column(case.table, "y")) == {None}
    assert case.again().rows_computed == ROWS
    assert pairs(case.table, "x", "y") == {i: -i for i in range(ROWS)}


# --- the whole table ----------------------------------------------------------------------


@both_moments
def test_overwritten_table_keeps_exactly_what_the_other_wrote(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    new = pa.table({"x": [1, 2], "s": ["a", "b"]})

    def overwrite(uri: str) -> None:
        lance.write_dataset(new, uri, mode="overwrite")

    case = start(tmp_path, calls, overwrite, moment)
    with pytest.raises(TableChangedError):
        case.backfill()
    assert lance.dataset(case.uri).to_table() == new
    assert_table_invariants(case.table)


@both_moments
def test_table_overwritten_with_its_like_gets_no_value_at_a_wrong_row(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def overwrite(uri: str) -> None:
        content = lance.dataset(uri).to_table()
        turned = content.take(list(range(ROWS))[::-1])
        lance.write_dataset(turned, uri, mode="overwrite", max_rows_per_file=ROWS // FRAGMENTS)

    case = start(tmp_path, calls, overwrite, moment)
    with suppress(TableChangedError):
        case.backfill()
    assert_table_invariants(case.table, {})
    assert all(y in (None, 2 * x) for x, y in pairs(case.table, "x", "y").items())


@both_moments
def test_restored_table_keeps_exactly_what_was_restored(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def restore(uri: str) -> None:
        dataset = lance.dataset(uri, version=1)
        dataset.restore()

    case = start(tmp_path, calls, restore, moment)
    with pytest.raises(TableChangedError):
        case.backfill()
    assert lance.dataset(case.uri).schema.names == ["x", "s"]
    assert_table_invariants(case.table)


@both_moments
def test_restore_of_older_inputs_gets_no_value_of_the_newer_ones(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def restore(uri: str) -> None:
        lance.dataset(uri, version=2).restore()

    case = start(tmp_path, calls, restore, moment)
    assert lance.dataset(case.uri).version == 2
    rewrite_column(case.uri, "x", lambda v: v + 1000, [0], "rewrite")
    with suppress(TableChangedError):
        case.backfill()
    assert_table_invariants(case.table, DOUBLED)
    case.again()
    case.settle(0)
    assert pairs(case.table, "x", "y") == ALL


def half_done(path: Path, calls: CallLog) -> geneva.Table:
    """Make a table with y for x < 5; while x = 7 is computed, the last version is undone."""
    table = make_table(path, rows=10, fragments=1)
    uri = table.storage.uri

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        if x == 7 and calls.counts["7"] == 1:
            import lance as other

            other.dataset(uri, version=other.dataset(uri).version - 1).restore()
        return 2 * x

    table.add_columns({"y": double})
    assert table.backfill("y", where="x < 5", executor="local").rows_computed == 5
    return table


def test_restore_of_deleted_rows_takes_their_values(tmp_path: Path, calls: CallLog) -> None:
    table = half_done(tmp_path, calls)
    lance.dataset(table.storage.uri).delete("x = 1")
    table.backfill("y", executor="local", concurrency=1)
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(10)}
    assert calls.counts["1"] == 1
    assert_table_invariants(table, DOUBLED)


class Unpublishing(TableStorage):
    """Fails at every commit, so that files are finished and not committed."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        raise OSError("no space left")


def test_file_finished_before_a_restore_takes_the_values_of_restored_rows(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=10, fragments=1)
    uri = table.storage.uri

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", where="x < 5", executor="local")
    full = lance.dataset(uri).version
    lance.dataset(uri).delete("x = 1")
    with pytest.raises(StorageError, match="no space left"):
        geneva.Table(table, storage=Unpublishing(uri)).backfill("y", executor="local")
    lance.dataset(uri, version=full).restore()
    table.backfill("y", executor="local", concurrency=1)
    assert pairs(table, "x", "y") == {x: 2 * x for x in range(10)}


class MeddledScan(MeddledStorage):
    """Lets the other writer act when the engine first reads rows."""

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        if self.meddle is not None:
            self.meddle()
        return super().scan(*args, **kwargs)


@pytest.mark.parametrize("compacted", [False, True])
def test_cleanup_while_history_is_read_ends_the_job(
    tmp_path: Path, calls: CallLog, compacted: bool
) -> None:
    def clean(uri: str) -> None:
        if compacted:
            compact(uri)
        dataset = lance.dataset(uri)
        dataset.cleanup_old_versions(older_than=dt.timedelta(0), delete_unverified=True)

    case = start(tmp_path, calls, append, "never")
    case.again()
    lance.dataset(case.uri).update({"s": "'changed'"}, where="x in (3, 17)")
    append(case.uri)
    meddle = Once(case.uri, str(tmp_path / "acted"), clean)
    storage = MeddledScan(case.uri, meddle=meddle)
    result = geneva.Table(case.table, storage=storage).backfill("y", executor="local")
    assert meddle.ran
    assert result.rows_computed == 10
    assert case.again().rows_computed == 0
    assert_table_invariants(case.table, DOUBLED)


@both_moments
def test_cleanup_of_every_old_version_does_not_stop_the_job(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def clean(uri: str) -> None:
        append(uri)
        dataset = lance.dataset(uri)
        dataset.cleanup_old_versions(older_than=dt.timedelta(0))

    case = start(tmp_path, calls, clean, moment)
    result = case.backfill(batch_size=2)
    assert result.rows_computed == ROWS
    assert case.computed_once
    case.settle(10)


@both_moments
def test_cleanup_and_delete_do_not_resurrect_rows(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def clean(uri: str) -> None:
        lance.dataset(uri).delete("x in (0, 11, 39)")
        lance.dataset(uri).cleanup_old_versions(older_than=dt.timedelta(0))

    case = start(tmp_path, calls, clean, moment)
    case.backfill(batch_size=2)
    assert set(pairs(case.table, "x", "y")) == set(range(ROWS)) - {0, 11, 39}
    case.settle(0)


@both_moments
def test_cleanup_that_takes_uncommitted_files_costs_work_but_never_breaks_the_table(
    tmp_path: Path, calls: CallLog, moment: str
) -> None:
    def clean(uri: str) -> None:
        append(uri)
        dataset = lance.dataset(uri)
        dataset.cleanup_old_versions(older_than=dt.timedelta(0), delete_unverified=True)

    case = start(tmp_path, calls, clean, moment)
    with suppress(StorageError, TableChangedError):
        case.backfill(batch_size=2)
    assert_table_invariants(case.table, DOUBLED)
    case.again()
    case.settle(0)


def test_writer_that_wins_many_times_in_a_row_only_delays_the_commit(
    tmp_path: Path, calls: CallLog
) -> None:
    case = start(tmp_path, calls, append, "compute")
    stop = threading.Event()

    def write() -> None:
        k = 0
        while not stop.is_set():
            lance.dataset(case.uri).delete(f"x = {k % 10}")
            k += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        case.backfill(commit_granularity=1)
    finally:
        stop.set()
        writer.join()
    assert set(case.calls.counts.values()) == {1}  # some rows were deleted before their turn
    case.again()
    case.settle(0)


# --- writers that are always first ----------------------------------------------------------


@pytest.fixture
def contested(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> tuple[geneva.Table, Path]:
    """A table whose column no job can commit, and the file that ends this."""
    monkeypatch.setattr(publish, "_LAST_S", 1.0)
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    ends = tmp_path / "ends"
    told = {"column": "s", "ends": str(ends), "log": str(tmp_path / "contests")}
    return geneva.Table(table, storage=ContestedStorage(table.storage.uri, **told)), ends


def waiting(table: geneva.Table, log: str, **arguments: Any) -> geneva.Job:
    """Start a job, and return when its next try to commit is a second away or more."""
    job = table.backfill_async("y", executor="local", concurrency=1, **arguments)
    until(lambda: len(CallLog(log)) >= 8)
    return job


def test_cancelled_job_waits_for_minutes_for_other_writers(
    contested: tuple[geneva.Table, Path], calls: CallLog
) -> None:
    table, ends = contested
    job = waiting(table, table.storage.log)
    job.cancel()
    with pytest.raises(JobCancelledError, match=r"committed but 2 \(other writers were always"):
        job.wait(10)
    assert job.state is JobState.CANCELLED
    assert xs(calls) == list(range(20))
    ends.touch()
    result = table.backfill("y", executor="local")
    assert (result.rows_computed, result.rows_replayed) == (20, 20)
    assert len(calls) == 0
    assert column(table, "y") == [2 * i for i in range(20)]
    assert table.storage.objects.list("work") == []
    assert_table_invariants(table, DOUBLED)


def test_cancelled_job_does_not_try_to_commit_again(
    contested: tuple[geneva.Table, Path], calls: CallLog
) -> None:
    table, ends = contested
    job = waiting(table, table.storage.log)
    ends.touch()
    job.cancel()
    assert job.wait(10).fragments_committed == 2
    assert column(table, "y") == [2 * i for i in range(20)]


@pytest.mark.parametrize(("granularity", "committed"), [(64, 4), (1, 1)])
def test_interrupt_between_tries_throws_finished_fragments_away(
    tmp_path: Path, calls: CallLog, granularity: int, committed: int
) -> None:
    def interrupt(uri: str) -> None:
        raise KeyboardInterrupt

    case = start(tmp_path, calls, interrupt, "commit")
    with pytest.raises(JobCancelledError, match="interrupted"):
        case.backfill(commit_granularity=granularity)
    done = {x for x, y in pairs(case.table, "x", "y").items() if y is not None}
    assert len(done) >= 10 * committed
    case.again()
    assert case.computed_once
    assert pairs(case.table, "x", "y") == ALL


def test_time_that_is_up_is_not_seen_while_others_commit(
    contested: tuple[geneva.Table, Path],
) -> None:
    job = waiting(contested[0], contested[0].storage.log, timeout=3)
    with pytest.raises(JobTimeoutError, match=r"committed but 2 \(other writers were always"):
        job.wait(10)
    assert_table_invariants(contested[0], DOUBLED)


def test_paused_job_waits_for_minutes_or_counts_twice(
    contested: tuple[geneva.Table, Path], calls: CallLog
) -> None:
    table, ends = contested
    job = waiting(table, table.storage.log)
    job.pause()
    until(lambda: job.state is JobState.PAUSED, 10)
    ends.touch()
    job.resume()
    result = job.wait(30)
    assert (result.rows_computed, result.fragments_committed) == (20, 2)
    assert xs(calls) == list(range(20))
    assert column(table, "y") == [2 * i for i in range(20)]
    assert table.storage.objects.list("work") == []


# --- the same on Ray ----------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize(
    ("action", "left", "expected"),
    [
        ("append", 10, {**ALL, **{i: 2 * i for i in range(100, 110)}}),
        ("delete", 0, {i: 2 * i for i in range(ROWS) if i % 3 != 1}),
        ("compact", 0, ALL),
        ("same", 0, ALL),
        ("rewrite", 0, {i: 2 * i for i in [*range(10), *range(1010, 1020), *range(20, ROWS)]}),
    ],
)
def test_writer_during_a_job_on_ray(
    tmp_path: Path,
    calls: CallLog,
    ray_cluster: None,
    action: str,
    left: int,
    expected: dict[int, int],
) -> None:
    def act(uri: str) -> None:
        if action == "append":
            append(uri)
        elif action == "delete":
            lance.dataset(uri).delete("x % 3 = 1")
        elif action == "compact":
            compact(uri)
        elif action == "same":
            table = unaware(uri)
            table.backfill("y", executor="local", concurrency=1)
        else:
            rewrite_column(uri, "x", lambda v: v + 1000, [1], "rewrite")

    case = start(tmp_path, calls, act, "compute")
    case.backfill(executor="ray", concurrency=2)
    case.settle(left)
    assert pairs(case.table, "x", "y") == expected


class LateStorage(TableStorage):
    """A store on which the first commit lands after the job gave it up, just before the second."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        late = CallLog(f"{self.uri}.tries")
        late("try")
        if len(late) == 1:
            raise OSError("no reply")
        if len(late) == 2:
            super().publish(*args, **kwargs)
            lance.dataset(self.uri).optimize.compact_files()
            raise CommitConflict("somebody was first", retryable=True)
        return super().publish(*args, **kwargs)


@pytest.mark.disk(reason="it counts in a file beside the table")
def test_file_of_a_commit_that_landed_late_is_removed(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)
    table.add_columns({"y": times(calls)})
    late = geneva.Table(table, storage=LateStorage(table.storage.uri))
    late.backfill("y", executor="local", concurrency=1, commit_granularity=FRAGMENTS)
    assert set(calls.counts.values()) == {1}
    assert_table_invariants(table, DOUBLED)
    for version in lance.dataset(table.storage.uri).versions():
        then = lance.dataset(table.storage.uri, version=version["version"])
        assert then.to_table().num_rows == ROWS
