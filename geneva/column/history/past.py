"""Look for values among those that their own rows held before, and remember what was seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geneva.column.history.update import Digests
from geneva.model.rows import BoolArray, IntArray


class FileOf(NamedTuple):
    """What supplied a column of a fragment."""

    field: int
    fragment: int
    file: str


# What a row held up to a file: digests of values, and whether each was a person's the last time.
Past = dict[bytes, bool]
# Of rows that were followed to the beginning: the next value of the same row is not followed so
# far again. One history is shared by all files that the row has been in.
Pasts = dict[FileOf, dict[int, Past]]


class Search:
    """One search, for a value of each of several rows; it goes from file to file, latest first.

    Parameters
    ----------
    values
        Digests; rows are told of by their places here.
    pasts
        What earlier searches saw; what this one sees is added.
    """

    def __init__(self, values: Digests, pasts: Pasts) -> None:
        self._values: list[bytes] = values.tolist()
        self._pasts = pasts
        self._found = np.zeros(len(values), np.bool_)
        self._open = np.ones(len(values), np.bool_)
        self._begun: dict[int, tuple[FileOf, int]] = {}
        self._seen: dict[int, Past] = {}
        self._visited: dict[FileOf, set[int]] = {}

    def begin(self, file: FileOf, rows: IntArray, of: IntArray) -> None:
        """Say where rows are followed from."""
        for row, k in zip(rows.tolist(), of.tolist(), strict=True):
            self._begun[k], self._seen[k] = (file, row), {}

    def left(self, file: FileOf, rows: IntArray, of: IntArray) -> tuple[IntArray, IntArray]:
        """Return those of some rows of a file that are still to be looked at."""
        visited, pasts = self._visited.setdefault(file, set()), self._pasts.get(file, {})
        for row, k in zip(rows.tolist(), of.tolist(), strict=True):
            if self._open[k] and k not in visited and row in pasts:
                past, value = pasts[row], self._values[k]
                if value in past:
                    self._end(k, past[value])
                else:
                    past |= self._seen[k]  # the later ones
                    self._seen[k] = past
        known = [
            not self._open[k] or k in visited or r in pasts for r, k in zip(rows, of, strict=True)
        ]
        visited.update(of.tolist())
        new = ~np.array(known, np.bool_)
        return rows[new], of[new]

    def compare(
        self, rows: IntArray, of: IntArray, held: Digests, theirs: BoolArray
    ) -> tuple[IntArray, IntArray]:
        """Compare values with those that the rows held; return the rows that are left."""
        same = np.zeros(len(of), np.bool_)
        for n, (k, value, person) in enumerate(
            zip(of.tolist(), held.tolist(), theirs.tolist(), strict=True)
        ):
            self._seen[k].setdefault(value, person)
            if value == self._values[k]:
                same[n] = True
                self._end(k, person)
        return rows[~same], of[~same]

    def ended(self) -> BoolArray:
        """Return which values were found, and were not a person's the last time."""
        for k in np.flatnonzero(self._open).tolist():
            if k in self._begun:
                file, row = self._begun[k]
                self._pasts.setdefault(file, {})[row] = self._seen[k]
        return self._found

    def _end(self, k: int, person: bool) -> None:
        self._found[k], self._open[k] = not person, False
