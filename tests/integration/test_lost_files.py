"""Files that a version names and that are gone, or not whole: told, and mended if they are ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lance
import pyarrow as pa
import pytest
from lance.file import LanceFileSession

import geneva
from geneva.appliers import units
from geneva.column.file import ColumnFileName
from geneva.errors import CorruptFileError, GenevaError
from geneva.storage.lance import TableStorage
from tests.support.calls import CallLog
from tests.support.s3 import Bucket
from tests.support.tables import assert_table_invariants, column, make_table, pairs
from tests.support.writers import MeddledStorage, Once

LOCAL: dict[str, Any] = {"executor": "local", "progress": False}
ROWS, FRAGMENTS = 40, 4
DOUBLED = {x: 2 * x for x in range(ROWS)}

on_a_disk = pytest.mark.disk(reason="it damages files")


def table_with(path: Path, calls: CallLog, **arguments: Any) -> geneva.Table:
    """Return a table in which ``y`` is twice ``x``, all of it computed."""
    table = make_table(path, rows=ROWS, fragments=FRAGMENTS, **arguments)

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", **LOCAL)
    calls.clear()
    return table


def files_of(table: geneva.Table, name: str) -> dict[int, Path]:
    """Return the file that supplies a column, by fragment."""
    snapshot = table.storage.open()
    field = snapshot.fields[name].id
    return {
        i: table.storage.path / "data" / f.path
        for i, fragment in snapshot.fragments.items()
        for f in fragment.files
        if field in f.fields
    }


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


damages = pytest.mark.parametrize("damage", [remove, cut, empty])


@on_a_disk
@damages
def test_rows_of_a_column_file_that_is_gone_are_missing_and_computed_again(
    tmp_path: Path, calls: CallLog, damage: Callable[[Path], None]
) -> None:
    table = table_with(tmp_path, calls)
    gone = files_of(table, "y")[1]
    damage(gone)
    coverage = table.coverage("y")
    assert (coverage.totals["computed"], coverage.totals["missing"]) == (30, 10)
    assert coverage.lost == (gone.name,)
    assert gone.name in str(coverage)
    plan = table.plan_backfill("y")
    assert (plan.rows_compute, plan.lost) == (10, (gone.name,))
    assert gone.name in str(plan)
    result = table.backfill("y", **LOCAL)
    assert result.rows_computed == 10
    assert any(gone.name in note for note in result.notes)
    assert pairs(table, "x", "y") == DOUBLED
    assert calls.counts == {str(x): 1 for x in range(10, 20)}
    assert table.coverage("y").lost == ()
    assert table.backfill("y", **LOCAL).versions == ()
    assert_table_invariants(table)


@on_a_disk
@pytest.mark.parametrize(
    "arguments",
    [
        {"where": "x < 0"},
        {"where": "y is null and x < 0"},
        {"where": "x < 5"},
        {"num_frags": 1},
        {"only": [(0, 0, 2)]},
        {"force": True},
    ],
    ids=str,
)
def test_any_backfill_of_the_column_lets_readers_work_again(
    tmp_path: Path, calls: CallLog, arguments: dict[str, Any]
) -> None:
    table = table_with(tmp_path, calls)
    for path in files_of(table, "y").values():
        remove(path)
    table.backfill("y", **arguments, **LOCAL)
    assert set(column(table, "y")) <= {None, *DOUBLED.values()}
    table.backfill("y", **LOCAL)
    assert pairs(table, "x", "y") == DOUBLED
    assert_table_invariants(table)


@on_a_disk
def test_filter_on_values_that_are_gone_finds_them_null(tmp_path: Path, calls: CallLog) -> None:
    table = table_with(tmp_path, calls)
    remove(files_of(table, "y")[1])
    assert table.plan_backfill("y", where="y is null").rows_compute >= 10
    assert table.backfill("y", where="y is null", **LOCAL).rows_computed == 10
    assert pairs(table, "x", "y") == DOUBLED


@on_a_disk
def test_rows_wait_for_a_computed_input_of_which_a_file_is_gone(
    tmp_path: Path, calls: CallLog
) -> None:
    table = table_with(tmp_path, calls)

    @geneva.udf
    def more(y: int) -> int:
        return y + 1

    table.add_columns({"z": more})
    table.backfill("z", **LOCAL)
    remove(files_of(table, "y")[2])
    plan = table.plan_backfill("z")
    assert (plan.rows_compute, plan.rows_waiting) == (0, 10)
    result = table.backfill("z", **LOCAL)
    assert (result.rows_computed, result.rows_waiting) == (0, 10)
    table.backfill(["y", "z"], **LOCAL)
    assert pairs(table, "y", "z") == {2 * x: 2 * x + 1 for x in range(ROWS)}
    assert table.plan_backfill("z").rows_waiting == 0


@on_a_disk
def test_columns_of_a_group_lose_their_values_together(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(data_type=pa.struct([("a", pa.int64()), ("b", pa.int64())]))
    def both(x: int) -> dict[str, int]:
        return {"a": x, "b": -x}

    table.add_columns({("a", "b"): both})
    table.backfill("a", **LOCAL)
    remove(files_of(table, "b")[3])
    assert table.coverage("a").totals["missing"] == 10
    assert table.backfill("b", **LOCAL).rows_computed == 10
    assert pairs(table, "a", "b") == {x: -x for x in range(ROWS)}


@on_a_disk
@damages
def test_input_file_that_is_gone_is_named_and_nothing_is_changed(
    tmp_path: Path, calls: CallLog, damage: Callable[[Path], None]
) -> None:
    table = table_with(tmp_path, calls)
    gone = files_of(table, "x")[2]
    kept = shutil.copy(gone, tmp_path / "kept")
    damage(gone)
    assert table.plan_backfill("y").rows_compute == 0
    assert table.backfill("y", **LOCAL).versions == ()
    version = table.storage.open().version
    with pytest.raises(GenevaError, match=gone.name):
        table.backfill("y", force=True, fragments=[2], **LOCAL)
    assert table.storage.open().version == version
    shutil.copy(kept, gone)
    table.backfill("y", force=True, **LOCAL)
    assert pairs(table, "x", "y") == DOUBLED


@on_a_disk
def test_file_that_holds_other_columns_too_is_not_given_up(tmp_path: Path, calls: CallLog) -> None:
    table = table_with(tmp_path, calls)
    lance.dataset(table.storage.uri).optimize.compact_files()
    (gone,) = files_of(table, "y").values()
    assert gone == files_of(table, "x")[min(files_of(table, "x"))]
    remove(gone)
    with pytest.raises(GenevaError, match=gone.name):
        table.backfill("y", where="x >= 0", **LOCAL)
    assert files_of(table, "y")


@on_a_disk
def test_files_of_the_table_that_a_clone_was_made_of_are_there(
    tmp_path: Path, calls: CallLog
) -> None:
    table = table_with(tmp_path, calls)
    dataset = lance.dataset(table.storage.uri)
    dataset.shallow_clone(str(tmp_path / "clone.lance"), dataset.version)
    clone = geneva.connect(str(tmp_path)).open_table("clone")
    assert clone.coverage("y").lost == ()


@on_a_disk
def test_pickled_udf_that_is_gone_is_named(tmp_path: Path, calls: CallLog) -> None:
    table = table_with(tmp_path, calls)
    elsewhere = tmp_path / "copied"
    shutil.copytree(table.storage.path, elsewhere / "t.lance")
    shutil.rmtree(elsewhere / "t.lance" / "_backfill")
    copied = geneva.connect(str(elsewhere)).open_table("t")
    assert copied.coverage("y").totals["computed"] == ROWS
    with pytest.raises(CorruptFileError, match=r"pickled UDF \w+ of .* is missing; bind"):
        copied.backfill("y", **LOCAL)


# --- while a job runs -----------------------------------------------------------------------


def take_newest(uri: str) -> None:
    """Remove the column files that the latest version names; as a cleanup of before does."""
    for fragment in lance.dataset(uri).get_fragments():
        for file in fragment.metadata.files:
            if ColumnFileName.parse(str(file.path)) is not None:
                (Path(uri) / "data" / file.path).unlink(missing_ok=True)


@dataclass(frozen=True)
class TakenStorage(TableStorage):
    """A cleanup that began before a commit removes its files right after it."""

    cleanup: Once | None = None

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        made = super().publish(*args, **kwargs)
        if self.cleanup is not None:
            self.cleanup()
        return made


@on_a_disk
@pytest.mark.parametrize("commit_granularity", [1, 64])
def test_file_that_vanishes_as_it_is_committed_is_published_again_from_its_checkpoints(
    tmp_path: Path,
    calls: CallLog,
    monkeypatch: pytest.MonkeyPatch,
    executor: Literal["local", "ray"],
    commit_granularity: int,
) -> None:
    monkeypatch.setattr(units, "_HELD_S", 0.0)
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(num_cpus=0.5)
    def double(x: int) -> int:
        import time

        time.sleep(0.03)  # a task that is done in a blink has no checkpoints
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    uri = table.storage.uri
    cleanup = Once(uri, str(tmp_path / "acted"), take_newest)
    taken = geneva.Table(table, storage=TakenStorage(uri, cleanup=cleanup))
    result = taken.backfill(
        "y",
        executor=executor,
        concurrency=1,
        batch_size=2,
        commit_granularity=commit_granularity,
        progress=False,
    )
    assert cleanup.ran
    assert pairs(table, "x", "y") == DOUBLED
    assert calls.counts == {str(x): 1 for x in range(ROWS)}, "nothing is computed twice"
    assert result.rows_computed == ROWS
    assert any("a cleanup removed its column file" in note for note in result.notes)
    assert table.backfill("y", **LOCAL).versions == ()
    assert_table_invariants(table)


@on_a_disk
@damages
def test_file_that_is_damaged_before_its_commit_is_made_again_from_its_checkpoints(
    tmp_path: Path,
    calls: CallLog,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(units, "_HELD_S", 0.0)
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})

    def damage_all(uri: str) -> None:
        for path in (Path(uri) / "data").iterdir():
            if ColumnFileName.parse(path.name) is not None:
                damage(path)

    uri = table.storage.uri
    meddle = Once(uri, str(tmp_path / "acted"), damage_all)
    meddled = geneva.Table(table, storage=MeddledStorage(uri, meddle=meddle))
    meddled.backfill("y", **LOCAL)
    assert meddle.ran
    assert pairs(table, "x", "y") == DOUBLED
    assert calls.counts == {str(x): 1 for x in range(ROWS)}
    assert_table_invariants(table)


# --- on an object store ---------------------------------------------------------------------


def test_object_that_is_gone_is_seen_at_the_price_of_one_listing(
    bucket: Bucket, calls: CallLog
) -> None:
    options = bucket.options()
    rows = 1200
    data = pa.table({"x": range(rows)})
    lance.write_dataset(
        data, f"{bucket.uri}/db/t.lance", max_rows_per_file=2, storage_options=options
    )
    table = geneva.connect(f"{bucket.uri}/db", storage_options=options).open_table("t")

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", **LOCAL)
    calls.clear()
    table.backfill("y", **LOCAL)
    bucket.behave()
    assert table.backfill("y", **LOCAL).versions == ()
    assert bucket.counts["requests"] < 20, "1,200 files are two requests"
    session = LanceFileSession(f"{table.storage.uri}/data", options)
    gone = next(n for n in session.list() if ColumnFileName.parse(n))
    session.delete_file(gone)
    assert table.coverage("y").lost == (gone,)
    assert table.backfill("y", **LOCAL).rows_computed == 2
    assert len(calls) == 2
    found = lance.dataset(table.storage.uri, storage_options=options).to_table()
    assert found["y"].to_pylist() == [2 * x for x in found["x"].to_pylist()]
