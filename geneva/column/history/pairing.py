"""Pair the rows that a merge wrote with those that it removed, by their identifying values.

A merge writes whole rows in any order, and its transaction does not say by which columns it found
them. So each column is tried as a key, and that one is believed whose pairs agree most in all
other columns: a merge changes few values of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geneva.column.history.same import digests
from geneva.model.rows import BoolArray, IntArray

Codes = npt.NDArray[np.uint64]  # of values, rows by columns: equal exactly when the values are
_ABSENT = np.uint64(0)  # code of a null, which identifies nothing
_Pairs = tuple[IntArray, IntArray]  # places of rows among the new ones, and among the old


def identifies(kind: pa.DataType) -> bool:
    """Whether values of a type may tell a row from others, and are cheap to compare."""
    return not pa.types.is_nested(kind) and not isinstance(kind, pa.BaseExtensionType)


def codes(array: pa.Array) -> Codes:
    """Return a code of each value."""
    found = b"".join(b"\0" * 8 if d == b"N" else d[:8] for d in digests(array))
    return np.frombuffer(found, np.uint64)


def pair(new: Codes, old: Codes, values: int) -> IntArray:
    """Return for each new row which old one it was, or -1 where that cannot be decided.

    Parameters
    ----------
    new, old
        Codes of the columns that may identify a row, and last those of what was computed.
    values
        How many the last are.
    """
    was = np.full(len(new), -1, np.int64)
    taken = np.zeros(len(old), np.bool_)
    for a, b in _by_agreement(new, old, values):
        free = (was[a] < 0) & ~taken[b]
        was[a[free]] = b[free]
        taken[b[free]] = True
    return was


def _by_agreement(new: Codes, old: Codes, values: int) -> Iterator[_Pairs]:
    """Yield the pairs of each key, the key whose pairs agree most first.

    Of keys that agree as much, only pairs that all of them make: else it is a guess.
    """
    split = new.shape[1] - values
    keys: list[tuple[Codes, Codes]] = [(new[:, k], old[:, k]) for k in range(new.shape[1])]
    if not any(_complete(*key) for key in keys[:split]):
        keys.append(_together(new[:, :split], old[:, :split]))
    found = [(_once_in_each(*key), k, key) for k, key in enumerate(keys)]
    ranked: dict[int, list[tuple[_Pairs, bool, bool]]] = {}
    for (a, b), k, key in found:
        if len(a):
            score = int(np.count_nonzero(new[a] == old[b]))
            names_rows = not split <= k < split + values
            ranked.setdefault(score, []).append(((a, b), names_rows, _complete(*key)))
    decided = False
    for score in sorted(ranked, reverse=True):
        alike = [r for r in ranked[score] if not (decided and r[1])]
        if alike:
            yield _common([pairs for pairs, _, _ in alike])
        # Rows that a key of all rows leaves over were inserted, or deleted; a value that no other
        # row has may still have been carried along.
        decided = decided or any(names and complete for _, names, complete in alike)


def _complete(new: Codes, old: Codes) -> bool:
    """Whether a column tells all rows apart, on both sides."""
    return all(_ABSENT not in side and len(np.unique(side)) == len(side) for side in (new, old))


def _together(new: Codes, old: Codes) -> tuple[Codes, Codes]:
    """Return codes of all columns of which no old value is gone: several may be a key together."""
    both = np.concatenate([new, old])
    key, known = np.zeros(len(both), np.uint64), np.zeros(len(both), np.bool_)
    for k in range(both.shape[1]):
        _, number = np.unique(both[:, k], return_inverse=True)
        counts = np.bincount(number[: len(new)], minlength=int(number.max(initial=0)) + 1)
        was = np.bincount(number[len(new) :], minlength=len(counts))
        if np.all(was <= counts):
            joined = key * np.uint64(len(counts)) + number.astype(np.uint64)
            key = np.unique(joined, return_inverse=True)[1].astype(np.uint64)
            known |= both[:, k] != _ABSENT
    key = np.where(known, key + np.uint64(1), _ABSENT)
    return key[: len(new)], key[len(new) :]


def _once_in_each(new: Codes, old: Codes) -> _Pairs:
    """Return the places of the values that are there once on both sides."""
    sides = []
    for side in (new, old):
        values, first, count = np.unique(side, return_index=True, return_counts=True)
        once = (count == 1) & (values != _ABSENT)
        sides.append((values[once], first[once]))
    _, a, b = np.intersect1d(sides[0][0], sides[1][0], assume_unique=True, return_indices=True)
    return sides[0][1][a], sides[1][1][b]


def _common(pairs: Sequence[_Pairs]) -> _Pairs:
    """Return the pairs of which no other key says something else."""
    if len(pairs) == 1:
        return pairs[0]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    distinct = np.unique(np.stack([a, b], axis=1), axis=0)
    a, b = distinct[:, 0], distinct[:, 1]
    kept: BoolArray = _single(a) & _single(b)
    return a[kept], b[kept]


def _single(values: IntArray) -> BoolArray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    single: BoolArray = count[place] == 1
    return single
