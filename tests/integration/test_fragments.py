"""Which fragments a call takes, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from geneva.errors import SettingError
from tests.support.backfills import run, times, xs
from tests.support.calls import CallLog
from tests.support.tables import column, make_table


def test_backwards_begins_with_the_newest_fragments(tmp_path: Path, calls: CallLog, executor: str):
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    options = {"order": "backward", "batch_size": 10}
    run(table, "y", executor, num_frags=1, **options)
    assert xs(calls) == list(range(30, 40))
    plan = table.plan_backfill("y", order="backward")
    assert [f.fragment_id for f in plan.to_compute] == [2, 1, 0]
    table.backfill("y", executor=executor, concurrency=1, **options)
    begun = list(dict.fromkeys(int(k) // 10 for k in calls.keys))
    assert begun[-1] == 0  # an applier on Ray may have begun two at once
    assert column(table, "y") == [2 * x for x in range(40)]


def test_columns_that_share_a_read_keep_the_order(tmp_path: Path, calls: CallLog):
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls), "z": times(calls, 3)})
    table.backfill(["y", "z"], executor="local", order="backward", num_frags=1)
    assert [v for v in column(table, "y") if v is not None] == [2 * x for x in range(30, 40)]
    assert [v for v in column(table, "z") if v is not None] == [3 * x for x in range(30, 40)]


def test_call_that_is_limited_to_fragments(tmp_path: Path, calls: CallLog, executor: str):
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    result = run(table, "y", executor, fragments=[3, 1])
    assert (result.rows_computed, result.fragments_committed) == (20, 2)
    assert xs(calls) == [*range(10, 20), *range(30, 40)]
    run(table, "y", executor, fragments=[0], force=True)
    assert xs(calls) == list(range(10))
    table.backfill("y", executor=executor)
    assert xs(calls) == list(range(20, 30))


def test_fragment_that_was_compacted_away_is_skipped(tmp_path: Path, calls: CallLog):
    table = make_table(tmp_path, rows=40, fragments=4)
    table.unwrap().optimize()
    table.add_columns({"y": times(calls)})
    assert table.backfill("y", executor="local", fragments=[1]).rows_computed == 0
    assert table.backfill("y", executor="local").rows_computed == 40


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fragments": [7]}, "there is no fragment 7; the newest is 3"),
        ({"fragments": []}, "list of fragment ids"),
        ({"fragments": [True]}, "list of fragment ids"),
        ({"fragments": [1], "include_new": True}, "include_new"),
        ({"order": "sideways"}, "'forward' or 'backward'"),
    ],
)
def test_choice_that_makes_no_sense(
    tmp_path: Path, calls: CallLog, options: dict[str, object], said: str
):
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    for call in (table.plan_backfill, table.backfill, table.check_backfill):
        with pytest.raises(SettingError, match=said):
            call("y", **options)
