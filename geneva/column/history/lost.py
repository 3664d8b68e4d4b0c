"""Files of computed columns that a version names and nobody can read any more.

A partial copy of a table, an early delete, or a cleanup of unverified files beside a commit takes
them, or leaves a part. Lance reads no file before somebody asks for its values, so the table opens
and counts as ever, and every reader of the column fails.

Their values can be computed again: so a version is *seen* as if it did not name them, and their
rows are missing. Before a job computes, it makes a version that does not name them; from then on
readers see null there, and everything else is as for rows that never had a value. Files of other
columns are not ours to give up.
"""

from __future__ import annotations

from collections.abc import Sequence

from geneva.column.binding import as_called, bindings_of, read_by_inputs
from geneva.column.history.marks import group_columns
from geneva.storage.lance import Snapshot, TableStorage


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
    """Return what people should know of files that the table names for a column."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (
        f"{len(names):,} files that hold values of it are gone or damaged, and readers fail there: "
        f"{', '.join(names[:_NAMED])}{more}; the same backfill computes their rows again"
    )


_NAMED = 3  # files, in one message
