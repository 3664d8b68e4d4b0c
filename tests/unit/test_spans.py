"""Splitting fragments into spans: every row in exactly one piece, and only where it helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneva.engine.plan.spans import split
from geneva.model.types import Task
from tests.support.tasks import whole_task


def check_partition(tasks: list[Task], pieces: list[tuple[Task, ...]]) -> None:
    assert len(pieces) == len(tasks)
    for whole, parts in zip(tasks, pieces, strict=True):
        edges = [whole.start, *(p.stop for p in parts)]
        assert [p.start for p in parts] == edges[:-1]
        assert edges[-1] == whole.stop
        assert all(p.stop > p.start for p in parts)
        if len(parts) == 1:
            assert parts[0] == whole
        else:
            assert not any(p.assemble for p in parts)
            assert {(p.key, p.fragment_id, p.rows) for p in parts} == {
                (whole.key, whole.fragment_id, whole.rows)
            }


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=12),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(1, 5000)),
)
def test_spans_cover_each_row_once_and_are_no_smaller_than_a_batch(
    sizes: list[int], appliers: int, batch_size: int | None
) -> None:
    tasks = [whole_task(i, rows) for i, rows in enumerate(sizes)]
    pieces = split(tasks, appliers, batch_size)
    check_partition(tasks, pieces)
    for parts in pieces:
        if len(parts) > 1:
            assert min(p.stop - p.start for p in parts) >= (batch_size or 1)


def test_one_applier_splits_nothing() -> None:
    tasks = [whole_task(0, 1_000_000), whole_task(1, 10)]
    assert [len(p) for p in split(tasks, 1, None)] == [1, 1]


def test_one_large_fragment_feeds_all_appliers() -> None:
    (parts,) = split([whole_task(0, 1_000_000)], 8, None)
    assert len(parts) >= 8


def test_skewed_fragment_does_not_keep_one_applier_busy_alone() -> None:
    tasks = [whole_task(0, 100_000), *(whole_task(i, 1000) for i in range(1, 11))]
    pieces = split(tasks, 4, None)
    longest = max(p.stop - p.start for parts in pieces for p in parts)
    assert longest <= 110_000 / 4
    assert all(len(p) == 1 for p in pieces[1:])


def test_even_fragments_stay_whole() -> None:
    tasks = [whole_task(i, 1000) for i in range(16)]
    assert all(len(p) == 1 for p in split(tasks, 8, None))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_tiny_fragment_is_not_split(rows: int) -> None:
    assert [len(p) for p in split([whole_task(0, rows)], 8, None)] == [1]


@pytest.mark.parametrize(
    ("sizes", "appliers"),
    [
        ([48_000, 8_000, 8_000, 8_000, 8_000], 2),
        ([8_000, 8_000, 8_000, 8_000, 48_000], 2),
        ([10_000, 10_000, 10_000], 2),
        ([10_000] * 200, 160),
        ([10_000] * 9, 8),
    ],
)
def test_no_applier_works_long_after_the_others_have_nothing_left(
    sizes: list[int], appliers: int
) -> None:
    tasks = [whole_task(i, rows) for i, rows in enumerate(sizes)]
    pieces = split(tasks, appliers, None)
    check_partition(tasks, pieces)
    ends = [0] * appliers
    for part in (p for parts in pieces for p in parts):
        ends.sort()
        ends[0] += part.stop - part.start
    assert max(ends) <= 1.1 * sum(sizes) / appliers
