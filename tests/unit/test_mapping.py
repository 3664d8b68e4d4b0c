"""Every field of a record has a column of its row, or is derived from others."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

import pytest

from geneva.jobs import records
from geneva.jobs.store import mapping
from geneva.jobs.store.models import FailureRow, TaskRow, WatchRow

DERIVED = {
    "JOBS": {"process", "rows_per_s", "eta_s"},
    "RUNS": {"jobs"},
    "TASKS": set(),
    "WINDOWS": set(),
    "EVENTS": set(),
    "FAILURES": set(),
    "WATCHES": set(),
}
RECORDS = {
    "JOBS": records.JobRecord,
    "RUNS": records.RunRecord,
    "TASKS": records.TaskRecord,
    "WINDOWS": records.WindowRecord,
    "EVENTS": records.EventRecord,
    "FAILURES": records.FailureRecord,
    "WATCHES": records.WatchRecord,
}


@pytest.mark.parametrize("name", DERIVED)
def test_field_without_a_column_is_derived(name: str):
    columns = getattr(mapping, name).columns
    assert {f.name for f in fields(RECORDS[name])} - set(columns) == DERIVED[name]


def test_column_of_another_name_differs_by_the_unit_of_a_moment_only():
    readings = (getattr(mapping, name) for name in DERIVED)
    renamed = {(f, c) for reading in readings for f, c in reading.columns.items() if f != c}
    moments = {"at", "created_at", "started_at", "ended_at", "fired_at"}
    assert renamed == {(m, f"{m.removesuffix('_at')}_s") for m in moments - {"at"}} | {
        ("at", "at_s"),
        ("not_before", "not_before_s"),
    }


def test_values_become_those_that_a_record_declares():
    task = {n: 0 for n in mapping.TASKS.columns} | {"state": "DONE", "column": "y"}
    assert mapping.TASKS.record(TaskRow(**task)).state is records.TaskState.DONE
    failure = dict.fromkeys(mapping.FAILURES.columns, "") | {"row_id": str(2**64 - 1)}
    assert mapping.FAILURES.record(FailureRow(**failure)).row_id == 2**64 - 1
    watch = {c: None for c in mapping.WATCHES.columns.values()}
    watch |= {"columns": ["y", "z"], "fired_s": 5.0, "not_before_s": 0.0}
    found = mapping.WATCHES.record(WatchRow(**watch))
    assert found.columns == ("y", "z")
    assert (found.fired_at, found.not_before) == (datetime.fromtimestamp(5, UTC), None)
