"""Coverage along a column counts the rows that coverage counts, each in the period of its value."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.errors import ColumnError, SettingError
from tests.support.tables import make_table

STATES = ("computed", "stale", "missing", "failed", "foreign", "unverified")
FIRST = datetime(2024, 2, 27, tzinfo=UTC)


@geneva.udf(input_columns=["x"])
def double(x: int) -> int:
    if x % 17 == 5:
        raise ValueError("no good")
    return 2 * x


def table_of(folder: Path, seed: int) -> geneva.Table:
    """Rows of forty days, in order or shuffled, some without a day; three kinds of changes."""
    chance = random.Random(seed)
    days = [FIRST + timedelta(hours=6 * k) for k in range(160)]
    if chance.random() < 0.5:
        chance.shuffle(days)
    ts = [None if chance.random() < 0.05 else d for d in days]
    data = pa.table({"x": range(160), "ts": pa.array(ts, pa.timestamp("us", "UTC"))})
    table = make_table(folder, data=data, fragments=4)
    table.add_columns({"y": double})
    options: dict[str, Any] = {"executor": "local", "on_error": "null", "progress": False}
    table.backfill("y", num_frags=chance.choice([2, 3, 4]), **options)
    for k in range(chance.randrange(4)):
        dataset = lance.dataset(table.storage.uri)
        low = chance.randrange(150)
        where = f"x >= {low} and x < {low + 9}"
        change = chance.choice(["y", "x", "delete", "compact"])
        if change == "y":
            dataset.update({"y": str(10_007 + k)}, where=where)
        elif change == "x":
            dataset.update({"x": "x + 1000"}, where=where)
        elif change == "delete":
            dataset.delete(where)
        else:
            dataset.optimize.compact_files(target_rows_per_fragment=100)
    table.refresh()
    return table


@pytest.mark.parametrize("seed", range(12))
def test_periods_add_up_to_coverage(tmp_path: Path, seed: int):
    table = table_of(tmp_path, seed)
    totals = table.coverage("y").totals
    rows = lance.dataset(table.storage.uri).to_table(columns=["ts"])["ts"].to_pylist()
    present = [t for t in rows if t is not None]
    for step in ("1w", "1mo", "1d"):
        over = table.coverage_over("y", "ts", step)
        assert over.totals == {name: totals[name] for name in ("rows", *STATES)}
        keys = over.table["key"].to_pylist()
        assert ("(null)" in keys) == (len(present) < len(rows))
    for period in over.table.to_pylist():
        day = [t for t in present if t.isoformat()[:10] == period["key"][:10]]
        expected = len(rows) - len(present) if period["key"] == "(null)" else len(day)
        assert period["rows"] == expected


def test_days_begin_where_the_zone_says_and_dates_are_days(tmp_path: Path):
    moment = datetime(2024, 5, 1, 23, 30, tzinfo=UTC)
    days = pa.array([date(2024, 5, 1), date(2024, 5, 3)], pa.date32())
    data = pa.table({"x": [1, 2], "ts": [moment, moment], "day": days})
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns({"y": double})
    assert table.coverage_over("y", "ts").table["key"].to_pylist() == ["2024-05-01T00:00+00:00"]
    berlin = table.coverage_over("y", "ts", tz="Europe/Berlin").table["key"].to_pylist()
    assert berlin == ["2024-05-02T00:00+02:00"]
    by_day = table.coverage_over("y", "day").table.to_pylist()
    assert [(p["key"], p["rows"]) for p in by_day] == [
        ("2024-05-01", 1),
        ("2024-05-02", 0),
        ("2024-05-03", 1),
    ]
    with pytest.raises(ColumnError, match="when"):
        table.coverage_over("y", "when")
    with pytest.raises(SettingError, match="whole day"):
        table.coverage_over("y", "day", "6h")
