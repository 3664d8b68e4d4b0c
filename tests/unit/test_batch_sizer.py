"""Rows per UDF call when nobody says: quick first checkpoints, bounded loss, bounded memory."""

from __future__ import annotations

import pytest

from geneva.execute.batches import MAX_ROWS, TARGET_BYTES, TARGET_S, BatchSizer


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
    assert grown(BatchSizer(None), 1e-9)[:8][-1] == MAX_ROWS


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
    assert sizer.rows == 8


def test_given_batch_size_is_never_changed() -> None:
    assert set(grown(BatchSizer(7), 10.0)) == {7}
    assert set(grown(BatchSizer(7), 1e-9)) == {7}


def test_limit_holds_whatever_is_measured_or_resumed() -> None:
    sizer = BatchSizer(None, limit=100)
    assert max(grown(sizer, 1e-9)) == 100
    sizer.resume(10_000)
    assert sizer.rows == 100
    sizer.resume(0)
    assert sizer.rows == 1
    assert BatchSizer(None, limit=0).rows == 1
