"""Match rows that an update moved, or rewrote in place, with what they were before."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from geneva.rows import BoolArray, RowClass, RowMap
from geneva.storage.lance import Snapshot, TableStorage

_NULL = b"N"
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Columns:
    """What is compared: the target's columns, those it was computed from, those of filters."""

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
        return all(v == _NULL for v in self.target)


@dataclass(frozen=True, slots=True)
class OldRow:
    """A row that the update removed, and the class that it would have where rows are now.

    Attributes
    ----------
    fresh
        Whether its value was computed from the inputs that it had at the end.
    """

    key: Key
    row_class: RowClass
    fresh: bool


def match_moved(
    new: Sequence[Key],
    old: Sequence[OldRow],
    missing: RowClass,
    foreign: RowClass,
    *,
    stable: bool,
) -> RowMap:
    """Return the classes of rows that an update wrote, given those that it removed.

    Row by row where it is known which is which: by stable row ids, or by order where no input
    changed. Otherwise by value: a row that agrees with a fresh removed one in the target and in
    all that the target was computed from keeps that row's class, whichever row it was; any other
    value that some removed row held is stale; one that none held is ``foreign``.

    Parameters
    ----------
    missing
        Class of stale rows too: they are computed again, and the old value goes.
    """
    by_id = {o.key.row_id: o for o in old} if stable else {}
    ordered = [k.inputs for k in new] == [o.key.inputs for o in old]
    by_value = _ByValue(old, missing, foreign)
    classes: dict[RowClass, int] = {}
    ids = []
    for k, key in enumerate(new):
        was = by_id.get(key.row_id) if stable else (old[k] if ordered else None)
        found = by_value.find(key) if was is None else _same_row(key, was, missing, foreign)
        ids.append(classes.setdefault(found, len(classes)))
    return RowMap.from_ids(list(classes), np.array(ids, np.int64))


def _same_row(key: Key, was: OldRow, missing: RowClass, foreign: RowClass) -> RowClass:
    """Return the class of a row whose former self is known."""
    if key.target != was.key.target:
        return missing if key.empty else foreign
    if key.inputs != was.key.inputs:
        return was.row_class if was.row_class.status == foreign.status else missing
    if key.filters != was.key.filters:
        return replace(was.row_class, wheres=())
    return was.row_class


class _ByValue:
    """Finds a removed row by its values."""

    def __init__(self, old: Sequence[OldRow], missing: RowClass, foreign: RowClass) -> None:
        self._missing, self._foreign = missing, foreign
        self._full: dict[tuple[object, ...], RowClass] = {}
        self._computed: dict[tuple[object, ...], RowClass] = {}
        self._targets = {o.key.target for o in old}
        for o in old:
            if not o.fresh:
                continue  # its value says nothing about the inputs that are beside it
            key, c = o.key, o.row_class
            _keep_newest(self._full, (key.target, key.inputs, key.filters), c)
            _keep_newest(self._computed, (key.target, key.inputs), replace(c, wheres=()))

    def find(self, key: Key) -> RowClass:
        found = self._full.get((key.target, key.inputs, key.filters))
        found = found or self._computed.get((key.target, key.inputs))
        if found is not None:
            return found
        stale = key.empty or key.target in self._targets
        return self._missing if stale else self._foreign


def _keep_newest(
    known: dict[tuple[object, ...], RowClass], key: tuple[object, ...], c: RowClass
) -> None:
    # Rows that agree in all values may differ in age; an older one than its own would make a row
    # look unchanged to those who read the old value.
    if key not in known or c.generation > known[key].generation:
        known[key] = c


def match_in_place(
    old: RowMap,
    was: Iterable[pa.Array],
    now: Iterable[pa.Array],
    missing: RowClass,
    foreign: RowClass,
) -> RowMap:
    """Return the classes of rows whose column was rewritten where they lie."""
    ids = old.expand()
    classes = [*old.classes, missing, foreign]
    gone = len(old.classes)
    at = 0
    for before, after in zip(was, now, strict=True):
        if not before.equals(after):
            pairs = zip(_comparable(before), _comparable(after), strict=True)
            for row, (a, b) in enumerate(pairs, at):
                if a != b:
                    ids[row] = gone if b == _NULL else gone + 1
        at += len(after)
    return RowMap.from_ids(classes, ids)


def _comparable(array: pa.Array) -> list[bytes]:
    """Return digests that are equal exactly when the values are."""
    return [
        _NULL if v is None else hashlib.blake2b(pickle.dumps(v, 5), digest_size=16).digest()
        for v in array.to_pylist()
    ]


def keys(
    storage: TableStorage,
    snapshot: Snapshot,
    fragment_id: int,
    columns: Columns,
    mask: BoolArray | None = None,
) -> list[Key]:
    """Return the values of the physical rows in a mask, or of all."""
    rows: list[Key] = []
    at = 0
    wanted = [*columns.target, *columns.inputs, *columns.filters]
    for batch in storage.scan(snapshot, fragment_id, wanted, batch_rows=_ROWS):
        chosen = batch
        if mask is not None:
            chosen = batch.filter(pa.array(mask[at : at + batch.num_rows]))
        at += batch.num_rows
        row_ids = [-1 if i is None else i for i in chosen.column("_rowid").to_pylist()]
        parts = [
            list(zip(*(_comparable(chosen.column(c)) for c in names), strict=True))
            if names
            else [()] * chosen.num_rows
            for names in (columns.target, columns.inputs, columns.filters)
        ]
        rows += [Key(*values) for values in zip(row_ids, *parts, strict=True)]
    return rows


def chunks(
    storage: TableStorage, snapshot: Snapshot, fragment_id: int, column: str
) -> Iterator[pa.Array]:
    """Yield a column's physical rows in chunks of equal bounds, whatever the version."""
    batches = storage.scan(snapshot, fragment_id, [column], batch_rows=_ROWS)
    whole = pa.chunked_array([b.column(column) for b in batches])
    for start in range(0, len(whole), _ROWS):
        piece = whole.slice(start, _ROWS).combine_chunks()
        yield piece.chunk(0) if isinstance(piece, pa.ChunkedArray) else piece
