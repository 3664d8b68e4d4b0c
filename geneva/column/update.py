"""One version in which an update, or a merge, moved rows: what it removed, and what it made of it.

Its new fragments are asked about one by one. Where each of them continues is known while the order
of rows is kept; else all removed rows may be meant, which are read once, for all new fragments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from geneva.column.marks import with_marks
from geneva.column.moved import (
    Columns,
    Key,
    OldRow,
    between,
    in_order,
    keys,
    match_former,
    unfiltered,
    written_by,
)
from geneva.column.same import DIGEST_BYTES, NULL
from geneva.rows import BoolArray, IntArray, Mark, RowClass, RowMap, RowStatus
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import Change

# Of an old fragment: what makes its marks ones of the new fragment that is asked about.
Translator = Callable[[FragmentInfo], Callable[[Mark], Mark]]
_Digests = npt.NDArray[np.bytes_]
_DIGEST = f"S{DIGEST_BYTES}"
_ROW = np.dtype(
    [
        ("id", np.int64),
        ("target", _DIGEST),
        ("computed", _DIGEST),
        ("full", _DIGEST),
        ("source", np.int32),
        ("fresh", np.bool_),
    ]
)
_ABSENT, _CONTESTED = -1, -2
_BETTER = (
    RowStatus.MISSING,
    RowStatus.UNVERIFIED,
    RowStatus.FOREIGN,
    RowStatus.FAILED,
    RowStatus.COMPUTED,
)


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows of one fragment that an update removed.

    Attributes
    ----------
    fresh
        Rows whose value was computed from the inputs that they had at the end.
    """

    fragment: FragmentInfo
    gone: BoolArray
    row_map: RowMap
    fresh: BoolArray


class Update:
    """Answers what the rows of the fragments are that one update made.

    Parameters
    ----------
    group
        The columns that are asked about, which are computed together.
    """

    def __init__(
        self,
        storage: TableStorage,
        before: Snapshot,
        after: Snapshot,
        change: Change,
        group: Sequence[str],
        removed: Sequence[Removed],
    ) -> None:
        self._storage, self._before, self._after = storage, before, after
        self._removed = removed
        classes = [c for r in removed for c in r.row_map.classes]
        read = {m.field for c in classes for m in c.inputs}
        filtered = {m.field for c in classes for _, marks in c.wheres for m in marks} - read

        def names(ids: set[int]) -> tuple[str, ...]:
            found = [n for n, f in before.fields.items() if f.id in ids]
            return tuple(n for n in found if n in after.fields and n not in group)

        self._columns = Columns(tuple(group), names(read), names(filtered))
        self._written = written_by(change, before, self._columns)
        self._stable = before.stable_row_ids and after.stable_row_ids
        made = [f for i, f in after.fragments.items() if i not in before.fragments]
        starts = np.cumsum([0, *(f.rows for f in made)]).tolist()
        self._starts = {f.id: first for f, first in zip(made, starts, strict=False)}

    def row_map(
        self, fragment: FragmentInfo, translator: Translator, missing: RowClass, foreign: RowClass
    ) -> RowMap:
        """Match the rows of a new fragment with those that were removed.

        Parameters
        ----------
        missing, foreign
            Classes of rows that are to be computed, and of those that somebody wrote.
        """
        written = self._written
        batches = keys(self._storage, self._after, fragment.id, self._columns)
        new = list(chain.from_iterable(batches))
        if written.in_order:
            # Most updates keep the order of rows: then no others are read for each fragment.
            first = self._starts[fragment.id]
            old = self._between(first, first + len(new), translator)
            former = in_order(new, old, written, stable=self._stable)
            if former is not None:
                return match_former(new, former, missing, foreign, written)
        translate = cache(translator)

        @cache
        def known(source: int) -> RowClass:
            owner, row_class = self._sources[source]
            return with_marks(row_class, translate(owner))

        if self._stable:
            folded = [_unfolded(*k.folded()) for k in new]
            return match_former(folded, self._all.former(new, known), missing, foreign, written)
        return self._all.by_value(new, known, missing, foreign if written.target else missing)

    def _between(self, start: int, stop: int, translator: Translator) -> list[OldRow]:
        """Read removed rows, by their places among all of them."""
        found: list[OldRow] = []
        at = 0
        for r in self._removed:
            first, at = at, at + int(np.count_nonzero(r.gone))
            if at <= start or first >= stop:
                continue
            mask = between(r.gone, start - first, stop - first)
            translate = translator(r.fragment)
            known = [with_marks(c, translate) for c in r.row_map.classes]
            rows = self._read(r, mask)
            classes = r.row_map.expand()[mask].tolist()
            values = zip(chain.from_iterable(rows), classes, r.fresh[mask].tolist(), strict=True)
            found += [OldRow(key, known[c], fresh) for key, c, fresh in values]
        return found

    def _read(self, removed: Removed, mask: BoolArray) -> Iterator[list[Key]]:
        return keys(self._storage, self._before, removed.fragment.id, self._columns, mask)

    @cached_property
    def _sources(self) -> list[tuple[FragmentInfo, RowClass]]:
        """Say whose the numbers are that stand for the classes of all fragments."""
        return [(r.fragment, c) for r in self._removed for c in r.row_map.classes]

    @cached_property
    def _all(self) -> _Rows:
        """Read all removed rows; of each, 61 bytes are kept, and at most as many to find it by."""
        pieces = [np.empty(0, _ROW)]
        first = 0
        for r in self._removed:
            folded = [
                np.array([(*k.folded(), 0, False) for k in batch], _ROW)
                for batch in self._read(r, r.gone)
            ]
            piece = np.concatenate(folded)
            piece["source"] = first + r.row_map.expand()[r.gone]
            piece["fresh"] = r.fresh[r.gone]
            pieces.append(piece)
            first += len(r.row_map.classes)
        return _Rows(np.concatenate(pieces), [c for _, c in self._sources])


class _Rows:
    """Finds removed rows by id, or by value."""

    def __init__(self, rows: npt.NDArray[np.void], classes: Sequence[RowClass]) -> None:
        self._rows, self._classes = rows, classes

    def former(self, new: Sequence[Key], known: Callable[[int], RowClass]) -> list[OldRow | None]:
        """Return what rows were before, by stable row id."""
        order, ids = self._by_id
        wanted = np.array([k.row_id for k in new], np.int64)
        at, found = _search(ids, wanted)
        former: list[OldRow | None] = [None] * len(new)
        hits = np.flatnonzero(found)
        for k, row in zip(hits.tolist(), self._rows[order[at[hits]]].tolist(), strict=True):
            *key, source, fresh = row
            former[k] = OldRow(_unfolded(*key), known(source), fresh)
        return former

    def by_value(
        self,
        new: Sequence[Key],
        known: Callable[[int], RowClass],
        missing: RowClass,
        unheld: RowClass,
    ) -> RowMap:
        """Return the classes of rows, whichever rows they were.

        A row that agrees with a fresh removed one in the target and in all that the target was
        computed from keeps that row's class; any other value that some removed row held is stale,
        one that none held is ``unheld``.
        """
        rows = np.array([(*k.folded(), 0, False) for k in new], _ROW)
        full, computed = _find(self._full, rows["full"]), _find(self._computed, rows["computed"])
        holders = _find(self._holders, rows["target"])
        n = len(self._classes)
        # A value that only people's rows held is still theirs; any computed one may be stale.
        held = np.select(
            [rows["target"] == NULL, holders == _ABSENT, holders == _CONTESTED],
            [3 * n, 3 * n + 1, 3 * n],
            2 * n + holders,
        )
        codes = np.select([full >= 0, computed >= 0], [full, n + computed], held)
        used, ids = np.unique(codes, return_inverse=True)

        def of(code: int) -> RowClass:
            kind, source = divmod(code, n) if code < 3 * n else (3, code - 3 * n)
            if kind == 3:
                return unheld if source else missing
            return unfiltered(known(source)) if kind == 1 else known(source)

        return RowMap.from_ids([of(c) for c in used.tolist()], ids.astype(np.int64))

    @cached_property
    def _by_id(self) -> tuple[IntArray, IntArray]:
        order = np.argsort(self._rows["id"], kind="stable")
        return order, self._rows["id"][order]

    @cached_property
    def _best(self) -> IntArray:
        """Places of fresh rows, those of the best classes first.

        Rows that agree in all values may differ in who wrote them and when. A computed one taken
        for a person's would never be computed again; an older one than its own would make a row
        look unchanged to those who read the old value.
        """
        ranks = [(_BETTER.index(c.status), c.generation) for c in self._classes]
        better = {r: -k for k, r in enumerate(sorted(set(ranks)))}
        fresh = np.flatnonzero(self._rows["fresh"])
        rank = np.array([better[r] for r in ranks], np.int64)[self._rows["source"][fresh]]
        best: IntArray = fresh[np.argsort(rank, kind="stable")]
        return best

    @cached_property
    def _full(self) -> tuple[_Digests, IntArray]:
        # Others say nothing about the inputs that are beside their value.
        return _first(self._rows["full"][self._best], self._rows["source"][self._best])

    @cached_property
    def _computed(self) -> tuple[_Digests, IntArray]:
        return _first(self._rows["computed"][self._best], self._rows["source"][self._best])

    @cached_property
    def _holders(self) -> tuple[_Digests, IntArray]:
        theirs = np.array([c.status is RowStatus.FOREIGN for c in self._classes], np.bool_)
        theirs = theirs[self._rows["source"]]
        source = np.where(theirs, self._rows["source"], _CONTESTED)
        order = np.argsort(theirs, kind="stable")
        return _first(self._rows["target"][order], source[order])


def _unfolded(row_id: int, target: bytes, computed: bytes, full: bytes) -> Key:
    return Key(row_id, (target,), (computed,), (full,))


def _first(digests: _Digests, sources: IntArray) -> tuple[_Digests, IntArray]:
    """Return the distinct digests, sorted, and the source of the first of each."""
    distinct, first = np.unique(digests, return_index=True)
    return distinct, sources[first].astype(np.int64)


def _find(index: tuple[_Digests, IntArray], wanted: _Digests) -> IntArray:
    """Return the source of each digest, or `_ABSENT`."""
    at, found = _search(index[0], wanted)
    sources = np.full(len(wanted), _ABSENT, np.int64)
    sources[found] = index[1][at[found]]
    return sources


def _search(
    ordered: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]
) -> tuple[IntArray, BoolArray]:
    """Return the place of each value among those that are in order, and whether it is there."""
    at = np.searchsorted(ordered, wanted)
    found = np.zeros(len(wanted), np.bool_)
    inside = at < len(ordered)
    found[inside] = ordered[at[inside]] == wanted[inside]
    return at, found
