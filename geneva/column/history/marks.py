"""Marks: the source of a column when it was read, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from geneva.column.binding import (
    Binding,
    as_called,
    binding_of,
    bindings_of,
    group_of,
    read_by_inputs,
)
from geneva.model.rows import Mark, RowClass
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo

NO_FILE = ""
UNKNOWN = 0  # generation of a file whose first version is gone; no file has it


def job_generation(plan_version: int) -> int:
    """Return the generation of rows that a job computes which planned on a version.

    It is newer than everything visible at that version, and older than everything that anyone
    makes after the job's commit, because a commit expects the file that the plan saw.
    """
    return 2 * plan_version + 1


def file_generation(version: int) -> int:
    """Return the generation of a file that somebody else wrote in a version."""
    return 2 * version


def supplier(fragment: FragmentInfo, subtree: tuple[int, ...]) -> str:
    """Return the data files that supply a field and its descendants, joined with ``|``."""
    paths = [f.path for f in fragment.files if not f.fields.isdisjoint(subtree)]
    return paths[0] if len(paths) == 1 else "|".join(paths)


class _Facts(NamedTuple):
    """The facts of a top-level column in a version: asked for every fragment, read once."""

    id: int
    subtree: tuple[int, ...]
    binding: Binding | None
    group: tuple[int, ...]


def facts(snapshot: Snapshot, column: str) -> _Facts:
    """Return the field ids of a column and of its group, and its binding."""
    known = _FACTS.get(snapshot)
    if known is None:
        known = _FACTS[snapshot] = {}
    if column not in known:
        field = snapshot.fields[column]
        names = group_columns(snapshot, column)
        group = tuple(i for n in names for i in snapshot.fields[n].subtree)
        known[column] = _Facts(field.id, field.subtree, binding_of(field.arrow), group)
    return known[column]


_FACTS: WeakKeyDictionary[Snapshot, dict[str, _Facts]] = WeakKeyDictionary()


def group_columns(snapshot: Snapshot, column: str) -> list[str]:
    """Return a column and those that are computed together with it."""
    binding = binding_of(snapshot.fields[column].arrow)
    if binding is None or not binding.grouped:
        return [column]
    return [name for name, _ in group_of(snapshot.schema, binding)]


def group_subtree(snapshot: Snapshot, column: str) -> tuple[int, ...]:
    """Return the field ids of a column and of those that are computed together with it."""
    return facts(snapshot, column).group


def with_marks(row_class: RowClass, translate: Callable[[Mark], Mark]) -> RowClass:
    """Return a class with other marks."""
    return replace(
        row_class,
        inputs=tuple(translate(m) for m in row_class.inputs),
        wheres=tuple((d, tuple(translate(m) for m in ms)) for d, ms in row_class.wheres),
    )


# --- files of computed columns that a version names and nobody can read any more -----------------
#
# A partial copy of a table, an early delete, or a cleanup of unverified files beside a commit takes
# them, or leaves a part. Lance reads no file before somebody asks for its values, so the table
# opens and counts as ever, and every reader of the column fails.
#
# Their values can be computed again: so a version is *seen* as if it did not name them, and their
# rows are missing. Before a job computes, it makes a version that does not name them; from then on
# readers see null there. Files of other columns are not ours to give up.


def as_readable(storage: TableStorage, snapshot: Snapshot, columns: Sequence[str]) -> Snapshot:
    """Return a version without those files of some computed columns that nobody can read.

    And without those of the computed columns that they read, at any remove.
    """
    schema = as_called(snapshot)
    seen = {*columns, *read_by_inputs(schema, columns)}.intersection(bindings_of(schema))
    group = {name for column in seen for name in group_columns(snapshot, column)}
    fields = frozenset(i for name in group for i in snapshot.fields[name].subtree)
    return snapshot.without(storage.unreadable(fields))


def files_gone(names: Sequence[str]) -> str:
    """Return a note on files that the table names for a column and nobody can read."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (
        f"{len(names):,} files that hold values of it are gone or damaged, and readers fail there: "
        f"{', '.join(names[:_NAMED])}{more}; the same backfill computes their rows again"
    )


_NAMED = 3  # files, in one message
