"""Columns that were computed and are bound to no UDF any more: what took the binding away.

LanceDB keeps a binding over a rename, but not when it changes a column's type: that makes another
field, without the metadata of the first. The values stay, and nobody would know whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from geneva.column.binding import (
    Binding,
    as_called,
    binding_of,
    bindings_of,
    computed,
    one_of_each_group,
)
from geneva.errors import ColumnError, TableChangedError
from geneva.storage.lance import Snapshot, TableStorage

_LOOKED_AT = 100  # versions


def computed_in(storage: TableStorage, snapshot: Snapshot, column: str) -> Binding:
    """Return a column's binding in a version, its inputs as they are called there.

    Raises
    ------
    ColumnError
        There is no such column, or it is not computed; the message says if it was, and what to do.
    """
    _check_bound(storage, snapshot, [column])
    return computed(as_called(snapshot), column)


def groups_in(storage: TableStorage, snapshot: Snapshot, columns: str | Sequence[str]) -> list[str]:
    """Check that columns are computed; return one of each group, in dependency order.

    Raises
    ------
    SettingError, ColumnError
        As `one_of_each_group`; and as `computed_in`.
    """
    _check_bound(storage, snapshot, [columns] if isinstance(columns, str) else columns)
    return one_of_each_group(as_called(snapshot), columns)


def _check_bound(storage: TableStorage, snapshot: Snapshot, columns: Sequence[object]) -> None:
    bound = bindings_of(snapshot.schema)
    for column in columns if isinstance(columns, Sequence) else ():
        if not isinstance(column, str) or column in bound or column not in snapshot.schema.names:
            continue
        if (lost := _lost(storage, snapshot, column)) is not None:
            raise ColumnError(lost)


def _lost(storage: TableStorage, snapshot: Snapshot, column: str) -> str | None:
    """Return what people should know of a column that was computed in one of the last versions."""
    now = snapshot.schema.field(column).type
    for version in range(snapshot.version - 1, max(snapshot.version - _LOOKED_AT, 0), -1):
        try:
            past = storage.open(version)
        except TableChangedError:
            return None
        if column not in past.schema.names:
            return None  # it is a new one
        field = past.schema.field(column)
        binding = binding_of(field)
        if binding is None:
            continue
        how = (
            f"its type was changed from {field.type} to {now}, and LanceDB keeps no binding then"
            if field.type != now
            else "it was replaced, or its metadata were"
        )
        return (
            f"column {column!r} is not computed any more: UDF {binding.udf!r} was bound to it "
            f"until version {version}, when {how}. Bind it again with a UDF that returns {now}: "
            f"alter_columns({{'path': {column!r}, 'udf': udf}}); the values that are there count "
            'as somebody else\'s then, and backfill(..., foreign="recompute") computes them anew'
        )
    return None
