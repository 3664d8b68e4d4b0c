"""Values that a person corrected: a backfill keeps them, unless it is told otherwise."""

from __future__ import annotations

from pathlib import Path

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
