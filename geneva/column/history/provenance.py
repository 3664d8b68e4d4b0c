"""Where a fragment's values came from: names, footers, and the history of the table.

A fragment whose column file this engine wrote says so itself. Any other file came from somebody
who moved, rewrote or wrote rows; `History` finds the version that did, and carries the classes of
the old rows over to the new ones where that can be proven.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np

from geneva.column.binding import Binding, binding_of, digest_in
from geneva.column.file import ColumnFileName, read_row_map
from geneva.column.history.descent import live_mask, rewritten_from
from geneva.column.history.ledger import Ledger, entry_key
from geneva.column.history.marks import (
    NO_FILE,
    UNKNOWN,
    file_generation,
    group_columns,
    group_subtree,
    supplier,
    with_marks,
)
from geneva.column.history.moved import Columns, compare, keys, match_in_place
from geneva.column.history.sources import Sources, inputs_in, named
from geneva.column.history.update import DIGEST, Digests, Removed, Update
from geneva.errors import CorruptFileError, VersionGoneError
from geneva.model.rows import (
    FOREIGN,
    GONE,
    MISSING,
    UNVERIFIED,
    BoolArray,
    IntArray,
    Mark,
    Marks,
    RowClass,
    RowMap,
    RowStatus,
)
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import Change, RewriteGroup, flags

_Place = tuple[Snapshot, FragmentInfo, IntArray, IntArray]
_Former = tuple[Snapshot, str, FragmentInfo, IntArray, IntArray]
_UPDATES = 4  # kept with digests of the rows that they removed: of a column, and of its inputs


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a fragment by class, and the present marks of the columns that these name.

    Attributes
    ----------
    row_map
        Rows whose inputs hold the values that they were computed from have the present marks.
    """

    row_map: RowMap
    now: Mapping[int, Mark]

    def present(self, marks: Marks) -> bool:
        """Whether marks are those of now."""
        return all(self.now.get(m.field) == m for m in marks)


class History:
    """The history of one snapshot: returns the row map of a fragment, and remembers it.

    Parameters
    ----------
    ledger
        What was proven earlier; `History` adds what it proves.
    """

    def __init__(self, storage: TableStorage, snapshot: Snapshot, ledger: Ledger) -> None:
        self._storage, self.snapshot, self.ledger = storage, snapshot, ledger
        self._sources = Sources(storage, snapshot, ledger)
        self._versions = self._sources.versions
        self._compared: dict[tuple[int, int, int, str], BoolArray] = {}
        self._updates: dict[tuple[int, str], Update] = {}
        self._pasts: Pasts = {}

    # --- what the rows are -------------------------------------------------------------

    def rows(
        self,
        fragment: FragmentInfo,
        column: str,
        concerns: Callable[[RowClass], Marks],
        *,
        orphaned: bool = False,
        by_value: bool = True,
    ) -> Rows:
        """Return the class of every physical row of a fragment in a computed column.

        Parameters
        ----------
        concerns
            Those marks of a class that must be the present ones for its rows to be done; none of
            a class whose rows are done, or not, whatever they were computed from.
        orphaned
            Whether inputs of the column were dropped. They change no more, so marks of them do
            not count, and what was renamed is known by its id.
        by_value
            Whether inputs that were written again are compared with what they were.
        """
        steps = self._rows(fragment, column, concerns, orphaned=orphaned, by_value=by_value)
        return walk(steps)

    def _rows(
        self,
        fragment: FragmentInfo,
        column: str,
        concerns: Callable[[RowClass], Marks],
        *,
        orphaned: bool,
        by_value: bool,
    ) -> Walk[Rows]:
        snapshot = self.snapshot
        row_map: RowMap = yield self._row_map(snapshot, fragment, column)
        names = {f.id: n for n, f in snapshot.fields.items()}
        if orphaned:
            row_map = row_map.replace(
                lambda c: replace(c, inputs=tuple(m for m in c.inputs if m.field in names))
            )
        read = {m.field for c in row_map.classes for m in concerns(c) if m.field in names}
        now = {i: self._sources.mark(snapshot, fragment, names[i]) for i in sorted(read)}
        if any(now.get(m.field) != m for c in row_map.classes for m in concerns(c)):
            row_map = yield self._refreshed(snapshot, fragment, column, row_map, by_value=by_value)
        return Rows(row_map, now)

    def marks(self, fragment: FragmentInfo, columns: Sequence[str]) -> Marks:
        """Return the present marks of some columns of a fragment."""
        return self._sources.marks(self.snapshot, fragment, columns)

    def made_by(self, fragment: FragmentInfo, column: str) -> str:
        """Return the operation that brought a fragment about; empty when nobody can tell."""
        return self._sources.made_by(self.snapshot, fragment, column)

    def _row_map(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> Walk[RowMap]:
        file = supplier(fragment, group_subtree(snapshot, column))
        if file == NO_FILE:
            return RowMap.uniform(fragment.rows, MISSING)
        binding = binding_of(snapshot.fields[column].arrow)
        key = entry_key(binding.incarnation if binding else "", file, fragment.id)
        found = self.ledger.row_map(key)
        if found is None or found.rows != fragment.rows:
            found = yield self._find(snapshot, fragment, column, binding, file)
            self.ledger.learn(key, found)
        return found

    def _find(
        self,
        snapshot: Snapshot,
        fragment: FragmentInfo,
        column: str,
        binding: Binding | None,
        file: str,
    ) -> Walk[RowMap]:
        name = ColumnFileName.parse(file)
        if name is not None and binding is not None and name.incarnation == binding.incarnation:
            try:
                return read_row_map(self._storage, file)
            except (FileNotFoundError, CorruptFileError):
                return self._unverified(snapshot, fragment, column, snapshot.version)
        born, known = self._sources.first_version(snapshot, fragment, column, file)
        before = self._versions.open(born - 1) if known else None
        if known and born == 1:
            return self._by_value(snapshot, fragment, column, _foreign(born))
        if before is None:
            return self._unverified(snapshot, fragment, column, born)
        try:
            found: RowMap = yield self._trace(snapshot, fragment, column, born, before)
            return found
        except VersionGoneError:
            return self._unverified(snapshot, fragment, column, born)

    def _trace(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, born: int, before: Snapshot
    ) -> Walk[RowMap]:
        """Carry classes over the version in which the fragment's file came to be."""
        change = self._versions.change(born)
        after = self._versions.open(born)
        if after is None or change is None or not change.operation:
            return self._unverified(snapshot, fragment, column, born)
        # As it was then: its name and its inputs may have changed since, and that is for others.
        then, name = after.fragments[fragment.id], named(after, snapshot, column)
        if name not in before.fields:
            return self._by_value(snapshot, fragment, column, _foreign(born))
        if fragment.id in before.fragments:
            found = yield self._replaced_in_place(then, name, born, before, after)
        elif change.operation == "Rewrite":
            found = yield self._rewritten(then, name, before, after, change.groups)
        elif change.operation == "Update":
            found = yield self._moved(then, name, before, after, change)
        else:
            return self._by_value(snapshot, fragment, column, _foreign(born))
        return found or self._unverified(snapshot, fragment, column, born)

    def _unverified(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, oldest: int
    ) -> RowMap:
        """Trust the values, as of the oldest version that has them: later changes are known."""
        past = self._versions.open(oldest) or snapshot
        there, name = past.fragments.get(fragment.id), named(past, snapshot, column)
        binding = binding_of(past.fields[name].arrow) if name in past.fields else None
        # As new as it may be: who read an older value must not take this for the same.
        trusted = replace(UNVERIFIED, generation=file_generation(oldest))
        if there is not None and binding is not None:
            own = group_columns(past, name)
            read = inputs_in(past, snapshot, binding)
            inputs = self._sources.marks(past, there, [c for c in read if c not in own])
            digest = digest_in(past, binding, binding.digest)
            trusted = replace(trusted, digest=digest, inputs=inputs)
        return self._by_value(snapshot, fragment, column, trusted)

    def _by_value(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, valued: RowClass
    ) -> RowMap:
        """Say of every row with a value that it is of one class; nulls are missing."""
        filled = " or ".join(f"`{c}` is not null" for c in group_columns(snapshot, column))
        pieces = [
            flags(b.column("v"))
            for b in self._storage.scan(snapshot, fragment.id, {"v": filled}, batch_rows=65_536)
        ]
        present = np.concatenate(pieces) if pieces else np.ones(0, np.bool_)
        return RowMap.from_ids([MISSING, valued], present.astype(np.int64))

    # --- inputs that were written again --------------------------------------------------

    def _refreshed(
        self,
        snapshot: Snapshot,
        fragment: FragmentInfo,
        column: str,
        row_map: RowMap,
        *,
        by_value: bool = True,
    ) -> Walk[RowMap]:
        """Return a row map with present marks where a row's inputs hold the values that they had.

        Somebody rewrote an input's file, or it was computed again: the values of single rows need
        not have changed by that.
        """
        classes: list[RowClass] = []
        whole: dict[int, int] = {}  # classes whose rows are all alike
        ids: IntArray | None = None
        found = np.zeros(0, np.int64)
        for k, c in enumerate(row_map.classes):
            same: list[bool | BoolArray] = []
            for marks in (c.inputs, *(marks for _, marks in c.wheres)):
                verdict: bool | BoolArray = yield self._unchanged(snapshot, fragment, marks)
                if isinstance(verdict, np.ndarray) and np.all(verdict[row_map.expand() == k]):
                    verdict = True
                if verdict is not True and by_value:
                    verdict = verdict | (yield self._held(snapshot, fragment, column, c, marks))
                same.append(verdict)
            for_all = [v for v in same if isinstance(v, bool)]
            if len(for_all) == len(same):
                whole[k] = len(classes)
                classes.append(self._remarked(snapshot, fragment, c, for_all))
                continue
            if ids is None:
                ids = row_map.expand()
                found = np.zeros(len(ids), np.int64)
            for verdicts, there in _by_verdicts(ids == k, same):
                found[there] = len(classes)
                classes.append(self._remarked(snapshot, fragment, c, verdicts))
        if ids is None:
            return row_map.renamed(classes)
        for k, new in whole.items():
            found[ids == k] = new
        return RowMap.from_ids(classes, found)

    def _remarked(
        self, snapshot: Snapshot, fragment: FragmentInfo, c: RowClass, same: Sequence[bool]
    ) -> RowClass:
        """Return a class with present marks of its inputs and filters, as far as they are same."""
        names = {f.id: n for n, f in snapshot.fields.items()}

        def now(marks: Marks, held: bool) -> Marks:
            if not held:
                return marks
            return tuple(self._sources.mark(snapshot, fragment, names[m.field]) for m in marks)

        wheres = [(d, now(ms, held)) for (d, ms), held in zip(c.wheres, same[1:], strict=True)]
        return replace(c, inputs=now(c.inputs, same[0]), wheres=tuple(wheres))

    def _held(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, c: RowClass, marks: Marks
    ) -> Walk[bool | BoolArray]:
        """Return which rows have the values that some marks of a class stood for."""
        names = {f.id: n for n, f in snapshot.fields.items()}
        if any(m.field not in names for m in marks):
            return False
        try:
            for past, there in self._witnesses(snapshot, fragment, column, c):
                held: bool | BoolArray = yield self._unchanged(past, there, marks)
                if held is False:
                    continue
                for m in marks:
                    held = held & self._equal(past, snapshot, fragment, names[m.field])
                return held
        except VersionGoneError:
            pass  # nothing is proven
        return False

    def _witnesses(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, c: RowClass
    ) -> Iterator[tuple[Snapshot, FragmentInfo]]:
        """Yield versions in which the inputs of a class may be seen as they were.

        That which its job planned on; that which the file was planned on, as it may carry rows
        whose inputs were compared then; and the first that has the fragment.
        """
        name = ColumnFileName.parse(supplier(fragment, group_subtree(snapshot, column)))
        generations = [c.generation, name.generation if name else -1]
        versions = [g // 2 for g in generations if g > 0 and g % 2]
        first, _ = self._versions.first(lambda s: fragment.id in s.fragments, snapshot.version)
        for version in dict.fromkeys([*versions, first]):
            past = self._versions.open(version) if version < snapshot.version else None
            there = None if past is None else past.fragments.get(fragment.id)
            if past is not None and there is not None and there.rows == fragment.rows:
                yield past, there

    def _equal(
        self, past: Snapshot, snapshot: Snapshot, fragment: FragmentInfo, column: str
    ) -> bool | BoolArray:
        """Return which rows of a fragment hold the same value of a column in two versions."""
        key = (past.version, snapshot.version, fragment.id, column)
        if key not in self._compared:
            field = snapshot.fields[column]
            name = past.name_of(field.id)
            if name is None or past.fields[name].arrow.type != field.arrow.type:
                return False
            was = (past, past.fragments[fragment.id], name)
            same, _ = compare(self._storage, was, (snapshot, fragment, column))
            self._compared[key] = same
        return self._compared[key]

    def unchanged(self, fragment: FragmentInfo, recorded: Marks) -> bool | BoolArray:
        """Return whether marks are present ones, or row by row where computed ones changed."""
        return walk(self._unchanged(self.snapshot, fragment, recorded))

    def _unchanged(
        self, snapshot: Snapshot, fragment: FragmentInfo, recorded: Marks
    ) -> Walk[bool | BoolArray]:
        """Return whether the values that marks stand for are still there, for all rows or each."""
        names = {f.id: n for n, f in snapshot.fields.items()}
        later: list[tuple[Mark, str]] = []
        for mark in recorded:
            name = names.get(mark.field)
            if name is None:
                return False
            now = self._sources.mark(snapshot, fragment, name)
            if now == mark:
                continue
            # A later one of the same computed column; not where one was restored.
            if now.file != mark.file or not 0 <= mark.generation < now.generation:
                return False
            later.append((mark, name))
        verdict: bool | BoolArray = True
        for mark, name in later:
            row_map: RowMap = yield self._row_map(snapshot, fragment, name)
            generations = np.array([c.generation for c in row_map.classes], np.int64)
            verdict = verdict & (generations[row_map.expand()] <= mark.generation)
        return verdict

    # --- compaction --------------------------------------------------------------------

    def _rewritten(
        self,
        fragment: FragmentInfo,
        column: str,
        before: Snapshot,
        after: Snapshot,
        groups: tuple[RewriteGroup, ...],
    ) -> Walk[RowMap | None]:
        """In a Rewrite group the new rows are the old live rows, concatenated in order."""
        found = rewritten_from(fragment, before.fragments, groups)
        if found is None:
            return None
        old, start, total = found
        maps: list[RowMap] = []
        for f in old:
            row_map = yield self._translated(column, f, before, fragment, after)
            live = live_mask(self._storage, before, f) if f.deleted else None
            maps.append(row_map if live is None else row_map.take(live))
        moved = RowMap.concat(maps)
        return moved.part(start, start + fragment.rows) if moved.rows == total else None

    def _translated(
        self,
        column: str,
        old: FragmentInfo,
        before: Snapshot,
        new: FragmentInfo,
        after: Snapshot,
    ) -> Walk[RowMap]:
        """Return a map whose marks name the new fragment's files where the old were unchanged."""
        translate = self._translator(old, before, new, after)
        found: RowMap = yield self._row_map(before, old, column)
        row_map: RowMap = yield self._refreshed(before, old, column, found)
        return row_map.replace(lambda c: with_marks(c, translate))

    def _translator(
        self, old: FragmentInfo, before: Snapshot, new: FragmentInfo, after: Snapshot
    ) -> Callable[[Mark], Mark]:
        """Return the translation of an old fragment's marks to the new one that holds its rows.

        Generations survive the move, unless the source was exchanged; what is stale stays stale.
        """
        names = {f.id: n for n, f in before.fields.items()}

        @cache
        def translate(mark: Mark) -> Mark:
            name = names.get(mark.field, "")
            present = self._sources.mark(before, old, name) if name in after.fields else None
            same_source = present is None or present.file == mark.file
            if mark.stale or (mark.generation > UNKNOWN and same_source):
                return mark
            if present != mark:
                return mark._replace(file=GONE)
            return self._sources.mark(after, new, name)

        return translate

    # --- updates -----------------------------------------------------------------------

    def _replaced_in_place(
        self, fragment: FragmentInfo, column: str, born: int, before: Snapshot, after: Snapshot
    ) -> Walk[RowMap]:
        """Compare a rewritten column with its previous version, row by row."""
        old = before.fragments[fragment.id]
        same, empty = np.ones(fragment.rows, np.bool_), np.ones(fragment.rows, np.bool_)
        group = group_columns(after, column)
        for name in group:
            if name in before.fields:
                found = compare(self._storage, (before, old, name), (after, fragment, name))
                same, empty = same & found[0], empty & found[1]
        row_map: RowMap = yield self._row_map(before, old, column)
        due, other = empty, ~same & ~empty
        if other.any():
            rows = np.flatnonzero(other)
            values = self._values(after, fragment, column, rows)
            due[rows] = yield self._was_own(
                column, after, values, [(before, old, rows, np.arange(len(rows)))]
            )
        return match_in_place(row_map, same, due, _missing(born), _foreign(born))

    def _moved(
        self,
        fragment: FragmentInfo,
        column: str,
        before: Snapshot,
        after: Snapshot,
        change: Change,
    ) -> Walk[RowMap]:
        """Match the rows of a fragment that an update made with the rows that it removed."""
        update: Update = yield self._update(column, before, after, change)
        match = update.match(fragment)
        rows, numbers = match.changed()
        back = np.zeros(fragment.rows, np.bool_)
        if len(rows):
            places = [(before, *place) for place in update.places(numbers)]
            back[rows] = yield self._was_own(column, after, match.new["target"][rows], places)
        translator = partial(self._translator, before=before, new=fragment, after=after)
        version = change.version
        return update.row_map(match, back, translator, _missing(version), _foreign(version))

    def _update(
        self, column: str, before: Snapshot, after: Snapshot, change: Change
    ) -> Walk[Update]:
        key = change.version, column
        update = self._updates.pop(key, None)
        if update is None:
            group = [c for c in group_columns(after, column) if c in before.fields]
            removed = yield self._removed(column, before, after, change)
            update = Update(self._storage, before, after, change, group, removed)
        self._updates[key] = update  # as the last one
        if len(self._updates) > _UPDATES:
            del self._updates[next(iter(self._updates))]
        return update

    # --- values that came back -----------------------------------------------------------

    def _was_own(
        self, column: str, snapshot: Snapshot, values: Digests, places: Iterable[_Place]
    ) -> Walk[BoolArray]:
        """Return which values are ones that their own rows held before, and no person set.

        Whoever writes whole rows back may have read them before the column was computed again.
        Where a row held the value more than once, the last time counts.

        Parameters
        ----------
        column
            Its name in ``snapshot``.
        places
            Where the rows were: snapshot, fragment, physical rows, and of which values they are.
        """
        search = Search(values, self._pasts)
        todo = [(s, named(s, snapshot, column), f, rows, of) for s, f, rows, of in places]
        for past, name, fragment, rows, of in todo:
            search.begin(_file_of(past, fragment, name), rows, of)
        while todo:
            past, name, fragment, rows, of = todo.pop()
            key = _file_of(past, fragment, name)
            rows, of = search.left(key, rows, of)
            if key.file != NO_FILE and len(rows):
                row_map: RowMap = yield self._row_map(past, fragment, name)
                theirs = row_map.mask(lambda c: c.status is RowStatus.FOREIGN)[rows]
                held = self._values(past, fragment, name, rows)
                rows, of = search.compare(rows, of, held, theirs)
            if len(rows):
                todo += yield self._formerly(past, fragment, name, rows, of)
        return search.ended()

    def _values(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, rows: IntArray
    ) -> Digests:
        """Return digests of the values of some physical rows, ascending or not."""
        mask = np.zeros(fragment.rows, np.bool_)
        mask[rows] = True
        columns = Columns(tuple(group_columns(snapshot, column)), (), ())
        read = chain.from_iterable(keys(self._storage, snapshot, fragment.id, columns, mask))
        digests = np.array([k.folded()[1] for k in read], DIGEST)
        return digests[np.searchsorted(np.flatnonzero(mask), rows)]

    def _formerly(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, rows: IntArray, of: IntArray
    ) -> Walk[list[_Former]]:
        """Say where rows of a fragment were before its file of a column came to be.

        Those of versions that a restore left behind come last: they are the later ones.
        """
        file = supplier(fragment, group_subtree(snapshot, column))
        born, known = self._sources.first_version(snapshot, fragment, column, file)
        left = []
        for past in self._versions.left_behind(born, snapshot.version):
            there, name = past.fragments.get(fragment.id), named(past, snapshot, column)
            if there is not None and name in past.fields and there.rows == fragment.rows:
                left.append((past, name, there, rows, of))
        if not known or born == 1:
            return left
        made = yield self._made_from(snapshot, fragment, column, born, rows, of)
        return [*made, *left]

    def _made_from(
        self,
        snapshot: Snapshot,
        fragment: FragmentInfo,
        column: str,
        born: int,
        rows: IntArray,
        of: IntArray,
    ) -> Walk[list[_Former]]:
        """Say where rows were before the version in which the file of their fragment came to be."""
        before, after = self._versions.open(born - 1), self._versions.open(born)
        change = self._versions.change(born)
        if before is None or after is None or change is None:
            return []
        then, name = after.fragments[fragment.id], named(after, snapshot, column)
        if name not in before.fields:
            return []
        if fragment.id in before.fragments:
            return [(before, name, before.fragments[fragment.id], rows, of)]
        if change.operation == "Rewrite":
            return self._before_rewrite(then, name, before, change.groups, rows, of)
        if change.operation != "Update":
            return []
        update: Update = yield self._update(name, before, after, change)
        match = update.match(then, all_pairs=True)
        paired = match.was[rows] >= 0
        numbers, of = match.first + match.was[rows[paired]], of[paired]
        return [(before, name, f, there, of[k]) for f, there, k in update.places(numbers)]

    def _before_rewrite(
        self,
        fragment: FragmentInfo,
        column: str,
        before: Snapshot,
        groups: tuple[RewriteGroup, ...],
        rows: IntArray,
        of: IntArray,
    ) -> list[_Former]:
        """Say where rows of a fragment were before a compaction."""
        found = rewritten_from(fragment, before.fragments, groups)
        if found is None:
            return []
        old, at, _ = found
        former = []
        for f in old:
            live = np.flatnonzero(live_mask(self._storage, before, f))
            here = (rows >= -at) & (rows < len(live) - at)
            if here.any():
                former.append((before, column, f, live[rows[here] + at], of[here]))
            at -= len(live)
        return former

    def _fresh(
        self, snapshot: Snapshot, fragment: FragmentInfo, row_map: RowMap
    ) -> Walk[BoolArray]:
        """Return the rows whose inputs equal those that their class was computed from."""
        ids = row_map.expand()
        fresh = np.zeros(fragment.rows, np.bool_)
        for k, c in enumerate(row_map.classes):
            verdict = yield self._unchanged(snapshot, fragment, c.inputs)
            if verdict is not False:
                fresh |= (ids == k) & verdict
        return fresh

    def _removed(
        self, column: str, before: Snapshot, after: Snapshot, change: Change
    ) -> Walk[list[Removed]]:
        """Return the rows that a version deleted, by fragment."""
        found = []
        for f in _touched(before, change):
            still = after.fragments.get(f.id)
            if still is not None and still.deletion == f.deletion:
                continue
            gone = live_mask(self._storage, before, f)
            if still is not None:
                gone &= ~live_mask(self._storage, after, still)
            if gone.any():
                known: RowMap = yield self._row_map(before, f, column)
                row_map: RowMap = yield self._refreshed(before, f, column, known)
                fresh: BoolArray = yield self._fresh(before, f, row_map)
                found.append(Removed(f, gone, row_map, fresh))
        return found


def _file_of(snapshot: Snapshot, fragment: FragmentInfo, column: str) -> FileOf:
    file = supplier(fragment, group_subtree(snapshot, column))
    return FileOf(snapshot.fields[column].id, fragment.id, file)


def _touched(before: Snapshot, change: Change) -> list[FragmentInfo]:
    """Return the fragments of which an update removed rows, in table order."""
    many = len(change.touched) > 1
    ordered = [i for i in before.fragments if i in change.touched] if many else change.touched
    found = (before.fragments.get(i) for i in ordered)
    return [f for f in found if f is not None]


def _by_verdicts(
    rows: BoolArray, verdicts: Sequence[bool | BoolArray]
) -> list[tuple[tuple[bool, ...], BoolArray]]:
    """Split rows into those for which all verdicts are alike; return these verdicts with them."""
    found: list[tuple[tuple[bool, ...], BoolArray]] = [((), rows)]
    for verdict in verdicts:
        sides = (True, verdict), (False, np.logical_not(verdict))
        split = [((*those, v), part & side) for those, part in found for v, side in sides]
        found = [(those, part) for those, part in split if part.any()]
    return found


def _missing(version: int) -> RowClass:
    return replace(MISSING, generation=file_generation(version))


def _foreign(version: int) -> RowClass:
    return replace(FOREIGN, generation=file_generation(version))


class FileOf(NamedTuple):
    """The source of a column of a fragment."""

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


# --- a long history without a Python frame for each of its steps --------------------------------
#
# One version's rows follow from those of the version before it, and so on: ten thousand updates
# would be ten thousand calls inside each other. A step is a generator instead, which yields the
# steps that it needs the results of; they wait on a list.

T = TypeVar("T")
Walk = Generator[Generator[Any, Any, Any], Any, T]


def walk(first: Walk[T]) -> T:
    """Return the result of a step, having done all that it needs."""
    waiting: list[Walk[Any]] = [first]
    result: Any = None
    failure: BaseException | None = None
    while waiting:
        step = waiting[-1]
        try:
            needed = step.send(result) if failure is None else step.throw(failure)
        except StopIteration as end:
            waiting.pop()
            result, failure = end.value, None
        except BaseException as error:  # it belongs to whoever waits for this step
            waiting.pop()
            result, failure = None, error
        else:
            waiting.append(needed)
            result = failure = None
    if failure is not None:
        raise failure
    found: T = result
    return found
