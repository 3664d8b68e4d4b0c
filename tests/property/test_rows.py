"""Row maps and row sets agree with the plain lists that they encode."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geneva.model.rows import Mark, RowClass, RowMap, RowSet, RowStatus, classes_in

marks = st.lists(
    st.builds(Mark, st.integers(0, 5), st.text(max_size=8), st.integers(-1, 2**40)), max_size=3
).map(tuple)
row_classes = st.builds(
    RowClass,
    st.sampled_from(RowStatus),
    st.text(max_size=8),
    marks,
    st.lists(st.tuples(st.text(max_size=4), marks), max_size=2).map(tuple),
    st.integers(-1, 2**40),
)


@st.composite
def maps(draw: st.DrawFn) -> tuple[RowMap, list[RowClass]]:
    known = draw(st.lists(row_classes, min_size=1, max_size=4))
    runs = draw(st.lists(st.tuples(st.integers(0, len(known) - 1), st.integers(1, 9)), max_size=9))
    ids = np.array([i for i, n in runs for _ in range(n)], np.int64)
    return RowMap.from_ids(known, ids), [known[i] for i in ids]


def plain(row_map: RowMap) -> list[RowClass]:
    return [row_map.classes[i] for i in row_map.expand()]


@given(maps())
def test_encoding_and_the_footer_lose_no_row(case: tuple[RowMap, list[RowClass]]) -> None:
    row_map, expected = case
    assert plain(row_map) == expected
    back = RowMap.loads(row_map.dumps())
    assert plain(back) == expected
    assert back.rows == row_map.rows == len(expected)
    assert classes_in(row_map.dumps()) == row_map.classes
    assert len(set(row_map.classes)) == len(row_map.classes)


@given(maps(), st.data())
def test_take_is_indexing(case: tuple[RowMap, list[RowClass]], data: st.DataObject) -> None:
    row_map, expected = case
    if not expected:
        return
    index = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=20))
    assert plain(row_map.take(np.array(index, np.int64))) == [expected[i] for i in index]


@given(maps(), st.data())
def test_part_is_a_slice(case: tuple[RowMap, list[RowClass]], data: st.DataObject) -> None:
    row_map, expected = case
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    part = row_map.part(start, stop)
    assert plain(part) == expected[start:stop]
    assert part.rows == stop - start
    assert set(part.classes) == set(plain(part))


@given(maps(), st.data())
def test_map_with_other_classes_has_one_of_each(
    case: tuple[RowMap, list[RowClass]], data: st.DataObject
) -> None:
    row_map, expected = case
    n = len(row_map.classes)
    others = data.draw(st.lists(row_classes, min_size=n, max_size=n))
    others = [data.draw(st.sampled_from([c, others[0]])) for c in others]
    renamed = row_map.renamed(others)
    assert plain(renamed) == [others[row_map.classes.index(c)] for c in expected]
    assert len(set(renamed.classes)) == len(renamed.classes)


@given(st.lists(maps(), max_size=4))
def test_concat_is_concatenation(cases: list[tuple[RowMap, list[RowClass]]]) -> None:
    whole = RowMap.concat([m for m, _ in cases])
    assert plain(whole) == [c for _, expected in cases for c in expected]


@given(maps(), st.sampled_from(RowStatus))
def test_mask_tests_every_row(case: tuple[RowMap, list[RowClass]], status: RowStatus) -> None:
    row_map, expected = case
    assert row_map.mask(lambda c: c.status is status).tolist() == [
        c.status is status for c in expected
    ]
    assert row_map.any(lambda c: c.status is status) == any(c.status is status for c in expected)


@given(st.lists(st.booleans(), max_size=60))
def test_row_set_is_its_mask(mask: list[bool]) -> None:
    rows = RowSet.from_mask(np.array(mask, np.bool_))
    assert rows.mask().tolist() == mask
