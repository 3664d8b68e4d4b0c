"""Values of the storage: facts of a table's files, and a file in the making."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from geneva.model.rows import BoolArray, IntArray
from geneva.storage.blobs import prepared
from geneva.storage.snapshot import FragmentInfo, fragment_info


class CommitConflict(Exception):
    """Another writer committed first; ``retryable`` says whether a rebuild can succeed."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Replacement:
    """A finished data file that takes over some fields of a fragment; of size 0: not known."""

    fragment_id: int
    path: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer of a data file."""

    rows: int
    schema: pa.Schema
    metadata: Mapping[str, str]


IN_PLACE = "rewrite_columns"  # mode of an update that moves no row
RewriteGroup = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """The transaction of one version.

    Attributes
    ----------
    operation
        Its name.
    groups
        Of a compaction: ids of the old fragments, and (id, rows) of the new ones, in row order.
    replaced
        Of a compaction: the old fragments as they were when it read them.
    restored
        The older version that was restored.
    written
        Ids of the fields whose values an update of rows set, the rest was carried along; empty
        where nobody can tell.
    touched
        Of an update: ids of the fragments of which it removed rows.
    made
        How many fragments it made.
    """

    version: int
    operation: str
    groups: tuple[RewriteGroup, ...] = ()
    restored: int | None = None
    written: frozenset[int] = frozenset()
    replaced: tuple[FragmentInfo, ...] = ()
    touched: frozenset[int] = frozenset()
    made: int = 0

    @classmethod
    def of(cls, version: int, operation: Any) -> Change:
        """Read Lance's record of a version's transaction."""
        kind = type(operation).__name__
        match kind:
            case "Rewrite":
                groups = tuple(
                    (
                        tuple(f.id for f in g.old_fragments),
                        tuple((f.id, f.physical_rows) for f in g.new_fragments),
                    )
                    for g in operation.groups
                )
                replaced = (fragment_info(f) for g in operation.groups for f in g.old_fragments)
                return cls(version, kind, groups, replaced=tuple(replaced))
            case "Restore":
                return cls(version, kind, restored=operation.version)
            case "Update" if operation.update_mode != IN_PLACE:
                written = frozenset(operation.fields_for_preserving_frag_bitmap or ())
                touched = {*operation.removed_fragment_ids}
                touched |= {f.id for f in operation.updated_fragments}
                made = len(operation.new_fragments)
                return cls(version, kind, written=written, touched=frozenset(touched), made=made)
            case _:
                return cls(version, kind)


def flags(array: pa.Array) -> BoolArray:
    """Return booleans, those that are null as false; five times as fast as by Arrow's casts."""
    if not len(array):
        return np.zeros(0, np.bool_)
    validity, values = array.buffers()
    true = _bits(values, array)
    return true & _bits(validity, array) if array.null_count else true


def _bits(buffer: pa.Buffer, array: pa.Array) -> BoolArray:
    packed = np.frombuffer(buffer, np.uint8)
    end = array.offset + len(array)
    return np.unpackbits(packed, count=end, bitorder="little")[array.offset :].view(np.bool_)


def integers(array: pa.Array) -> IntArray:
    """Return integers without nulls; pyarrow's own way to numpy imports pandas."""
    return np.from_dlpack(array).astype(np.int64)


def size_of(array: pa.Array) -> int:
    """Return the bytes that an array takes, of plain numbers without their validity.

    To add up buffers, Arrow lets other threads run and then waits for its turn.
    """
    if pa.types.is_primitive(array.type):
        return len(array) * int(array.type.bit_width) // 8
    return int(array.nbytes)


class ColumnReader:
    """One column of a data file.

    Takes the memory of the rows that are asked for, where a scan takes that of the pages which
    hold them and of those read ahead: four times as much where a row is a megabyte.
    """

    def __init__(self, reader: Any, faults: Callable[[], AbstractContextManager[None]]) -> None:
        self._reader = reader
        self._faults = faults

    def read(self, rows: IntArray) -> pa.Array:
        """Return the values of some physical rows, ascending."""
        with self._faults():
            found = self._reader.take_rows(rows.tolist(), batch_size=len(rows)).to_batches()
            columns = [b.column(0) for b in found]
            return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)


class ColumnWriter:
    """A data file in the making.

    Parameters
    ----------
    schema
        Of the columns, as the table has them.
    check
        Called when the file is complete; raises if its table has gone meanwhile.
    """

    def __init__(
        self,
        writer: Any,
        schema: pa.Schema,
        faults: Callable[[], AbstractContextManager[None]],
        check: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._schema = schema
        self._faults = faults
        self._check = check

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        with self._faults():
            self._writer.write_batch(prepared(batch, self._schema))

    def close(self, metadata: Mapping[str, str]) -> int:
        """Write the footer with ``metadata``; return the file's size in bytes."""
        for key, value in metadata.items():
            self._writer.add_schema_metadata(key, value)
        with self._faults():
            self._writer.close()
        self._check()
        return int(self._writer.size_bytes or 0)
