"""What supplies a column of a fragment, and since which version."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from geneva.column.binding import Binding, as_called, bindings_of, top_level
from geneva.column.history.ledger import Ledger
from geneva.column.history.marks import (
    NO_FILE,
    UNKNOWN,
    facts,
    file_generation,
    group_subtree,
    supplier,
)
from geneva.column.history.versions import Versions
from geneva.column.name import ColumnFileName
from geneva.errors import ColumnError
from geneva.model.rows import Mark, Marks, RowMap
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo


class Sources:
    """Answers, for one snapshot and those before it, what supplies a column."""

    def __init__(
        self,
        storage: TableStorage,
        snapshot: Snapshot,
        ledger: Ledger,
    ) -> None:
        self._storage = storage
        self.snapshot = snapshot
        self.ledger = ledger
        self._unknown: dict[str, int] = {}
        self._versions = Versions(storage, snapshot)

    # --- what supplies a column --------------------------------------------------------

    def mark(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> Mark:
        """Return what supplies a top-level column of a fragment."""
        field_id, subtree, binding, _ = facts(snapshot, column)
        file = supplier(fragment, subtree)
        if binding is None or file == NO_FILE:
            return Mark(field_id, file)
        name = ColumnFileName.parse(file)
        if name is not None and name.incarnation == binding.incarnation:
            return Mark(field_id, binding.incarnation, name.generation)
        born, known = self.first_version(snapshot, fragment, column, file)
        if not known:
            return Mark(field_id, file, UNKNOWN)  # nothing but its name tells it from another
        return Mark(field_id, binding.incarnation, file_generation(born))

    def marks(self, snapshot: Snapshot, fragment: FragmentInfo, columns: list[str]) -> Marks:
        """Return what supplies several columns."""
        return tuple([self.mark(snapshot, fragment, c) for c in columns])

    def of_what_is_left(
        self, snapshot: Snapshot, fragment: FragmentInfo, row_map: RowMap
    ) -> tuple[RowMap, Marks]:
        """Return a row map without marks of dropped columns, and present marks of the others.

        What was dropped changes no more, and what was renamed is known by its id.
        """
        names = {f.id: n for n, f in snapshot.fields.items()}
        ids = sorted({m.field for c in row_map.classes for m in c.inputs if m.field in names})
        kept = row_map.replace(
            lambda c: replace(c, inputs=tuple(m for m in c.inputs if m.field in names))
        )
        return kept, self.marks(snapshot, fragment, [names[i] for i in ids])

    # --- versions ----------------------------------------------------------------------

    def made_by(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> str:
        """Return the operation that brought a fragment about; empty when nobody can tell."""
        file = supplier(fragment, group_subtree(snapshot, column))
        born, known = self.first_version(snapshot, fragment, column, file)
        change = self._versions.change(born) if known else None
        return "" if change is None else change.operation

    def first_version(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, file: str
    ) -> tuple[int, bool]:
        """Return the version in which a file first supplied a column of a fragment.

        With it: whether that is known, or just the oldest that is left.
        """
        field_id = snapshot.fields[column].id
        key = f"{field_id}|{fragment.id}|{file}"
        known = self.ledger.born(key)
        if known is not None:
            return known, True
        if key in self._unknown:
            return self._unknown[key], False

        def has(past: Snapshot) -> bool:
            there = past.fragments.get(fragment.id)
            name = past.name_of(field_id)
            return (
                there is not None
                and name is not None
                and file
                in (
                    supplier(there, group_subtree(past, name)),
                    supplier(there, past.fields[name].subtree),
                )
            )

        version, known_first = self._versions.first(has, snapshot.version)
        if known_first:
            self.ledger.learn_born(key, version)
        else:
            self._unknown[key] = version
        return version, known_first


def named(past: Snapshot, snapshot: Snapshot, column: str) -> str:
    """Return what a column was called in an older version."""
    return past.name_of(snapshot.fields[column].id) or column


def inputs_in(past: Snapshot, snapshot: Snapshot, binding: Binding) -> list[str]:
    """Return the inputs of a binding in an older version, under the names that they had there.

    A binding keeps the names of its inputs, also where these were renamed after it or before.
    """
    found: dict[str, None] = {}
    then = bindings_of(as_called(past)).values()
    known = next((b for b in then if b.incarnation == binding.incarnation), binding)
    for path in known.inputs:
        for version in (past, snapshot):
            with suppress(ColumnError):
                field = version.fields[top_level(version.schema, path)]
                name = past.name_of(field.id)
                found |= {} if name is None else {name: None}
                break
    return list(found)
