"""Values that a person corrected: a backfill keeps them, unless it is told otherwise."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from tests.support.backfills import run
from tests.support.tables import make_table, pairs

both_row_ids = pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable_ids"])
SIZE = pa.struct([("w", pa.int64()), ("h", pa.int64())])


@geneva.udf
def label(x: int) -> str:
    return "cat" if x % 2 else "dog"


@geneva.udf(name="label", version="2")
def other_label(x: int) -> str:
    return "fish"


@geneva.udf(data_type=SIZE)
def size(x: int) -> dict[str, int]:
    return {"w": x, "h": x * 2}


@geneva.udf(data_type=SIZE, name="size", version="2")
def other_size(x: int) -> dict[str, int]:
    return {"w": -x, "h": -x * 2}


@both_row_ids
def test_correction_to_a_value_that_another_row_had_is_undone(tmp_path: Path, stable: bool) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    table.update(where="x in (0, 1)", values={"label": "cat"})  # row 1 was one already
    corrected = {0: "cat", 1: "cat", 2: "dog", 3: "cat"}
    result = run(table, "label", "local")
    assert result.rows_computed == 0
    # Without stable row ids nobody can tell which of the two changed: both may count.
    assert result.rows_foreign in ((1,) if stable else (1, 2))
    assert pairs(table, "x", "label") == corrected
    table.alter_columns({"path": "label", "udf": other_label})
    run(table, "label", "local")
    found = pairs(table, "x", "label")
    assert (found[0], found[2], found[3]) == ("cat", "fish", "fish")


@both_row_ids
def test_correction_of_every_row_at_once_is_undone(tmp_path: Path, stable: bool) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    table.update(values={"label": "bird"})
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (0, 4)
    assert set(pairs(table, "x", "label").values()) == {"bird"}


@both_row_ids
@pytest.mark.parametrize("corrected", ["w", "h"])
def test_correction_of_one_column_of_a_group_is_undone(
    tmp_path: Path, corrected: str, stable: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({("w", "h"): size})
    run(table, "w", "local")
    table.update(where="x = 1", values={corrected: 777})
    result = run(table, "w", "local")
    assert (result.rows_computed, result.rows_foreign) == (0, 1)
    table.alter_columns({"path": "w", "udf": other_size})
    result = run(table, "w", "local")
    assert (result.rows_computed, result.rows_foreign) == (3, 1)
    kept = {"w": 1, "h": 2} | {corrected: 777}
    assert pairs(table, "x", "w") == {0: 0, 1: kept["w"], 2: -2, 3: -3}
    assert pairs(table, "x", "h") == {0: 0, 1: kept["h"], 2: -4, 3: -6}


@pytest.mark.parametrize("values", [{"w": 5, "h": None}, {"w": None, "h": 5}])
def test_correction_of_a_group_in_place_that_empties_another_column_is_undone(
    tmp_path: Path, values: dict[str, int | None]
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    table.add_columns({("w", "h"): size})
    run(table, "w", "local")
    dataset = lance.dataset(table.storage.uri)
    new = pa.table({"x": [3]} | {c: pa.array([v], pa.int64()) for c, v in values.items()})
    updated, fields = dataset.get_fragment(0).update_columns(new, left_on="x", right_on="x")
    operation = lance.LanceOperation.Update(
        updated_fragments=[updated], fields_modified=fields, update_mode="rewrite_columns"
    )
    lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)
    result = run(table, "w", "local")
    assert (result.rows_computed, result.rows_foreign) == (0, 1)
    assert {c: pairs(table, "x", c)[3] for c in values} == values


@both_row_ids
@pytest.mark.parametrize("corrected", ["w", "h"])
def test_correction_of_a_group_outlives_a_request_to_recompute(
    tmp_path: Path, corrected: str, stable: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({("w", "h"): size})
    run(table, "w", "local")
    table.update(where="x = 1", values={corrected: 777})
    recomputed = run(table, "w", "local", foreign="recompute")
    assert (recomputed.rows_computed, recomputed.rows_foreign) == (1, 0)
    assert pairs(table, "x", "w") == {x: x for x in range(4)}
    assert pairs(table, "x", "h") == {x: 2 * x for x in range(4)}


@both_row_ids
def test_correction_is_lost_when_its_row_is_merged_with_another_input(
    tmp_path: Path, stable: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    table.update(where="x = 1", values={"label": "bird"})
    dataset = lance.dataset(table.storage.uri)
    rows = dataset.to_table(filter="x < 2").to_pylist()
    for row in rows:
        row["x"] += 100
    new = pa.Table.from_pylist(rows, dataset.schema)
    dataset.merge_insert("s").when_matched_update_all().execute(new)
    run(table, "label", "local")
    assert pairs(table, "x", "label") == {100: "dog", 101: "bird", 2: "dog", 3: "cat"}


@both_row_ids
def test_value_that_a_person_sets_beside_a_new_input_is_undone(
    tmp_path: Path, stable: bool
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    table.update(where="x = 1", values={"x": 100, "label": "cat"})  # it was a cat already
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (0, 1)
    assert pairs(table, "x", "label") == {0: "dog", 100: "cat", 2: "dog", 3: "cat"}


@geneva.udf(name="label", version="3")
def label_of_v(x: int, v: int) -> str:
    return "cat" if v % 2 else "dog"


def upsert(table: geneva.Table, rows: list[dict[str, Any]], *, in_place: bool = False) -> None:
    """Write rows back by their id, as a person or a program does who read them before."""
    dataset = lance.dataset(table.storage.uri)
    schema = pa.schema([f for f in dataset.schema if f.name in rows[0]])
    merge = dataset.merge_insert("s").when_matched_update_all()
    merge = merge.write_mode("rewrite_columns") if in_place else merge
    merge.execute(pa.Table.from_pylist(rows, schema))
    table.refresh()


def rows_of(table: geneva.Table, where: str) -> list[dict[str, Any]]:
    return list(lance.dataset(table.storage.uri).to_table(filter=where).to_pylist())


@both_row_ids
@pytest.mark.parametrize("in_place", [False, True], ids=["whole_rows", "in_place"])
@pytest.mark.parametrize("between", [(), ("compact",), ("view",), ("view", "compact", "view")])
def test_value_brought_back_by_an_upsert_is_stale(
    tmp_path: Path, stable: bool, in_place: bool, between: tuple[str, ...]
) -> None:
    data = pa.table({"s": [str(x) for x in range(8)], "x": range(8), "views": [0] * 8})
    table = make_table(tmp_path, data=data, fragments=2, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    held = rows_of(table, "x < 6")
    table.alter_columns({"path": "label", "udf": other_label})
    run(table, "label", "local")
    for step in between:
        if step == "view":
            table.update(where="x < 5", values_sql={"views": "views + 1"})
        else:
            lance.dataset(table.storage.uri).optimize.compact_files()
    table.refresh()
    changed = [r | {"views": 9} for r in reversed(held)]
    if in_place:
        changed = [{n: r[n] for n in ("s", "views", "label")} for r in changed]
    upsert(table, changed, in_place=in_place)
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (6, 0)
    assert set(pairs(table, "x", "label").values()) == {"fish"}


@both_row_ids
def test_correction_brought_back_by_an_upsert_is_a_persons(tmp_path: Path, stable: bool) -> None:
    table = make_table(tmp_path, rows=4, fragments=1, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    table.update(where="x = 1", values={"label": "bird"})
    held = rows_of(table, "x < 3")
    run(table, "label", "local", where="x < 4", foreign="recompute")
    assert pairs(table, "x", "label")[1] == "cat"
    table.alter_columns({"path": "label", "udf": other_label})
    run(table, "label", "local")
    upsert(table, held)
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (2, 1)
    assert pairs(table, "x", "label") == {0: "fish", 1: "bird", 2: "fish", 3: "fish"}


@both_row_ids
@pytest.mark.parametrize("in_place", [False, True], ids=["whole_rows", "in_place"])
def test_correction_to_a_value_of_another_row_is_kept_and_counted(
    tmp_path: Path, stable: bool, in_place: bool
) -> None:
    table = make_table(tmp_path, rows=8, fragments=2, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    corrected = {0: "cat", 3: "dog", 6: "cat"}
    rows = [r | {"label": corrected.get(r["x"], r["label"])} for r in rows_of(table, "x < 7")]
    if in_place:
        rows = [{n: r[n] for n in ("s", "label")} for r in rows]
    upsert(table, rows[::-1], in_place=in_place)
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (0, 3)
    computed = {x: "cat" if x % 2 else "dog" for x in range(8)}
    assert pairs(table, "x", "label") == computed | corrected
    table.alter_columns({"path": "label", "udf": other_label})
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (5, 3)
    assert pairs(table, "x", "label") == dict.fromkeys(range(8), "fish") | corrected


@both_row_ids
def test_correction_beside_rows_whose_input_changed_is_kept(tmp_path: Path, stable: bool) -> None:
    data = pa.table({"s": [str(x) for x in range(6)], "x": range(6), "v": range(6)})
    table = make_table(tmp_path, data=data, fragments=1, stable=stable)
    table.add_columns({"label": label_of_v})
    run(table, "label", "local")
    rows = rows_of(table, "x < 6")
    rows[0]["label"] = "cat"  # a person's: it was a dog
    rows[1] |= {"v": 10}  # its cat is stale now
    rows[2] |= {"v": 11}
    upsert(table, rows)
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (2, 1)
    assert pairs(table, "x", "label") == {
        0: "cat",
        1: "dog",
        2: "cat",
        3: "cat",
        4: "dog",
        5: "cat",
    }


@both_row_ids
def test_value_of_versions_that_a_restore_left_behind_is_stale(
    tmp_path: Path, stable: bool
) -> None:
    table = make_table(tmp_path, rows=6, fragments=1, stable=stable)
    table.add_columns({"label": label})
    bare = lance.dataset(table.storage.uri).version
    run(table, "label", "local")
    held = rows_of(table, "x < 3")
    lance.dataset(table.storage.uri, version=bare).restore()
    table.refresh()
    table.alter_columns({"path": "label", "udf": other_label})
    upsert(table, held)
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (6, 0)
    assert set(pairs(table, "x", "label").values()) == {"fish"}


@both_row_ids
def test_value_of_history_that_is_gone_is_kept_and_counted(tmp_path: Path, stable: bool) -> None:
    table = make_table(tmp_path, rows=6, fragments=1, stable=stable)
    table.add_columns({"label": label})
    run(table, "label", "local")
    held = rows_of(table, "x < 2")
    table.alter_columns({"path": "label", "udf": other_label})
    run(table, "label", "local")
    dataset = lance.dataset(table.storage.uri)
    dataset.cleanup_old_versions(older_than=dt.timedelta(0))
    upsert(table, held)
    result = run(table, "label", "local")
    assert (result.rows_computed, result.rows_foreign) == (0, 2)
    assert "rows kept that somebody else wrote  2" in str(result)
