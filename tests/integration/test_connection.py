"""A database that is opened without lancedb is the one that lancedb opens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.errors import TableError
from tests.support.tables import database, make_table

BACKFILL = """
import sys, geneva
def double(x: int) -> int:
    return 2 * x
tbl = geneva.connect("db").open_table("t")
tbl.add_columns({"y": geneva.udf(double, version="1")})
tbl.backfill("y", executor="local", progress=False)
print("lancedb" in sys.modules, tbl.to_arrow()["y"].to_pylist())
tbl.add([{"x": 9}])
tbl.backfill("y", executor="local", progress=False)
print(tbl.to_arrow()["y"].to_pylist())
"""

PLACES = """
import os, geneva
uris = ["db", "./db/", "~/db", "sub/../db", os.path.abspath("db")]
dbs = [geneva.connect(uri) for uri in uris]
tables = [db.open_table("t") for db in dbs]
import lancedb
theirs = [lancedb.connect(uri) for uri in uris]
print([db.uri for db in dbs] == [db.uri for db in theirs],
      [t.storage.uri for t in tables] == [db.open_table("t").uri for db in theirs])
"""

MISTAKES = """
import geneva
db = geneva.connect("db")
for name in ("tt", "../db/t", "", "torn"):
    try:
        db.open_table(name)
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lance.write_dataset(pa.table({"x": [1, 2, 3]}), tmp_path / "db" / "t.lance")
    (tmp_path / "sub").mkdir()
    return tmp_path


def run(program: str, folder: Path) -> list[str]:
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_script_that_fills_a_column_imports_lancedb_for_nothing(folder: Path) -> None:
    assert run(BACKFILL, folder) == ["False [2, 4, 6]", "[2, 4, 6, 18]"]


def test_database_lies_somewhere_else_than_for_lancedb(folder: Path) -> None:
    assert run(PLACES, folder) == ["True True"]


def test_table_that_cannot_be_opened_is_an_error_of_other_words(folder: Path) -> None:
    versions = folder / "db" / "torn.lance" / "_versions"
    versions.mkdir(parents=True)
    (versions / "18446744073709551614.manifest").write_bytes(b"torn")
    said = run(MISTAKES, folder)
    assert len(said) >= 4
    assert said == run("import lancedb\n" + MISTAKES, folder)


@pytest.mark.parametrize("before", ["", "import lancedb\n"])
def test_column_that_geneva_added_is_unknown_to_the_view_of_lancedb(
    folder: Path, before: str
) -> None:
    program = """
import geneva
def same(x: int) -> int:
    return x
tbl = geneva.connect("db").open_table("t")
tbl.add_columns({"y": geneva.udf(same, version="1")})
tbl.drop_columns(["y"])
print(tbl.schema.names)
"""
    assert run(before + program, folder) == ["['x']"]


@geneva.udf
def doubled(x: int) -> int:
    return 2 * x


def test_columns_of_a_branch_are_computed_on_the_main_one(tmp_path: Path) -> None:
    main = make_table(tmp_path, rows=10, fragments=2)
    main.branches.create("dev")
    branch = geneva.connect(database(tmp_path)).open_table("t", branch="dev")
    calls = [
        lambda: branch.add_columns({"y": doubled}),
        lambda: branch.alter_columns({"path": "s", "udf": doubled}),
        lambda: branch.backfill("y", executor="local"),
        lambda: branch.plan_backfill("y"),
        lambda: branch.coverage("y"),
        lambda: branch.computed_columns(),
    ]
    for call in calls:
        with pytest.raises(TableError, match="branch 'dev'"):
            call()
    assert main.schema.names == ["x", "s"]
    branch.add([{"x": 10, "s": "a"}])
    assert (len(branch), len(main)) == (11, 10)
    main.add_columns({"y": doubled})
    assert main.backfill("y", executor="local").rows_computed == 10
