"""Every row of a real table is in the window that its value says, whatever the column's type."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geneva.engine.plan.slices import NO_VALUE, OUTSIDE, OnColumn, Slices
from geneva.errors import SettingError
from geneva.model.windows import Windows
from geneva.storage.lance import TableStorage

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TYPES = {
    "date32": pa.date32(),
    "date64": pa.date64(),
    **{f"ts_{u}": pa.timestamp(u) for u in ("s", "ms", "us", "ns")},
    "ts_berlin": pa.timestamp("us", "Europe/Berlin"),
    "ts_offset": pa.timestamp("ms", "+05:30"),
    **{str(t): t for t in (pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64())},
}


def table_of(folder: Path, values: pa.Array, per_file: int) -> TableStorage:
    uri = str(folder / "t.lance")
    lance.write_dataset(pa.table({"on": values}), uri, mode="overwrite", max_rows_per_file=per_file)
    return TableStorage(uri)


def places_of(slices: Slices, storage: TableStorage) -> list[int]:
    snapshot = storage.open()
    places: list[int] = []
    for fragment, place in slices.each(list(snapshot.fragments.values())):
        places += np.broadcast_to(np.asarray(place), fragment.rows).tolist()
    return places


def cut(storage: TableStorage, windows: Windows) -> Slices:
    column = OnColumn(storage, storage.open(), windows.on)
    slices = Slices(column, column.windows(windows, NOW))
    slices.windows = column.windows(windows, NOW)
    return slices


days = st.one_of(st.none(), st.integers(-3, 40))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(TYPES)),
    hours=st.lists(st.one_of(st.none(), st.integers(-30, 24 * 20)), min_size=1, max_size=40),
    ordered=st.booleans(),
    per_file=st.integers(1, 12),
    step=st.integers(1, 9),
    order=st.sampled_from(["forward", "backward"]),
    nulls=st.sampled_from(["skip", "last"]),
)
def test_row_is_in_the_window_that_holds_its_value(
    tmp_path_factory, name, hours, ordered, per_file, step, order, nulls
):
    kind = TYPES[name]
    if ordered:
        hours = sorted(hours, key=lambda h: (h is None, h))
    values: list[object] = []
    for h in hours:
        if h is None:
            values.append(None)
        elif pa.types.is_integer(kind):
            values.append(abs(h) % 120)
        elif pa.types.is_date(kind):
            values.append(date(2021, 5, 1) + timedelta(days=h // 24))
        else:
            values.append(datetime(2021, 5, 1, tzinfo=UTC) + timedelta(hours=h))
    naive = [
        v.replace(tzinfo=None) if isinstance(v, datetime) and not kind.tz else v for v in values
    ]
    storage = table_of(tmp_path_factory.mktemp("t"), pa.array(naive, kind), per_file)
    if pa.types.is_integer(kind):
        asked = Windows("on", start=3, end=100, step=step, order=order, nulls=nulls)
    else:
        asked = Windows(
            "on", start="2021-05-02", end="2021-05-15", step=f"{step}d", order=order, nulls=nulls
        )
    slices = cut(storage, asked)
    zone = {"ts_berlin": ZoneInfo("Europe/Berlin"), "ts_offset": timezone(timedelta(hours=5.5))}
    expected = [expected_place(v, slices, zone.get(name, UTC)) for v in values]
    assert places_of(slices, storage) == expected
    again = cut(storage, asked)  # with the bounds that the first one kept
    assert places_of(again, storage) == expected
    assert again.scope == slices.scope


def expected_place(value: object, slices: Slices, zone: object) -> int:
    windows = slices.windows
    if value is None:
        return next((k for k, w in enumerate(windows) if w.is_nulls), NO_VALUE)
    for k, w in enumerate(windows):
        if w.is_nulls:
            continue
        start, end = w.start, w.end
        if isinstance(value, datetime):
            start, end = (b.astimezone(UTC) for b in (start, end))
        if start <= value < end:
            return k
    return OUTSIDE


def test_value_of_a_column_without_an_order_is_in_the_window_of_that_value(tmp_path: Path):
    values = pa.array(["train", "val", None, "test", "train", None]).dictionary_encode()
    storage = table_of(tmp_path, values, 4)
    slices = cut(storage, Windows("on", values=["val", "train"], nulls="last"))
    assert places_of(slices, storage) == [1, 0, 2, OUTSIDE, 1, 2]
    every = cut(storage, Windows("on", values="all"))
    assert [w.key for w in every.windows] == ["test", "train", "val"]
    assert places_of(every, storage) == [1, 2, NO_VALUE, 0, 1, NO_VALUE]


def test_fragment_with_known_bounds_is_not_read_again(tmp_path: Path, monkeypatch):
    storage = table_of(tmp_path, pa.array(range(100)), 10)
    asked = Windows("on", start=0, end=100, step=10)
    assert places_of(cut(storage, asked), storage) == [k // 10 for k in range(100)]
    scans: list[object] = []
    monkeypatch.setattr(TableStorage, "scan", lambda *a, **k: scans.append(a) or iter(()))
    assert places_of(cut(storage, asked), storage) == [k // 10 for k in range(100)]
    assert scans == []


def test_scope_holds_the_range_and_not_its_steps(tmp_path: Path):
    storage = table_of(tmp_path, pa.array(range(100)), 10)
    tens, fives = (cut(storage, Windows("on", start=0, end=100, step=s)) for s in (10, 5))
    backward = cut(storage, Windows("on", start=0, end=100, step=10, order="backward"))
    wider = cut(storage, Windows("on", start=0, end=101, step=10))
    nulls = cut(storage, Windows("on", start=0, end=100, step=10, nulls="last"))
    assert tens.scope == fives.scope == backward.scope
    assert len({tens.scope, wider.scope, nulls.scope}) == 3


def test_bounds_that_were_left_out_are_the_least_and_greatest_value_of_the_table(tmp_path: Path):
    storage = table_of(tmp_path, pa.array([17, 3, 29, None]), 2)
    slices = cut(storage, Windows("on", step=10))
    assert [(w.lower, w.upper) for w in slices.windows] == [(0, 10), (10, 20), (20, 30)]
    assert places_of(slices, storage) == [1, 0, 2, NO_VALUE]


def test_field_within_a_struct_cuts_windows(tmp_path: Path):
    rows = pa.array([{"at": k, "x": "y"} for k in range(6)])
    storage = table_of(tmp_path, rows, 4)
    slices = cut(storage, Windows("on.at", start=0, end=6, step=3))
    assert places_of(slices, storage) == [0, 0, 0, 1, 1, 1]


def test_value_that_the_column_cannot_hold_is_refused_by_name(tmp_path: Path):
    storage = table_of(tmp_path, pa.array([1.5, 2.5]), 4)
    with pytest.raises(SettingError, match="holds double"):
        cut(storage, Windows("on", values=["many"]))
