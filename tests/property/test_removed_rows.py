"""Rows found among the removed ones by value or id are those that plain dictionaries find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geneva.column.moved import Key, unfiltered
from geneva.column.same import NULL
from geneva.column.update import _BETTER, _ROW, _Rows
from geneva.rows import FOREIGN, MISSING, Mark, RowClass, RowStatus

marks = st.lists(st.builds(Mark, st.just(1), st.sampled_from("ab")), max_size=1).map(tuple)
classes = st.builds(
    RowClass,
    st.sampled_from(RowStatus),
    st.sampled_from(["", "u"]),
    marks,
    st.lists(st.tuples(st.just("w"), marks), max_size=1).map(tuple),
    st.integers(-1, 2),
)
digests = st.sampled_from([NULL, b"a" * 15 + b"\1", b"b" * 15 + b"\1", b"\0" * 15 + b"\1"])
keys = st.builds(
    Key,
    st.integers(0, 20),
    st.tuples(digests, digests),
    st.tuples(digests),
    st.tuples(digests),
)
removed = st.lists(st.tuples(keys, st.integers(0, 3), st.booleans()), max_size=12)
MISSED, UNHELD = replace(MISSING, generation=9), replace(FOREIGN, generation=9)


def rows_of(old: Sequence[tuple[Key, int, bool]], known: list[RowClass]) -> _Rows:
    rows = [(*key.folded(), source, fresh) for key, source, fresh in old]
    return _Rows(np.array(rows, _ROW), known)


def found(key: Key, old: Sequence[tuple[Key, int, bool]], known: list[RowClass]) -> RowClass:
    """Find a row's class one removed row after the other."""

    def best(fits: list[RowClass]) -> RowClass | None:
        return max(fits, key=lambda c: (_BETTER.index(c.status), c.generation), default=None)

    held = [(o, known[c], fresh) for o, c, fresh in old if o.target == key.target]
    same = [(o, c) for o, c, fresh in held if fresh and o.inputs == key.inputs]
    full = best([c for o, c in same if o.filters == key.filters])
    computed = best([c for _, c in same])
    if full is not None:
        return full
    if computed is not None:
        return unfiltered(computed)
    if key.empty:
        return MISSED
    if not held:
        return UNHELD
    return held[0][1] if all(c.status is RowStatus.FOREIGN for _, c, _ in held) else MISSED


@given(removed, st.lists(keys, max_size=8), st.lists(classes, min_size=4, max_size=4))
def test_row_found_by_value_is_another_or_missed(
    old: list[tuple[Key, int, bool]], new: list[Key], known: list[RowClass]
) -> None:
    row_map = rows_of(old, known).by_value(new, known.__getitem__, MISSED, UNHELD)
    assert row_map.rows == len(new)
    expected = [found(key, old, known) for key in new]
    assert [row_map.classes[k] for k in row_map.expand().tolist()] == expected


@given(removed, st.lists(keys, max_size=8), st.lists(classes, min_size=4, max_size=4))
def test_row_found_by_id_is_another_or_missed(
    old: list[tuple[Key, int, bool]], new: list[Key], known: list[RowClass]
) -> None:
    old = list({key.row_id: (key, c, fresh) for key, c, fresh in old}.values())
    by_id = {key.row_id: (key, known[c], fresh) for key, c, fresh in old}
    for key, was in zip(new, rows_of(old, known).former(new, known.__getitem__), strict=True):
        expected = by_id.get(key.row_id)
        assert (was is None) == (expected is None)
        if was is not None and expected is not None:
            folded = (was.key.row_id, *was.key.target, *was.key.inputs, *was.key.filters)
            assert (folded, was.row_class, was.fresh) == (expected[0].folded(), *expected[1:])
