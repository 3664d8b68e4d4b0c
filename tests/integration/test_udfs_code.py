"""udfs.code on a real table: Python's own source, and what is not Python."""

from __future__ import annotations

import gc
import io
import json
import sys
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from tests.support.tables import assert_table_invariants, column, make_table
from udfs.code import function_count


def definitions(source: str) -> int:
    """Count by tokens what the UDF counts by the syntax tree."""
    return sum(t.string == "def" for t in tokenize.generate_tokens(io.StringIO(source).readline))


def test_source_that_is_not_python_and_costs_more_than_its_row(tmp_path: Path):
    files = sorted(Path(json.__file__).parent.glob("*.py"))
    texts = [f.read_text() for f in files]
    sources = [*texts, "print 'hello'", None, "", "\x00"]
    table = make_table(tmp_path, data=pa.table({"source": sources}), fragments=2)
    table.add_columns({"functions": function_count})
    result = table.backfill("functions", executor="local", on_error="null")

    counted = [definitions(text) for text in texts]
    assert sum(counted) > 10
    assert column(table, "functions") == [*counted, None, None, 0, None]
    assert result.rows_failed == 2
    assert_table_invariants(table)


def test_sources_that_threads_parse_while_garbage_is_collected():
    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            sum(range(50))  # lets other threads run, in the middle of a tree

    def count(text: str) -> int | None:
        for _ in range(3):
            Cycle()
        return function_count(text)

    texts = [f.read_text() for f in sorted(Path(json.__file__).parent.glob("*.py"))]
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            counted = list(pool.map(count, texts * 40))
    finally:
        gc.set_threshold(*before)
        sys.setswitchinterval(interval)
    assert counted == [definitions(text) for text in texts] * 40


def test_version_of_python_that_is_ignored(tmp_path: Path):
    table = make_table(tmp_path, data=pa.table({"source": ["if (n := 1): pass"]}), fragments=1)
    table.add_columns({"functions": function_count})
    older = table.backfill("functions", executor="local", on_error="null", params={"python": "3.7"})
    assert older.rows_failed == 1
    assert table.backfill("functions", executor="local").rows_failed == 0
    assert column(table, "functions") == [0]
