"""Match rows that an update moved, or rewrote in place, with what they were before."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from geneva.rows import MISSING, BoolArray, RowClass, RowMap
from geneva.storage.lance import Snapshot, TableStorage

Key = tuple[bytes, ...]  # a row's comparable values, the target's first

_NULL = b"N"
_ROWS = 4096


def match_moved(
    moved: Iterable[Key], removed: Iterable[tuple[RowClass, Sequence[Key]]], foreign: RowClass
) -> RowMap:
    """Return the classes of rows that an update wrote, given those that it removed.

    A row that agrees with a removed one in the target and in all that the target was computed
    from keeps that row's class, whichever row it was: its value is what that class would give.
    Otherwise the value is stale if some removed row held it, and ``foreign`` if none did.

    Parameters
    ----------
    removed
        Rows by class, the class as it holds in the new fragment.
    """
    known: dict[Key, RowClass] = {}
    targets: set[bytes] = set()
    for row_class, keys in removed:
        for key in keys:
            known.setdefault(key, row_class)
            targets.add(key[0])
    classes: dict[RowClass, int] = {}
    ids = []
    for key in moved:
        found = known.get(key)
        if found is None:
            # Stale is as good as missing: it is computed again, and the old value goes.
            gone = key[0] == _NULL or key[0] in targets
            found = MISSING if gone else foreign
        ids.append(classes.setdefault(found, len(classes)))
    return RowMap.from_ids(list(classes), np.array(ids, np.int64))


def match_in_place(
    old: RowMap, was: Iterable[pa.Array], now: Iterable[pa.Array], foreign: RowClass
) -> RowMap:
    """Return the classes of rows whose column was rewritten where they lie."""
    ids = old.expand()
    classes = [*old.classes, MISSING, foreign]
    missing = len(old.classes)
    at = 0
    for before, after in zip(was, now, strict=True):
        if not before.equals(after):
            pairs = zip(comparable(before), comparable(after), strict=True)
            for row, (a, b) in enumerate(pairs, at):
                if a != b:
                    ids[row] = missing if b == _NULL else missing + 1
        at += len(after)
    return RowMap.from_ids(classes, ids)


def comparable(array: pa.Array) -> list[bytes]:
    """Return values that are equal exactly when the array's are."""
    return [_NULL if v is None else pickle.dumps(v, 5) for v in array.to_pylist()]


def keys(
    storage: TableStorage,
    snapshot: Snapshot,
    fragment_id: int,
    columns: list[str],
    mask: BoolArray | None = None,
) -> list[Key]:
    """Return the values of the physical rows in a mask, or of all."""
    rows: list[Key] = []
    at = 0
    for batch in storage.scan(snapshot, fragment_id, columns, batch_rows=_ROWS):
        chosen = batch
        if mask is not None:
            chosen = batch.filter(pa.array(mask[at : at + batch.num_rows]))
        at += batch.num_rows
        rows += zip(*(comparable(chosen.column(c)) for c in columns), strict=True)
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
