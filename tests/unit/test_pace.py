"""The rate of a job: of rows computed lately, while somebody worked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from geneva.engine.reporter import Pace
from geneva.model.types import JobState, Progress


def worked(pace: Pace, begin_s: float, seconds: float, rate: float, rows: float = 0.0) -> float:
    """Report ten times a second while rows come at a rate; return the rows then."""
    for k in range(int(seconds * 10)):
        pace.see(begin_s + k / 10, int(rows + rate * k / 10), working=True)
    return rows + rate * seconds


def test_start_and_pauses_do_not_count() -> None:
    pace = Pace()
    for k in range(300):
        pace.see(k / 10, 0, working=False)
    rows = worked(pace, 30.0, 10.0, 100.0)
    assert pace.rows_per_s == pytest.approx(100, rel=0.05)
    for k in range(600):
        pace.see(40 + k / 10, int(rows), working=False)
    worked(pace, 100.0, 10.0, 100.0, rows)
    assert pace.rows_per_s == pytest.approx(100, rel=0.05)
    assert pace.mean_rows_per_s == pytest.approx(100, rel=0.05)


def test_rate_follows_appliers_that_join() -> None:
    pace = Pace()
    rows = worked(pace, 0.0, 100.0, 10.0)
    worked(pace, 100.0, 30.0, 80.0, rows)
    assert pace.rows_per_s == pytest.approx(80, rel=0.1)


def test_rate_of_calls_of_a_minute_does_not_fall_to_nothing_between_them() -> None:
    pace = Pace()
    for k in range(4000):
        pace.see(k / 10, 600 * (k // 600), working=True)
        if k > 1300:
            assert 7 < pace.rows_per_s < 13


def test_rate_falls_where_nothing_comes_any_more() -> None:
    pace = Pace()
    rows = worked(pace, 0.0, 20.0, 100.0)
    for k in range(3000):
        pace.see(20 + k / 10, int(rows), working=True)
    assert pace.rows_per_s < 10


def test_rows_from_checkpoints_are_no_sign_of_speed() -> None:
    progress = Progress("j", ("y",), JobState.RUNNING, rows_total=3000, rows_computed=2100)
    assert Progress("j", ("y",), JobState.RUNNING, rows_total=10).eta_s is None
    resumed = replace(progress, rows_replayed=2000, seconds=1.0)
    assert resumed.rows_per_s == 100
    assert resumed.eta_s == 9
