"""Where a fragment's values came from: names, footers, and the history of the table.

A fragment whose column file this engine wrote says so itself. Any other file came from somebody
who moved, rewrote or wrote rows; `History` finds the version that did, and carries the classes of
the old rows over to the new ones where that can be proven.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from geneva.column.binding import Binding, binding_of
from geneva.column.file import read_row_map
from geneva.column.ledger import Ledger, entry_key
from geneva.column.marks import (
    NO_FILE,
    UNKNOWN,
    file_generation,
    group_columns,
    group_subtree,
    supplier,
    unchanged,
)
from geneva.column.moved import (
    Columns,
    OldRow,
    chunks,
    keys,
    match_in_place,
    match_moved,
)
from geneva.column.name import ColumnFileName
from geneva.errors import CorruptFileError, TableChangedError
from geneva.rows import (
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
)
from geneva.storage.lance import FragmentInfo, RewriteGroup, Snapshot, TableStorage


class History:
    """Answers, for one snapshot, what the rows of a fragment are; remembers what it learned.

    Parameters
    ----------
    ledger
        What was proven earlier; `History` adds what it proves.
    """

    def __init__(
        self,
        storage: TableStorage,
        snapshot: Snapshot,
        ledger: Ledger,
    ) -> None:
        self._storage = storage
        self.snapshot = snapshot
        self.ledger = ledger
        self._unknown: set[str] = set()
        self._versions: dict[int, Snapshot | None] = {snapshot.version: snapshot}

    # --- what supplies a column --------------------------------------------------------

    def mark(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> Mark:
        """Return what supplies a top-level column of a fragment."""
        field = snapshot.fields[column]
        file = supplier(fragment, field.subtree)
        binding = binding_of(field.arrow)
        if binding is None or file == NO_FILE:
            return Mark(field.id, file)
        name = ColumnFileName.parse(file)
        if name is not None and name.incarnation == binding.incarnation:
            return Mark(field.id, binding.incarnation, name.generation)
        born = self._first_version(snapshot, fragment, column, file)
        generation = UNKNOWN if born is None else file_generation(born)
        return Mark(field.id, binding.incarnation, generation)

    def marks(self, snapshot: Snapshot, fragment: FragmentInfo, columns: list[str]) -> Marks:
        """Return what supplies several columns."""
        return tuple(self.mark(snapshot, fragment, c) for c in columns)

    # --- what the rows are -------------------------------------------------------------

    def row_map(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> RowMap:
        """Return the class of every physical row of a fragment in a computed column."""
        file = supplier(fragment, group_subtree(snapshot, column))
        if file == NO_FILE:
            return RowMap.uniform(fragment.rows, MISSING)
        binding = binding_of(snapshot.fields[column].arrow)
        key = entry_key(binding.incarnation if binding else "", file, fragment.id)
        found = self.ledger.row_map(key)
        if found is None or found.rows != fragment.rows:
            found = self._find(snapshot, fragment, column, binding, file)
            self.ledger.learn(key, found)
        return found

    def _find(
        self,
        snapshot: Snapshot,
        fragment: FragmentInfo,
        column: str,
        binding: Binding | None,
        file: str,
    ) -> RowMap:
        name = ColumnFileName.parse(file)
        if name is not None and binding is not None and name.incarnation == binding.incarnation:
            try:
                return read_row_map(self._storage, file)
            except (FileNotFoundError, CorruptFileError):
                return self._by_value(snapshot, fragment, column, UNVERIFIED)
        born = self._first_version(snapshot, fragment, column, file)
        before = None if born is None else self._open(born - 1)
        if born is None or before is None:
            if born == 1:
                return self._by_value(snapshot, fragment, column, _foreign(born))
            return self._by_value(snapshot, fragment, column, UNVERIFIED)
        return self._trace(snapshot, fragment, column, born, before)

    def _trace(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, born: int, before: Snapshot
    ) -> RowMap:
        """Carry classes over the version in which the fragment's file came to be."""
        change = self._storage.change(snapshot, born)
        operation = "" if change is None else change.operation
        after = self._open(born)
        if after is None or not operation:
            return self._by_value(snapshot, fragment, column, UNVERIFIED)
        if column not in before.fields:
            return self._by_value(snapshot, fragment, column, _foreign(born))
        # As it was then: its inputs may have been rewritten since, and that is for others to see.
        then = after.fragments[fragment.id]
        if fragment.id in before.fragments:
            return self._replaced_in_place(then, column, born, before, after)
        if change is not None and operation == "Rewrite":
            found = self._rewritten(then, column, before, after, change.groups)
            return found or self._by_value(snapshot, fragment, column, UNVERIFIED)
        if operation == "Update":
            return self._moved(then, column, born, before, after)
        return self._by_value(snapshot, fragment, column, _foreign(born))

    def _by_value(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, valued: RowClass
    ) -> RowMap:
        """Say of every row with a value that it is of one class; nulls are missing."""
        filled = " or ".join(f"`{c}` is not null" for c in group_columns(snapshot, column))
        flags = [
            b.column("v").fill_null(False).to_numpy(zero_copy_only=False)
            for b in self._storage.scan(snapshot, fragment.id, {"v": filled}, batch_rows=65_536)
        ]
        present = np.concatenate(flags) if flags else np.ones(0, np.bool_)
        return RowMap.from_ids([MISSING, valued], present.astype(np.int64))

    # --- compaction --------------------------------------------------------------------

    def _rewritten(
        self,
        fragment: FragmentInfo,
        column: str,
        before: Snapshot,
        after: Snapshot,
        groups: tuple[RewriteGroup, ...],
    ) -> RowMap | None:
        """In a Rewrite group the new rows are the old live rows, concatenated in order."""
        found = rewritten_from(fragment, before, groups)
        if found is None:
            return None
        old, start, total = found
        moved = RowMap.concat(
            self._translated(column, f, before, fragment, after).take(self.live_mask(before, f))
            for f in old
        )
        if moved.rows != total:
            return None
        return moved.take(np.arange(start, start + fragment.rows))

    def origins(
        self,
        snapshot: Snapshot,
        fragment: FragmentInfo,
        column: str,
        inputs: Sequence[tuple[int, ...]],
        wanted: Callable[[Snapshot, FragmentInfo], bool],
    ) -> tuple[IntArray, IntArray]:
        """Return (fragment, row) of every row before the compactions that brought it here.

        Followed back until a fragment is ``wanted``; -1 where none is, or nothing is proven.
        ``inputs`` are the subtrees of fields that nobody may have rewritten on the way.
        """
        if wanted(snapshot, fragment):
            return np.full(fragment.rows, fragment.id), np.arange(fragment.rows)
        unknown = np.full(fragment.rows, -1), np.zeros(fragment.rows, np.int64)
        file = supplier(fragment, group_subtree(snapshot, column))
        born = self._first_version(snapshot, fragment, column, file)
        if born is None:
            return unknown
        before, after = self._open(born - 1), self._open(born)
        change = self._storage.change(snapshot, born)
        if before is None or after is None or change is None or column not in before.fields:
            return unknown
        then = after.fragments[fragment.id]
        if any(supplier(then, i) != supplier(fragment, i) for i in inputs):
            return unknown
        found = rewritten_from(fragment, before, change.groups)
        if found is None:
            return unknown
        old, start, total = found
        traced = [self.origins(before, f, column, inputs, wanted) for f in old]
        live = [self.live_mask(before, f) for f in old]
        ids = np.concatenate([t[0][m] for t, m in zip(traced, live, strict=True)])
        rows = np.concatenate([t[1][m] for t, m in zip(traced, live, strict=True)])
        if len(ids) != total:
            return unknown
        part = slice(start, start + fragment.rows)
        return ids[part], rows[part]

    def _translated(
        self,
        column: str,
        old: FragmentInfo,
        before: Snapshot,
        new: FragmentInfo,
        after: Snapshot,
    ) -> RowMap:
        """Return a map whose marks name the new fragment's files where the old were unchanged."""
        translate = self._translator(old, before, new, after)
        return self.row_map(before, old, column).replace(lambda c: _with_marks(c, translate))

    def _translator(
        self, old: FragmentInfo, before: Snapshot, new: FragmentInfo, after: Snapshot
    ) -> Callable[[Mark], Mark]:
        """Return what makes marks of an old fragment ones of the new fragment that holds its rows.

        Generations survive the move, what is stale stays stale.
        """
        names = {f.id: n for n, f in before.fields.items()}

        @cache
        def translate(mark: Mark) -> Mark:
            if mark.generation >= 0 or mark.stale:
                return mark
            name = names.get(mark.field)
            if name is None or name not in after.fields or self.mark(before, old, name) != mark:
                return replace(mark, file=GONE)
            return self.mark(after, new, name)

        return translate

    def live_mask(self, snapshot: Snapshot, fragment: FragmentInfo) -> BoolArray:
        """Return which physical rows are not deleted."""
        mask = np.ones(fragment.rows, np.bool_)
        if fragment.deleted:
            mask[:] = False
            for batch in self._storage.scan(
                snapshot, fragment.id, [], batch_rows=65_536, live_only=True
            ):
                address = batch.column("_rowaddr").to_numpy(zero_copy_only=False).astype(np.int64)
                mask[address & 0xFFFFFFFF] = True
        return mask

    # --- updates -----------------------------------------------------------------------

    def _replaced_in_place(
        self, fragment: FragmentInfo, column: str, born: int, before: Snapshot, after: Snapshot
    ) -> RowMap:
        """Compare a rewritten column with its previous version, row by row."""
        row_map = self.row_map(before, before.fragments[fragment.id], column)
        for name in group_columns(after, column):
            if name in before.fields:
                was = chunks(self._storage, before, fragment.id, name)
                now = chunks(self._storage, after, fragment.id, name)
                row_map = match_in_place(row_map, was, now, _missing(born), _foreign(born))
        return row_map

    def _moved(
        self, fragment: FragmentInfo, column: str, born: int, before: Snapshot, after: Snapshot
    ) -> RowMap:
        """Match the rows of a fragment that an update made with the rows that it removed."""
        removed = self._removed(column, before, after)
        classes = [c for _, _, row_map in removed for c in row_map.classes]
        read = {m.field for c in classes for m in c.inputs}
        filtered = {m.field for c in classes for _, marks in c.wheres for m in marks} - read
        group = [c for c in group_columns(after, column) if c in before.fields]

        def names(ids: set[int]) -> list[str]:
            found = [n for n, f in before.fields.items() if f.id in ids]
            return [n for n in found if n in after.fields and n not in group]

        columns = Columns(tuple(group), tuple(names(read)), tuple(names(filtered)))
        old: list[OldRow] = []
        for f, mask, row_map in removed:
            translate = self._translator(f, before, fragment, after)
            known = [_with_marks(c, translate) for c in row_map.classes]
            kept = row_map.expand()[mask].tolist()
            fresh = self._fresh(before, f, row_map, columns.inputs)[mask].tolist()
            rows = keys(self._storage, before, f.id, columns, mask)
            old += [OldRow(k, known[c], g) for k, c, g in zip(rows, kept, fresh, strict=True)]
        new = keys(self._storage, after, fragment.id, columns)
        stable = before.stable_row_ids and after.stable_row_ids
        return match_moved(new, old, _missing(born), _foreign(born), stable=stable)

    def _fresh(
        self, snapshot: Snapshot, fragment: FragmentInfo, row_map: RowMap, inputs: Sequence[str]
    ) -> BoolArray:
        """Return the rows whose inputs are what their class was computed from."""
        now = {m.field: m for m in self.marks(snapshot, fragment, list(inputs))}
        names = {f.id: n for n, f in snapshot.fields.items()}

        def generations(mark: Mark) -> IntArray:
            upstream = self.row_map(snapshot, fragment, names[mark.field])
            return np.array([c.generation for c in upstream.classes], np.int64)[upstream.expand()]

        ids = row_map.expand()
        fresh = np.zeros(fragment.rows, np.bool_)
        for k, c in enumerate(row_map.classes):
            verdict = unchanged(c.inputs, now, generations)
            fresh |= (ids == k) & np.broadcast_to(verdict, fragment.rows)
        return fresh

    def _removed(
        self, column: str, before: Snapshot, after: Snapshot
    ) -> list[tuple[FragmentInfo, BoolArray, RowMap]]:
        """Return the rows that a version deleted, by fragment, with the fragment's row map."""
        found = []
        for f in before.fragments.values():
            still = after.fragments.get(f.id)
            if still is not None and still.deletion == f.deletion:
                continue
            gone = self.live_mask(before, f)
            if still is not None:
                gone &= ~self.live_mask(after, still)
            if gone.any():
                found.append((f, gone, self.row_map(before, f, column)))
        return found

    # --- versions ----------------------------------------------------------------------

    def made_by(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> str:
        """Return the operation that brought a fragment about; empty when nobody can tell."""
        file = supplier(fragment, group_subtree(snapshot, column))
        born = self._first_version(snapshot, fragment, column, file)
        change = None if born is None else self._storage.change(snapshot, born)
        return "" if change is None else change.operation

    def _open(self, version: int) -> Snapshot | None:
        if version not in self._versions:
            try:
                self._versions[version] = self._storage.open(version)
            except TableChangedError:
                self._versions[version] = None
        return self._versions[version]

    def _first_version(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, file: str
    ) -> int | None:
        """Return the version in which a file first supplied a column of a fragment.

        ``None`` when the version before the oldest one that is left already had it.
        """
        field_id = snapshot.fields[column].id
        key = f"{field_id}|{fragment.id}|{file}"
        known = self.ledger.born(key)
        if known is not None:
            return known
        if key in self._unknown:
            return None

        def has(version: int) -> bool:
            past = self._open(version)
            if past is None or fragment.id not in past.fragments:
                return False
            name = next((n for n, f in past.fields.items() if f.id == field_id), None)
            there = past.fragments[fragment.id]
            return name is not None and file in (
                supplier(there, group_subtree(past, name)),
                supplier(there, past.fields[name].subtree),
            )

        low, high = 0, snapshot.version  # has(high) is true, has(low) is false
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if has(middle) else (middle, high)
        if high > 1 and self._open(high - 1) is None:
            self._unknown.add(key)
            return None
        self.ledger.learn_born(key, high)
        return high


def _missing(version: int) -> RowClass:
    return replace(MISSING, generation=file_generation(version))


def _foreign(version: int) -> RowClass:
    return replace(FOREIGN, generation=file_generation(version))


def _with_marks(row_class: RowClass, translate: Callable[[Mark], Mark]) -> RowClass:
    return replace(
        row_class,
        inputs=tuple(translate(m) for m in row_class.inputs),
        wheres=tuple((d, tuple(translate(m) for m in ms)) for d, ms in row_class.wheres),
    )


def rewritten_from(
    fragment: FragmentInfo, before: Snapshot, groups: tuple[RewriteGroup, ...]
) -> tuple[list[FragmentInfo], int, int] | None:
    """Return the old fragments whose live rows a compaction laid out, for one new fragment.

    With them: at which of those rows the new fragment begins, and how many they are in all.
    """
    for old_ids, new in groups:
        start = 0
        for fragment_id, rows in new:
            if fragment_id == fragment.id and rows == fragment.rows:
                if any(i not in before.fragments for i in old_ids):
                    return None
                old = [before.fragments[i] for i in old_ids]
                return old, start, sum(n for _, n in new)
            start += rows
    return None
