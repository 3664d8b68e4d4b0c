"""Rows found among the removed ones by value or id are those that plain dictionaries find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geneva.column.history.moved import Key, unfiltered
from geneva.column.history.same import NULL
from geneva.column.history.update import _BETTER, _ROW, Match, UpdatedRows
from geneva.model.rows import FOREIGN, MISSING, Mark, RowClass, RowStatus

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


def rows_of(old: Sequence[tuple[Key, int, bool]], known: list[RowClass]) -> UpdatedRows:
    rows = [(*key.folded(), source, fresh) for key, source, fresh in old]
    return UpdatedRows(np.array(rows, _ROW), known)


def folded(new: Sequence[Key]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return np.array([(*key.folded(), 0, False) for key in new], _ROW)


def alike(key: Key, old: Sequence[tuple[Key, int, bool]], known: list[RowClass]) -> RowClass | None:
    """Find the class of a fresh row that agrees, one removed row after the other."""

    def best(fits: list[RowClass]) -> RowClass | None:
        return max(fits, key=lambda c: (_BETTER.index(c.status), c.generation), default=None)

    same = [
        (o, known[c])
        for o, c, fresh in old
        if fresh and o.target == key.target and o.inputs == key.inputs
    ]
    full = best([c for o, c in same if o.filters == key.filters])
    computed = best([c for _, c in same])
    return full if full is not None else None if computed is None else unfiltered(computed)


def as_it_was(
    key: Key, was: tuple[Key, RowClass, bool] | None, back: bool, meant: bool
) -> RowClass:
    """Return the class of a row whose former self is known."""
    if was is None or key.target != was[0].target:
        return MISSED if key.empty or back else UNHELD
    former, row_class, fresh = was
    meant = meant and not key.empty
    if key.inputs == former.inputs:
        if meant and (not fresh or row_class.status is RowStatus.MISSING):
            return UNHELD
        return row_class if key.filters == former.filters else unfiltered(row_class)
    if row_class.status is RowStatus.FOREIGN:
        return row_class
    return UNHELD if meant else MISSED


@given(
    removed,
    st.lists(st.tuples(keys, st.integers(-1, 11), st.booleans()), max_size=8),
    st.lists(classes, min_size=4, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_class_of_a_row_is_that_of_an_equal_one_or_follows_from_what_it_was(
    old: list[tuple[Key, int, bool]],
    new: list[tuple[Key, int, bool]],
    known: list[RowClass],
    meant: bool,
    by_value: bool,
) -> None:
    was = [k if k < len(old) else -1 for _, k, _ in new]
    rows, made = rows_of(old, known), folded([key for key, _, _ in new])
    none = np.full(len(new), -1, np.int64)
    full, computed = rows.alike(made) if by_value else (none, none)
    match = Match(made, rows.rows, np.array(was, np.int64), full, computed, meant, 0)
    back = np.array([b for _, _, b in new], np.bool_)
    row_map = match.row_map(known, known.__getitem__, back, MISSED, UNHELD)
    expected = []
    for (key, _, came_back), k in zip(new, was, strict=True):
        found = alike(key, old, known) if by_value else None
        former = (old[k][0], known[old[k][1]], old[k][2]) if k >= 0 else None
        expected.append(found or as_it_was(key, former, came_back, meant))
    assert row_map.rows == len(new)
    assert [row_map.classes[k] for k in row_map.expand().tolist()] == expected


@given(removed, st.lists(keys, max_size=8), st.lists(classes, min_size=4, max_size=4))
def test_row_found_by_id_is_the_one_with_that_id(
    old: list[tuple[Key, int, bool]], new: list[Key], known: list[RowClass]
) -> None:
    old = list({key.row_id: (key, c, fresh) for key, c, fresh in old}.values())
    places = {key.row_id: k for k, (key, _, _) in enumerate(old)}
    found = rows_of(old, known).by_id(np.array([k.row_id for k in new], np.int64))
    assert found.tolist() == [places.get(key.row_id, -1) for key in new]
