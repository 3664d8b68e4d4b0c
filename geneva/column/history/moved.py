"""Match rows that an update moved, or rewrote in place, with their earlier selves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from geneva.column.history.same import NULL, digests, fold, same_rows
from geneva.model.rows import BoolArray, RowClass, RowMap
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.sizes import bytes_per_row
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import Change, flags

_ROWS = 4096
_BYTES = 16 << 20  # compared at once, where rows are wide


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to compare: the target's, its inputs, those of filters."""

    target: tuple[str, ...]
    inputs: tuple[str, ...]
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One row's id, and digests of its values; equal digests mean equal values."""

    row_id: int
    target: tuple[bytes, ...]
    inputs: tuple[bytes, ...]
    filters: tuple[bytes, ...]

    @property
    def empty(self) -> bool:
        """Whether the target holds no value."""
        return all(v == NULL for v in self.target)

    def folded(self) -> tuple[int, bytes, bytes, bytes]:
        """Return the row's id, and a digest of its target, of that and its inputs, and of all."""
        target = NULL if self.empty else fold(b"", self.target)
        computed = fold(target, self.inputs)
        return self.row_id, target, computed, fold(computed, self.filters)

    def agrees(self, other: Key, kept: Sequence[bool]) -> bool:
        """Whether two rows have the same values in the columns that an update kept."""
        mine = (*self.target, *self.inputs, *self.filters)
        theirs = (*other.target, *other.inputs, *other.filters)
        return all(a == b for a, b, k in zip(mine, theirs, kept, strict=True) if k)


@dataclass(frozen=True, slots=True)
class Written:
    """The columns that an update of rows is known to have set.

    Attributes
    ----------
    columns
        For each column that is compared, whether it was set. Of a merge, which writes whole
        rows, all were.
    in_order
        Whether the new rows follow the order of the removed ones, as those of an update of some
        columns do.
    target
        Whether the target was set.
    """

    columns: tuple[bool, ...]
    in_order: bool
    target: bool


def written_by(change: Change, before: Snapshot, columns: Columns) -> Written:
    """Return the compared columns that an update set."""
    compared = [*columns.target, *columns.inputs, *columns.filters]
    everything = all(change.written.intersection(f.subtree) for f in before.fields.values())
    if not change.written or everything:
        return Written((True,) * len(compared), in_order=False, target=True)
    was_set = [bool(change.written.intersection(before.fields[c].subtree)) for c in compared]
    return Written(tuple(was_set), in_order=True, target=any(was_set[: len(columns.target)]))


def unfiltered(row_class: RowClass) -> RowClass:
    """Return the class of a row of which it is not known any more under which filters."""
    return replace(row_class, wheres=())


def match_in_place(
    old: RowMap, same: BoolArray, due: BoolArray, missing: RowClass, foreign: RowClass
) -> RowMap:
    """Return the classes of rows whose column was rewritten where they lie.

    Parameters
    ----------
    same, due
        Rows whose value is the same, and those of the others that are to be computed: they hold
        none now, or an earlier computed one.
    """
    gone = len(old.classes)
    ids = np.where(same, old.expand(), np.where(due, gone, gone + 1))
    return RowMap.from_ids([*old.classes, missing, foreign], ids)


def keys(
    storage: TableStorage,
    snapshot: Snapshot,
    fragment_id: int,
    columns: Columns,
    mask: BoolArray | None = None,
) -> Iterator[list[Key]]:
    """Yield digests of the values of the physical rows in a mask, or of all, some at a time."""
    wanted = [*columns.target, *columns.inputs, *columns.filters]
    fragment = snapshot.fragments[fragment_id]
    for chosen in chosen_rows(storage, snapshot, fragment, wanted, mask):
        row_ids = [-1 if i is None else i for i in chosen.column("_rowid").to_pylist()]
        parts = [
            list(zip(*(digests(chosen.column(c)) for c in names), strict=True))
            if names
            else [()] * chosen.num_rows
            for names in (columns.target, columns.inputs, columns.filters)
        ]
        yield [Key(*values) for values in zip(row_ids, *parts, strict=True)]


def chosen_rows(
    storage: TableStorage,
    snapshot: Snapshot,
    fragment: FragmentInfo,
    columns: Sequence[str],
    mask: BoolArray | None,
) -> Iterator[pa.RecordBatch]:
    """Yield the physical rows in a mask, or all; rows before and behind them are not read."""
    if mask is None:
        yield from _read(storage, snapshot, fragment, columns)
        return
    found = np.flatnonzero(mask)
    if not len(found):
        return
    at, stop = int(found[0]), int(found[-1]) + 1
    for batch in _read(storage, snapshot, fragment, columns, at, stop):
        yield batch.filter(pa.array(mask[at : at + batch.num_rows]))
        at += batch.num_rows


def between(mask: BoolArray, start: int, stop: int) -> BoolArray:
    """Keep the flags that are at these places among those set, the last one excluded."""
    number = np.cumsum(mask)  # from 1
    kept: BoolArray = mask & (number > start) & (number <= stop)
    return kept


def compare(
    storage: TableStorage,
    was: tuple[Snapshot, FragmentInfo, str],
    now: tuple[Snapshot, FragmentInfo, str],
) -> tuple[BoolArray, BoolArray]:
    """Compare a fragment's column in two versions: rows of the same value, rows without one now."""
    rows = now[1].rows
    same, empty = np.ones(rows, np.bool_), np.zeros(rows, np.bool_)
    at = 0
    kind = now[0].fields[now[2]].arrow.type
    for before, after in _aligned(_values(storage, *was, kind), _values(storage, *now, kind)):
        part = slice(at, at + len(after))
        empty[part] = flags(after.is_null())
        same[part] = same_rows(before, after)
        at += len(after)
    return same, empty


def _values(
    storage: TableStorage,
    snapshot: Snapshot,
    fragment: FragmentInfo,
    column: str,
    kind: pa.DataType,
) -> Iterator[pa.Array]:
    for batch in _read(storage, snapshot, fragment, [column]):
        values = batch.column(column)
        if values.type != kind and snapshot.fields[column].arrow.type != kind:
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                values = values.cast(kind, safe=False)  # as it was when the column got this type
        yield values


def _read(
    storage: TableStorage,
    snapshot: Snapshot,
    fragment: FragmentInfo,
    columns: Sequence[str],
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield physical rows of a fragment, of wide ones as many at once as take 16 MB."""
    fields = {i for c in columns for i in snapshot.fields[c].subtree}
    on_disk = sum(f.size_bytes for f in fragment.files if not f.fields.isdisjoint(fields))
    # Files may be compressed, and blobs lie elsewhere; a sample may miss the large ones.
    sampled = bytes_per_row(storage, snapshot, columns, [fragment.id])
    rows = int(min(_ROWS, _BYTES / max(sampled, on_disk / max(fragment.rows, 1), 1.0))) or 1
    yield from storage.scan(
        snapshot,
        fragment.id,
        columns,
        batch_rows=rows,
        start=start,
        stop=stop,
        readahead=1 if rows < _ROWS else None,
    )


def _aligned(
    first: Iterator[pa.Array], second: Iterator[pa.Array]
) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Cut two streams of as many rows at the same places."""
    a, b = next(first, None), next(second, None)
    while a is not None and b is not None:
        n = min(len(a), len(b))
        yield a.slice(0, n), b.slice(0, n)
        a = a.slice(n) if len(a) > n else next(first, None)
        b = b.slice(n) if len(b) > n else next(second, None)
