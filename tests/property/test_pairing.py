"""Rows that a merge wrote are paired with those that it removed, or with none, never by a guess."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneva.column.history.pairing import Codes, codes, identifies, pair

CODE = st.integers(1, 6)


def table(rows: list[tuple[int, ...]], width: int) -> Codes:
    return np.array(rows, np.uint64).reshape(len(rows), width)


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[int]]:
    """Rows with an id, three columns of few values and a computed value, and what a merge made."""
    n = draw(st.integers(1, 8))
    ids = draw(st.permutations(range(1, n + 1)))
    old: list[tuple[int, ...]] = [(i, *draw(st.tuples(CODE, CODE, CODE)), draw(CODE)) for i in ids]
    changed = draw(st.sampled_from([1, 2, 3, 4]))  # one column, of some of the rows
    new = []
    for row in old:
        values = list(row)
        if draw(st.booleans()):
            values[changed] = draw(CODE)
        new.append(tuple(values))
    order = draw(st.permutations(range(n)))
    return [new[k] for k in order], old, list(order)


@given(merges())
def test_row_of_a_table_with_ids_is_paired_with_itself(
    merged: tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[int]],
) -> None:
    new, old, order = merged
    found = pair(table(new, 5), table(old, 5), 1)
    # Where another column tells the rows apart as well as the id, nobody can say which is the id.
    assert all(was in (-1, k) for was, k in zip(found.tolist(), order, strict=True))
    if len({r[:1] for r in old}) < len({r[1:] for r in old}) or len(old) > 6:
        assert found.tolist() == order


@given(
    st.lists(st.tuples(CODE, CODE, CODE), max_size=8),
    st.lists(st.tuples(CODE, CODE, CODE), max_size=8),
)
def test_no_two_rows_are_paired_with_one(
    new: list[tuple[int, ...]], old: list[tuple[int, ...]]
) -> None:
    found = pair(table(new, 3), table(old, 3), 1)
    paired = found[found >= 0].tolist()
    assert len(set(paired)) == len(paired)
    assert all(k < len(old) for k in paired)


def test_inserted_rows_are_not_paired_with_deleted_ones() -> None:
    old = table([(1, 5, 7), (2, 5, 8), (3, 6, 9)], 3)
    new = table([(2, 5, 8), (1, 5, 7), (4, 6, 6)], 3)
    assert pair(new, old, 1).tolist() == [1, 0, -1]


def test_row_whose_key_changed_is_found_by_a_value_that_no_other_has() -> None:
    old = table([(1, 7), (2, 8), (3, 9)], 2)
    new = table([(3, 9), (100, 8), (1, 7)], 2)
    assert pair(new, old, 1).tolist() == [2, 1, 0]


def test_two_columns_are_a_key_together() -> None:
    old = table([(1, 1, 5), (1, 2, 5), (2, 1, 5), (2, 2, 5)], 3)
    new = table([(2, 1, 6), (1, 2, 6), (1, 1, 5), (2, 2, 5)], 3)
    assert pair(new, old, 1).tolist() == [2, 1, 0, 3]


def test_rows_between_which_nothing_decides_are_not_paired() -> None:
    old = table([(1, 5, 7), (1, 5, 8)], 3)
    new = table([(1, 5, 9), (1, 5, 6)], 3)
    assert pair(new, old, 1).tolist() == [-1, -1]
    turned = table([(1, 6, 9), (2, 5, 9)], 3)  # either of two keys may be the one
    assert pair(turned, table([(1, 5, 7), (2, 6, 8)], 3), 1).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("values", "others"),
    [
        (pa.array([1, None, 2]), pa.array([1, None, 3])),
        (pa.array(["a", None, "b"]), pa.array(["a", None, "c"])),
        (pa.array([True, None, False]), pa.array([True, None, True])),
        (pa.array([0.0, None, 1.0]), pa.array([0.0, None, -1.0])),
    ],
)
def test_code_of_a_value_is_its_own_and_of_a_null_zero(values: pa.Array, others: pa.Array) -> None:
    assert identifies(values.type)
    assert (codes(values) == codes(others)).tolist() == [True, True, False]
    assert codes(values)[1] == 0


def test_nulls_pair_no_rows() -> None:
    none = table([(0, 5)], 2)
    assert pair(none, table([(0, 6)], 2), 1).tolist() == [-1]
