"""Rows per UDF call when nobody says: quick first checkpoints, bounded loss, bounded memory."""

from __future__ import annotations

import pytest

from geneva.appliers.batches import MAX_ROWS, TARGET_BYTES, TARGET_S, BatchSizer


def grown(sizer: BatchSizer, row_s: float, row_bytes: int = 8, batches: int = 40) -> list[int]:
    sizes = []
    for _ in range(batches):
        sizes.append(sizer.rows)
        sizer.observe(sizer.rows, sizer.rows * row_s, sizer.rows * row_bytes)
    return sizes


def test_first_batch_of_an_unknown_udf_is_one_row() -> None:
    assert BatchSizer(None).rows == 1


@pytest.mark.parametrize("row_s", [1e-7, 1e-5, 1e-3, 0.05, 1.0, 60.0])
def test_batches_stay_within_the_time_that_a_crash_may_lose(row_s: float) -> None:
    for rows in grown(BatchSizer(None), row_s):
        assert rows == 1 or rows * row_s <= TARGET_S * 1.01


def test_quick_udf_reaches_the_largest_batch_soon() -> None:
    assert grown(BatchSizer(None), 1e-9)[:9][-1] == MAX_ROWS


@pytest.mark.parametrize("row_bytes", [100, 10_000, 1 << 20, 100 << 20])
def test_wide_rows_bound_the_batch_by_bytes(row_bytes: int) -> None:
    for rows in grown(BatchSizer(None), 1e-9, row_bytes):
        assert rows == 1 or rows * row_bytes <= TARGET_BYTES


def test_udf_that_becomes_slow_shrinks_the_batch_at_once() -> None:
    sizer = BatchSizer(None)
    grown(sizer, 1e-6)
    assert sizer.rows == MAX_ROWS
    sizer.observe(MAX_ROWS, MAX_ROWS * 0.01, 8)
    assert sizer.rows * 0.01 <= TARGET_S


def test_short_last_batch_does_not_shrink_the_next() -> None:
    sizer = BatchSizer(None)
    grown(sizer, 1e-6)
    sizer.observe(3, 1e-6, 24)
    assert sizer.rows == MAX_ROWS


def test_batch_that_took_no_measurable_time_is_no_division_by_zero() -> None:
    sizer = BatchSizer(None)
    sizer.observe(1, 0.0, 0)
    assert sizer.rows == 4


def test_given_batch_size_is_never_changed() -> None:
    assert set(grown(BatchSizer(7), 10.0)) == {7}
    assert set(grown(BatchSizer(7), 1e-9)) == {7}


def test_limit_holds_whatever_is_measured_or_resumed() -> None:
    sizer = BatchSizer(None, limit=100)
    assert max(grown(sizer, 1e-9)) == 100
    sizer.resume(BatchSizer(10_000))
    assert sizer.rows == 100
    sizer.resume(BatchSizer(None))
    assert sizer.rows == 1
    assert BatchSizer(None, limit=0).rows == 1


def timed(sizer: BatchSizer, call_s: float, row_s: float, batches: int = 40) -> list[int]:
    sizes = []
    for _ in range(batches):
        sizes.append(sizer.rows)
        sizer.observe(sizer.rows, call_s + sizer.rows * row_s, 8 * sizer.rows)
    return sizes


@pytest.mark.parametrize("call_s", [0.25, 0.5, 3.0, 60.0])
def test_call_over_a_network_is_not_made_for_every_row(call_s: float) -> None:
    assert timed(BatchSizer(None, latency=True), call_s, 0.0)[-1] == MAX_ROWS
    rows = timed(BatchSizer(None, latency=True), call_s, 0.001)[-1]
    assert rows * 0.001 >= min(9 * call_s, 50.0)  # nine times as much time for the rows


@pytest.mark.parametrize("row_s", [1e-5, 0.05, 0.5, 1.0, 10.0, 60.0])
def test_slow_rows_are_not_taken_for_a_slow_network(row_s: float) -> None:
    seconds = [n * row_s for n in timed(BatchSizer(None, latency=True), 0.0, row_s, 22)]
    assert max(seconds) <= max(3.0, 3 * row_s)  # it is tried
    assert max(seconds[10:]) <= max(2 * TARGET_S, 2 * row_s)


def test_first_call_that_loads_a_model_allows_batches_of_its_length() -> None:
    sizer = BatchSizer(None, latency=True)
    sizer.observe(1, 20.0, 8)
    assert max(timed(sizer, 0.0, 0.01)[10:20]) * 0.01 <= TARGET_S * 1.15


def test_batches_grow_again_where_a_device_had_no_room() -> None:
    sizer = BatchSizer(None)
    grown(sizer, 1e-6)
    sizer.lower(500)
    assert set(grown(sizer, 1e-6)) == {500}


def test_later_job_learns_anew_what_an_earlier_one_knew() -> None:
    earlier = BatchSizer(None, latency=True)
    timed(earlier, 0.5, 0.001)
    earlier.lower(300)
    later = BatchSizer(None, latency=True)
    later.resume(earlier)
    assert set(timed(later, 0.5, 0.001)) == {300}


def test_first_call_that_loads_a_model_is_not_taken_for_a_slow_network() -> None:
    sizer = BatchSizer(None, latency=True)
    sizer.observe(1, 20.0, 8)
    assert max(n * 0.5 for n in timed(sizer, 0.0, 0.5, 22)[10:]) <= 1.0


def test_calls_of_a_udf_that_became_slow_become_smaller() -> None:
    sizer = BatchSizer(None, latency=True)
    timed(sizer, 0.25, 1e-5)
    assert timed(sizer, 0.25, 10.0, 4)[-1] <= 6


def test_one_slow_call_among_quick_ones_is_forgotten() -> None:
    sizer = BatchSizer(None, latency=True)
    rows = timed(sizer, 0.25, 0.001)[-1]
    sizer.observe(rows, 55.0, 8 * rows)
    assert timed(sizer, 0.25, 0.001, 10)[-1] >= rows / 2


def test_rest_of_a_fragment_says_nothing_of_the_time_of_a_row() -> None:
    sizer = BatchSizer(None, latency=True)
    timed(sizer, 1.5, 0.001)
    rows = sizer.rows
    sizer.observe(3, 1.5, 24)
    assert sizer.rows == rows


def test_calls_that_await_so_many_at_once_hold_as_many_or_a_multiple() -> None:
    sizer = BatchSizer(None, least=50, latency=True)
    for _ in range(20):
        sizer.observe(sizer.rows, 0.3 * sizer.rows / 50, 8 * sizer.rows)
        assert sizer.rows % 50 == 0
