"""One version in which an update, or a merge, moved rows: the removed rows and their new selves.

Its new fragments are asked about one by one. Where each of them continues is known while the order
of rows is kept; else all removed rows may be meant, which are read once, for all new fragments.
A new row is paired with the one that it was before their values are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from geneva.column.binding import binding_of
from geneva.column.history.marks import with_marks
from geneva.column.history.moved import (
    Columns,
    Key,
    between,
    chosen_rows,
    keys,
    unfiltered,
    written_by,
)
from geneva.column.history.pairing import Codes, codes, identifies, pair
from geneva.column.history.same import DIGEST_BYTES, NULL
from geneva.model.rows import BoolArray, IntArray, Mark, RowClass, RowMap, RowStatus
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import Change

# Of an old fragment: what makes its marks ones of the new fragment that is asked about.
Translator = Callable[[FragmentInfo], Callable[[Mark], Mark]]
Digests = npt.NDArray[np.bytes_]
DIGEST = f"S{DIGEST_BYTES}"
_ROW = np.dtype(
    [
        ("id", np.int64),
        ("target", DIGEST),
        ("computed", DIGEST),
        ("full", DIGEST),
        ("source", np.int32),
        ("fresh", np.bool_),
    ]
)
_RowArray = npt.NDArray[np.void]
_ABSENT = -1
_IDENTIFYING = 32  # columns by which rows are told apart
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


@dataclass(frozen=True, slots=True)
class Match:
    """The rows of one new fragment, and which removed rows they were, as far as that is known.

    Attributes
    ----------
    new, old
        Digests of the rows, and of the removed ones that they may have been.
    was
        Place of each row among the old ones; -1 of one that was inserted, or where nobody can tell.
    full, computed
        Source of a fresh removed row that agrees with each in all values, and in the target and
        all that it was computed from; negative where none does.
    meant
        Whether a value that is there was set, and not read before and carried along.
    first
        Number of the first of the old rows among all that were removed.
    """

    new: _RowArray
    old: _RowArray
    was: IntArray
    full: IntArray
    computed: IntArray
    meant: bool
    first: int

    def changed(self) -> tuple[IntArray, IntArray]:
        """Return the rows whose value changed, and their earlier classes.

        Whoever wrote whole rows may have read them before the column was computed again. What
        was set on purpose is not asked about.
        """
        if self.meant:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        other = self._paired & (self.computed < 0) & ~self._same_target & ~self._empty
        rows = np.flatnonzero(other)
        return rows, self.first + self.was[rows]

    def row_map(
        self,
        classes: Sequence[RowClass],
        known: Callable[[int], RowClass],
        back: BoolArray,
        missing: RowClass,
        foreign: RowClass,
    ) -> RowMap:
        """Return the classes of the rows.

        Parameters
        ----------
        classes, known
            Those of removed rows by source, and what makes them ones of the new fragment.
        back
            Rows that hold a value which the row itself once held as a computed one.
        missing, foreign
            Classes of rows that are to be computed, and of those that somebody wrote.
        """
        n = len(classes)
        old = self.old[self.was] if len(self.old) else np.zeros(len(self.new), _ROW)
        source = old["source"].astype(np.int64)
        theirs = np.array([c.status is RowStatus.FOREIGN for c in classes] or [False])[source]
        none = np.array([c.status is RowStatus.MISSING for c in classes] or [False])[source]
        carried = self._same_target
        fresh = carried & (self.new["computed"] == old["computed"])
        same = fresh & (self.new["full"] == old["full"])
        meant = ~self._empty & self.meant
        due, kept = 2 * n, 2 * n + 1
        codes = np.select(
            [
                self.full >= 0,
                self.computed >= 0,
                # Set to what a stale value already was: somebody means it.
                fresh & (none | ~old["fresh"]) & meant,
                same,
                fresh,
                carried & theirs,
                carried & meant,
                carried,
                self._empty | back,
            ],
            [self.full, n + self.computed, kept, source, n + source, source, kept, due, due],
            kept,  # somebody else's, or nobody can tell
        )
        used, ids = np.unique(codes, return_inverse=True)

        def of(code: int) -> RowClass:
            if code >= due:
                return missing if code == due else foreign
            return known(code) if code < n else unfiltered(known(code - n))

        return RowMap.from_ids([of(c) for c in used.tolist()], ids.astype(np.int64))

    @property
    def _paired(self) -> BoolArray:
        return self.was >= 0

    @property
    def _empty(self) -> BoolArray:
        empty: BoolArray = self.new["target"] == NULL
        return empty

    @property
    def _same_target(self) -> BoolArray:
        if not len(self.old):
            return np.zeros(len(self.new), np.bool_)
        same: BoolArray = self._paired & (self.new["target"] == self.old["target"][self.was])
        return same


class Update:
    """The row maps of the fragments that one update made.

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
        self._made = _made(before, after, change)
        starts = np.cumsum([0, *(f.rows for f in self._made)]).tolist()
        self._starts = {f.id: first for f, first in zip(self._made, starts, strict=False)}
        self._ordered = self._written.in_order

    def match(self, fragment: FragmentInfo, *, all_pairs: bool = False) -> Match:
        """Find the earlier self of each row of a new fragment: by order, by id or by its values.

        Parameters
        ----------
        all_pairs
            Pair rows also where the values alone say what they are.
        """
        ordered = self._by_order(fragment)
        meant = self._written.target and self._written.in_order
        if ordered is not None:
            new, old, first = ordered
            none = np.full(len(new), -1, np.int64)
            return Match(new, old, np.arange(len(new)), none, none, meant, first)
        part = slice(first := self._starts[fragment.id], first + fragment.rows)
        new, old = self._new(fragment) if self._stable else self._all_new[part], self._all.rows
        was = full = computed = np.full(len(new), -1, np.int64)
        if self._stable:
            was = self._all.by_id(new["id"])
        else:
            full, computed = self._all.alike(new)
            if all_pairs or np.any((computed < 0) & (new["target"] != NULL)):
                was = self._pairs[part]
        return Match(new, old, was, full, computed, meant, 0)

    def row_map(
        self,
        match: Match,
        back: BoolArray,
        translator: Translator,
        missing: RowClass,
        foreign: RowClass,
    ) -> RowMap:
        """Return the classes of the rows that were matched; see `Match.row_map`."""
        translate = cache(translator)
        sources = [(r.fragment, c) for r in self._removed for c in r.row_map.classes]

        @cache
        def known(source: int) -> RowClass:
            owner, row_class = sources[source]
            return with_marks(row_class, translate(owner))

        unset = foreign if self._written.target else missing
        return match.row_map([c for _, c in sources], known, back, missing, unset)

    def places(self, numbers: IntArray) -> Iterator[tuple[FragmentInfo, IntArray, IntArray]]:
        """Say where removed rows lay: fragments, physical rows in them, and whose they are."""
        first = 0
        for r in self._removed:
            rows = np.flatnonzero(r.gone)
            of = np.flatnonzero((numbers >= first) & (numbers < first + len(rows)))
            if len(of):
                yield r.fragment, rows[numbers[of] - first], of
            first += len(rows)

    def _by_order(self, fragment: FragmentInfo) -> tuple[_RowArray, _RowArray, int] | None:
        """Return new rows and the removed ones that they were, if the update kept their order.

        By stable row id; else all that it did not set must agree. Most updates do, and then no
        other rows are read for each fragment.
        """
        if not self._ordered:
            return None
        kept = [not w for w in self._written.columns]
        new = list(chain.from_iterable(self._read(self._after, fragment)))
        first = self._starts[fragment.id]
        old, sources = self._between(first, first + len(new))
        if len(old) == len(new):
            pairs = zip(new, old, strict=True)
            if self._stable:
                agreed = all(key.row_id == was.row_id for key, was in pairs)
            else:
                agreed = all(key.agrees(was, kept) for key, was in pairs)
            if agreed:
                return _rows(new), _rows(old, sources), first
        self._ordered = False
        return None

    def _between(self, start: int, stop: int) -> tuple[list[Key], list[tuple[int, bool]]]:
        """Read removed rows, by their places among all of them."""
        found: list[Key] = []
        sources: list[tuple[int, bool]] = []
        at = classes = 0
        for r in self._removed:
            first, at = at, at + int(np.count_nonzero(r.gone))
            if at > start and first < stop:
                mask = between(r.gone, start - first, stop - first)
                found += chain.from_iterable(self._read(self._before, r.fragment, mask))
                ids = (classes + r.row_map.expand()[mask]).tolist()
                sources += zip(ids, r.fresh[mask].tolist(), strict=True)
            classes += len(r.row_map.classes)
        return found, sources

    def _read(
        self, snapshot: Snapshot, fragment: FragmentInfo, mask: BoolArray | None = None
    ) -> Iterator[list[Key]]:
        return keys(self._storage, snapshot, fragment.id, self._columns, mask)

    def _new(self, fragment: FragmentInfo) -> _RowArray:
        return _joined(_rows(batch) for batch in self._read(self._after, fragment))

    @cached_property
    def _all_new(self) -> _RowArray:
        """Read all new rows; as much of each is kept as of the removed ones."""
        return _joined(map(self._new, self._made))

    @cached_property
    def _all(self) -> UpdatedRows:
        """Read all removed rows; of each, 61 bytes are kept, and at most as many to find it by."""
        pieces = []
        first = 0
        for r in self._removed:
            piece = _joined(_rows(batch) for batch in self._read(self._before, r.fragment, r.gone))
            piece["source"] = first + r.row_map.expand()[r.gone]
            piece["fresh"] = r.fresh[r.gone]
            pieces.append(piece)
            first += len(r.row_map.classes)
        return UpdatedRows(_joined(pieces), [c for r in self._removed for c in r.row_map.classes])

    @cached_property
    def _pairs(self) -> IntArray:
        """Pair all new rows with removed ones: one that is there once on one side may not be."""
        fields = self._before.fields.items()
        names = [
            n
            for n, f in fields
            if n in self._after.fields
            and n not in self._columns.target
            and self._after.fields[n].arrow.type == f.arrow.type
            and identifies(f.arrow.type)
            and binding_of(f.arrow) is None
        ][:_IDENTIFYING]
        new = self._codes(self._after, ((f, None) for f in self._made), names)
        old = self._codes(self._before, ((r.fragment, r.gone) for r in self._removed), names)
        values = [
            (_code(self._all_new, c), _code(self._all.rows, c)) for c in ("computed", "target")
        ]
        return pair(
            np.column_stack([new, *(v for v, _ in values)]),
            np.column_stack([old, *(v for _, v in values)]),
            len(values),
        )

    def _codes(
        self,
        snapshot: Snapshot,
        fragments: Iterable[tuple[FragmentInfo, BoolArray | None]],
        names: Sequence[str],
    ) -> Codes:
        pieces = [np.empty((0, len(names)), np.uint64)]
        for fragment, mask in fragments:
            for batch in chosen_rows(self._storage, snapshot, fragment, names, mask):
                found = [codes(batch.column(n)) for n in names]
                pieces.append(np.array(found, np.uint64).reshape(len(names), -1).T)
        return np.concatenate(pieces)


def _made(before: Snapshot, after: Snapshot, change: Change) -> list[FragmentInfo]:
    """Return the fragments that an update made: the last ones of the table."""
    last = list(after.fragments)[-change.made :] if change.made else []
    if any(i in before.fragments for i in last):
        last = [i for i in after.fragments if i not in before.fragments]
    return [after.fragments[i] for i in last]


class UpdatedRows:
    """Finds removed rows by id, or by value."""

    def __init__(self, rows: _RowArray, classes: Sequence[RowClass]) -> None:
        self.rows, self._classes = rows, classes

    def by_id(self, wanted: IntArray) -> IntArray:
        """Return the place of each stable row id, or -1."""
        order, ids = self._by_id
        at, found = _search(ids, wanted)
        places = np.full(len(wanted), -1, np.int64)
        places[found] = order[at[found]]
        return places

    def alike(self, new: _RowArray) -> tuple[IntArray, IntArray]:
        """Return the sources of fresh rows that agree in all values and in the computed one.

        A UDF is a function of its inputs: whichever rows they were, the value is right here too.
        """
        return _find(self._full, new["full"]), _find(self._computed, new["computed"])

    @cached_property
    def _by_id(self) -> tuple[IntArray, IntArray]:
        order = np.argsort(self.rows["id"], kind="stable")
        return order, self.rows["id"][order]

    @cached_property
    def _best(self) -> IntArray:
        """Places of fresh rows, those of the best classes first.

        Rows that agree in all values may differ in who wrote them and when. A computed one taken
        for a person's would never be computed again; an older one than its own would make a row
        look unchanged to those who read the old value.
        """
        ranks = [(_BETTER.index(c.status), c.generation) for c in self._classes]
        better = {r: -k for k, r in enumerate(sorted(set(ranks)))}
        fresh = np.flatnonzero(self.rows["fresh"])
        rank = np.array([better[r] for r in ranks], np.int64)[self.rows["source"][fresh]]
        best: IntArray = fresh[np.argsort(rank, kind="stable")]
        return best

    @cached_property
    def _full(self) -> tuple[Digests, IntArray]:
        # Others say nothing about the inputs that are beside their value.
        return _first(self.rows["full"][self._best], self.rows["source"][self._best])

    @cached_property
    def _computed(self) -> tuple[Digests, IntArray]:
        return _first(self.rows["computed"][self._best], self.rows["source"][self._best])


def _rows(found: Sequence[Key], sources: Sequence[tuple[int, bool]] | None = None) -> _RowArray:
    told = sources or [(0, False)] * len(found)
    return np.array([(*k.folded(), *s) for k, s in zip(found, told, strict=True)], _ROW)


def _joined(pieces: Iterable[_RowArray]) -> _RowArray:
    return np.concatenate([np.empty(0, _ROW), *pieces])


def _code(rows: _RowArray, digest: str) -> Codes:
    """Return codes of a digest of each row; that of no value identifies nothing."""
    whole = np.ascontiguousarray(rows[digest]).view(np.uint64).reshape(-1, DIGEST_BYTES // 8)
    return np.where(rows[digest] == NULL, np.uint64(0), whole[:, 0])


def _first(digests: Digests, sources: IntArray) -> tuple[Digests, IntArray]:
    """Return the distinct digests, sorted, and the source of the first of each."""
    distinct, first = np.unique(digests, return_index=True)
    return distinct, sources[first].astype(np.int64)


def _find(index: tuple[Digests, IntArray], wanted: Digests) -> IntArray:
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
