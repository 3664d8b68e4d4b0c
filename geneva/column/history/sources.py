"""Sources: the files that supply a column of a fragment, and since which version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from geneva.column.binding import Binding, as_called, bindings_of, top_level
from geneva.column.file import ColumnFileName
from geneva.column.history.ledger import Ledger
from geneva.column.history.marks import (
    NO_FILE,
    UNKNOWN,
    facts,
    file_generation,
    group_subtree,
    supplier,
)
from geneva.errors import ColumnError, TableChangedError
from geneva.model.rows import Mark, Marks
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import Change

_OPEN = 64  # kept: each holds its manifest, of which a long history has gigabytes
_RESTORES = 256  # versions among which restores are looked for


class Versions:
    """Opens past versions of one snapshot's table, each once, and finds where things began."""

    def __init__(self, storage: TableStorage, snapshot: Snapshot) -> None:
        self._storage, self._snapshot = storage, snapshot
        self._open: dict[int, Snapshot] = {}  # those asked for last
        self._gone: set[int] = set()
        self._changes: dict[int, Change | None] = {}

    def open(self, version: int) -> Snapshot | None:
        """Return a version, or ``None`` if it was cleaned up."""
        if version == self._snapshot.version:
            return self._snapshot
        found = self._open.pop(version, None)
        if found is None and version not in self._gone:
            try:
                found = self._storage.open(version)
            except TableChangedError:
                self._gone.add(version)
        if found is not None:
            self._open[version] = found
            if len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
        return found

    def change(self, version: int) -> Change | None:
        """Return the transaction of a version, or ``None`` if it is no longer known."""
        if version not in self._changes:
            self._changes[version] = self._storage.change(self._snapshot, version)
        return self._changes[version]

    def first(self, has: Callable[[Snapshot], bool], last: int) -> tuple[int, bool]:
        """Return the first version of those up to ``last`` in which something is there.

        What a restore brought back came to be before the version that was restored.

        Returns
        -------
        version, known
            Not ``known`` where the versions before it are gone: then it may be older than that.
        """

        def there(version: int) -> bool:
            past = self.open(version)
            return past is not None and has(past)

        while True:
            # there(high) is true, there(low) is false. Most things began a few versions ago: in a
            # long history, where one step leads to the next, that is all that is opened.
            low, high, step = last - 1, last, 1
            while low > 0 and there(low):
                low, high, step = low - 2 * step, low, 2 * step
            low = max(low, 0)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if there(middle) else (middle, high)
            change = self.change(high)
            if change is None or change.restored is None:
                return high, high == 1 or self.open(high - 1) is not None
            if not there(change.restored):
                return high, False
            last = change.restored

    def left_behind(self, since: int, last: int) -> list[Snapshot]:
        """Return the ends of the lines of versions that restores left behind, the latest last."""
        found = []
        for version in range(max(since, last - _RESTORES) + 1, last + 1):
            change = self.change(version)
            past = self.open(version - 1) if change is not None and change.restored else None
            found += [past] if past is not None else []
        return found


class Sources:
    """The sources of columns in one snapshot and those before it."""

    def __init__(self, storage: TableStorage, snapshot: Snapshot, ledger: Ledger) -> None:
        self.versions = Versions(storage, snapshot)
        self._snapshot, self._ledger = snapshot, ledger
        self._unknown: dict[str, int] = {}

    # --- what supplies a column --------------------------------------------------------

    def mark(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> Mark:
        """Return the mark of a top-level column of a fragment."""
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

    def marks(self, snapshot: Snapshot, fragment: FragmentInfo, columns: Sequence[str]) -> Marks:
        """Return the marks of several columns."""
        return tuple([self.mark(snapshot, fragment, c) for c in columns])

    # --- versions ----------------------------------------------------------------------

    def made_by(self, snapshot: Snapshot, fragment: FragmentInfo, column: str) -> str:
        """Return the operation that brought a fragment about; empty when nobody can tell."""
        file = supplier(fragment, group_subtree(snapshot, column))
        born, known = self.first_version(snapshot, fragment, column, file)
        change = self.versions.change(born) if known else None
        return "" if change is None else change.operation

    def first_version(
        self, snapshot: Snapshot, fragment: FragmentInfo, column: str, file: str
    ) -> tuple[int, bool]:
        """Return the version in which a file first supplied a column of a fragment.

        With it: whether that is known, or just the oldest that is left.
        """
        field_id = snapshot.fields[column].id
        key = f"{field_id}|{fragment.id}|{file}"
        known = self._ledger.born(key)
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

        version, known_first = self.versions.first(has, snapshot.version)
        if known_first:
            self._ledger.learn_born(key, version)
        else:
            self._unknown[key] = version
        return version, known_first


def named(past: Snapshot, snapshot: Snapshot, column: str) -> str:
    """Return the name of a column in an older version."""
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
