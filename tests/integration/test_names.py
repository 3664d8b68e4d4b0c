"""Names that look like paths, SQL or something else: they name what they name, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.engine.clean import clean
from geneva.errors import ColumnError
from tests.support.backfills import times
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, make_table

LOCAL: dict[str, Any] = {"executor": "local", "concurrency": 1, "progress": False}
COMPOSED, DECOMPOSED = "\u00e9", "e\u0301"
NAMES = {
    "space": " a  b ",
    "quotes": 'it\'s "q"',
    "sql": "x = 1 or 1=1 -- ;drop table t",
    "keyword": "select",
    "null": "NULL",
    "path": "/etc/../a\\b",
    "format": "%s{}{0}$1[0]*,",
    "newline": "a\nb",
    "composed": COMPOSED,
    "decomposed": DECOMPOSED,
    "astral": "\U0001f980\u202e",
    "long": "n" * 2000,
}
NAMES["path"] = NAMES["path"].replace("..", "")  # Lance reads dots as paths into structs


def ours(column: str, calls: CallLog) -> geneva.UDF:
    @geneva.udf(input_columns=[column], data_type=pa.int64())
    def double(v: int) -> int:
        calls(v)
        return 2 * v

    return double


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_column_of_any_name_is_read_filtered_and_filled(
    tmp_path: Path, calls: CallLog, name: str
) -> None:
    """A column named so is the input of another one, which is named almost so."""
    data = pa.table({name: pa.array(range(12), pa.int64()), "x": [0] * 12})
    table, target = make_table(tmp_path, data=data, fragments=2), f"{name}+"
    table.add_columns({target: ours(name, calls)})
    quoted = '"' + name.replace('"', '""') + '"'
    assert table.backfill(target, where=f"{quoted} > 8", **LOCAL).rows_computed == 3
    assert table.backfill(target, **LOCAL).rows_computed == 9
    read = lance.dataset(table.storage.uri).to_table()
    assert read[target].to_pylist() == [2 * i for i in range(12)]
    assert len(calls) == 12
    assert table.coverage(target).totals["computed"] == 12
    assert_table_invariants(table)


def test_names_that_look_the_same_are_two_columns(tmp_path: Path, calls: CallLog) -> None:
    data = pa.table({COMPOSED: [1, 2], DECOMPOSED: [10, 20]})
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns({"a": ours(COMPOSED, calls), "b": ours(DECOMPOSED, calls)})
    table.backfill(["a", "b"], **LOCAL)
    read = lance.dataset(table.storage.uri).to_table()
    assert (read["a"].to_pylist(), read["b"].to_pylist()) == ([2, 4], [20, 40])


@pytest.mark.parametrize("name", ["", "a.b", "..", "a`b", "a\0b", "_rowid", "_rowaddr"])
def test_column_that_lance_could_not_read_is_refused_before_it_exists(
    tmp_path: Path, calls: CallLog, name: str
) -> None:
    table = make_table(tmp_path, rows=4, fragments=1)
    before = table.storage.open()
    with pytest.raises(ColumnError, match="cannot be a computed column's name"):
        table.add_columns({name: times(calls)})
    after = table.storage.open()
    assert (after.version, after.schema) == (before.version, before.schema)


def test_input_that_cannot_be_quoted_is_refused_when_it_is_bound(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, data=pa.table({"a`b": [1, 2]}), fragments=1)
    with pytest.raises(ColumnError, match="no way to quote a backtick"):
        table.add_columns({"y": ours("a`b", calls)})


@pytest.mark.disk(reason="test_object_store.py has prefixes")
@pytest.mark.parametrize(
    "folder",
    ["a b", 'it\'s "q"', "semi;-- %20 %2e#h?q", "$HOME {b} [a]", DECOMPOSED, "n" * 200, "..."],
)
def test_table_in_a_folder_of_any_name_is_backfilled_there(
    tmp_path: Path, calls: CallLog, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    table = make_table(tmp_path / folder, rows=8, fragments=2)
    table.add_columns({"y": times(calls)})
    assert table.backfill("y", **LOCAL).rows_computed == 8
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".log") == before
    assert (tmp_path / folder / "t.lance" / "_backfill").is_dir()
    clean(table.storage, 0)
    assert table.coverage("y").totals["computed"] == 8


@pytest.mark.parametrize("name", ["../t", "..", "a/b", "a b", "t;--", "/etc"])
def test_table_name_that_is_a_path_leads_nowhere(tmp_path: Path, name: str) -> None:
    make_table(tmp_path, rows=4, fragments=1)
    inner = tmp_path / "inner"
    inner.mkdir()
    db = geneva.connect(str(inner))
    for act in (db.open_table, lambda n: db.create_table(n, [{"x": 1}])):
        with pytest.raises((ValueError, geneva.GenevaError)):
            act(name)
    assert list(inner.iterdir()) == []
