"""The founding document's examples, on both executors."""

from __future__ import annotations

from pathlib import Path

import pytest

import geneva
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table


@pytest.mark.both_stores
def test_second_call_recomputes_nothing(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path)

    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    result = table.backfill("y", executor=executor, concurrency=2)
    assert result.rows_computed == 100
    assert column(table, "y") == [2 * i for i in range(100)]
    again = table.backfill("y", executor=executor)
    assert again.rows_computed == 0
    assert len(calls) == 100
    assert set(calls.counts.values()) == {1}
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})
