"""Sets and classes of a fragment's physical rows, run-length encoded.

A *row map* says for every physical row of a fragment what its value in a computed column is:
computed (by which UDF, from what, under which filters), failed, foreign, unverified, missing.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

_BINARY = "2:"  # begins a row map in bytes; older ones have no colon
_HEADER = struct.Struct("<QII")  # of it: rows, bytes of the classes as JSON, runs
GONE = "?"  # file of a mark whose source has changed since


class RowStatus(StrEnum):
    """The state of a row's value."""

    COMPUTED = "computed"
    FAILED = "failed"
    FOREIGN = "foreign"
    UNVERIFIED = "unverified"
    MISSING = "missing"

    @property
    def holds_value(self) -> bool:
        """Whether somebody put the value there (an honest null included)."""
        return self in _VALUED


_VALUED = {RowStatus.COMPUTED, RowStatus.FOREIGN, RowStatus.UNVERIFIED}


class Mark(NamedTuple):
    """The source of one column of one fragment when it was read.

    Attributes
    ----------
    field
        Id of the top-level field.
    file
        Path of the data file (several joined with ``|``), or, for a column computed by this
        engine, the incarnation of that column; unless nobody knows when that file came to be.
    generation
        For a column computed by this engine, no row in it is of a newer generation; else -1.
    """

    field: int
    file: str
    generation: int = -1

    @property
    def stale(self) -> bool:
        """Whether the source is known to have changed."""
        return self.file == GONE


Marks = tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class RowClass:
    """Rows that share a provenance.

    Attributes
    ----------
    digest
        Digest of the UDF that computed them (or failed on them).
    inputs
        What supplied the UDF's inputs.
    wheres
        (digest, what supplied its columns) of each filter that they were computed under.
    generation
        Orders the row among all values of its fragment; see ``column.provenance``.
    """

    status: RowStatus
    digest: str = ""
    inputs: Marks = ()
    wheres: tuple[tuple[str, Marks], ...] = ()
    generation: int = -1


MISSING = RowClass(RowStatus.MISSING)
FOREIGN = RowClass(RowStatus.FOREIGN)
UNVERIFIED = RowClass(RowStatus.UNVERIFIED)


@dataclass(frozen=True, slots=True)
class RowMap:
    """Class of every physical row: runs that begin at ``starts`` and have class ``ids``."""

    rows: int
    classes: tuple[RowClass, ...]
    starts: IntArray = field(compare=False)
    ids: IntArray = field(compare=False)

    @classmethod
    def uniform(cls, rows: int, row_class: RowClass) -> RowMap:
        """Return a map in which every row has the same class."""
        runs = 1 if rows else 0
        return cls(rows, (row_class,), np.zeros(runs, np.int64), np.zeros(runs, np.int64))

    @classmethod
    def from_ids(cls, classes: Sequence[RowClass], ids: IntArray) -> RowMap:
        """Encode one class id per row; equal classes are merged, unused ones dropped."""
        if not len(ids):
            return cls(0, (), np.zeros(0, np.int64), np.zeros(0, np.int64))
        # Runs first: sorting a million ids costs more than writing the column.
        edges = _run_starts(ids)
        used, inverse = np.unique(ids[edges], return_inverse=True)
        kept: dict[RowClass, int] = {}
        merged = np.array([kept.setdefault(classes[u], len(kept)) for u in used], np.int64)
        runs = merged[inverse]
        first = _run_starts(runs)
        return cls(len(ids), tuple(kept), edges[first].astype(np.int64), runs[first])

    def expand(self) -> IntArray:
        """Return the class id of every row."""
        return np.repeat(self.ids, self._lengths)

    @property
    def _lengths(self) -> IntArray:
        lengths: IntArray = np.empty(len(self.starts), np.int64)
        np.subtract(self.starts[1:], self.starts[:-1], out=lengths[:-1])
        lengths[-1:] = self.rows - self.starts[-1:]
        return lengths

    def counts(self) -> IntArray:
        """Return the rows of every class, without expanding the map."""
        return np.bincount(self.ids, self._lengths, len(self.classes)).astype(np.int64)

    def spread(self, per_class: Sequence[bool]) -> BoolArray:
        """Return for every row the item of its class."""
        return np.repeat(np.array(per_class, np.bool_)[self.ids], self._lengths)

    def mask(self, test: Callable[[RowClass], bool]) -> BoolArray:
        """Return the rows whose class passes a test."""
        return self.spread([test(c) for c in self.classes])

    def classes_in(self, mask: BoolArray) -> list[RowClass]:
        """Return the classes of the rows in a mask."""
        if not len(self.starts):
            return []
        hit = np.logical_or.reduceat(mask, self.starts)
        return [self.classes[k] for k in np.unique(self.ids[hit]).tolist()]

    def any(self, test: Callable[[RowClass], bool]) -> bool:
        """Return whether some class passes a test."""
        return any(test(c) for c in self.classes)

    def replace(self, change: Callable[[RowClass], RowClass]) -> RowMap:
        """Return a map with every class replaced."""
        return RowMap(self.rows, tuple(change(c) for c in self.classes), self.starts, self.ids)

    def renamed(self, classes: Sequence[RowClass]) -> RowMap:
        """Return a map with other classes in place of each; equal ones are merged."""
        kept: dict[RowClass, int] = {}
        merged = np.array([kept.setdefault(c, len(kept)) for c in classes], np.int64)
        if len(kept) == len(classes) or not self.rows:
            return RowMap(self.rows, tuple(classes), self.starts, self.ids)
        ids = merged[self.ids]
        first = _run_starts(ids)
        return RowMap(self.rows, tuple(kept), self.starts[first], ids[first])

    def take(self, index: IntArray | BoolArray) -> RowMap:
        """Return the map of some rows, in the order given."""
        return RowMap.from_ids(self.classes, self.expand()[index])

    def part(self, start: int, stop: int) -> RowMap:
        """Return the map of the rows between two places."""
        if (start, stop) == (0, self.rows):
            return self
        if start >= stop:
            return self.take(np.zeros(0, np.int64))
        first, last = np.searchsorted(self.starts, [start, stop - 1], "right") - 1
        starts = np.maximum(self.starts[first : last + 1] - start, 0)
        used, ids = np.unique(self.ids[first : last + 1], return_inverse=True)
        classes = tuple(self.classes[k] for k in used.tolist())
        return RowMap(stop - start, classes, starts, ids.astype(np.int64))

    @classmethod
    def concat(cls, maps: Iterable[RowMap]) -> RowMap:
        """Return the map of several pieces laid one after the other; run by run, not row by row."""
        kept: dict[RowClass, int] = {}
        rows, starts, ids = 0, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for m in maps:
            if not m.rows:
                continue
            merged = np.array([kept.setdefault(c, len(kept)) for c in m.classes], np.int64)
            starts.append(m.starts + rows)
            ids.append(merged[m.ids])
            rows += m.rows
        if not rows:
            return cls(0, (), np.zeros(0, np.int64), np.zeros(0, np.int64))
        every, where = np.concatenate(ids), np.concatenate(starts)
        first = _run_starts(every)
        return cls(rows, tuple(kept), where[first], every[first])

    def dumps(self) -> str:
        """Return the map as text for a file's footer."""
        classes = json.dumps([_class_to_json(c) for c in self.classes], separators=(",", ":"))
        head = classes.encode()
        # A filter that selects one row in a hundred makes twenty thousand runs of a million rows:
        # bytes, because as JSON they cost as much as the rest of the file.
        lengths = np.diff(self.starts, prepend=0).astype("<u4")
        packed = _HEADER.pack(self.rows, len(head), len(self.ids)) + head
        packed += lengths.tobytes() + self.ids.astype("<u4").tobytes()
        return _BINARY + base64.b64encode(zlib.compress(packed, 1)).decode()

    @classmethod
    def loads(cls, text: str) -> RowMap:
        """Read a pickle of `dumps`."""
        packed = _unpacked(text)
        rows, size, runs = _HEADER.unpack_from(packed)
        at = _HEADER.size + size
        lengths = np.frombuffer(packed, "<u4", runs, at)
        ids = np.frombuffer(packed, "<u4", runs, at + lengths.nbytes)
        classes, starts = packed[_HEADER.size : at], np.cumsum(lengths, dtype=np.int64)
        return cls(rows, _classes_from_json(classes), starts, ids.astype(np.int64))


def is_row_map(text: str) -> bool:
    """Whether `RowMap.dumps` wrote a text: before the first release it wrote another form."""
    return text.startswith(_BINARY)


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text.removeprefix(_BINARY)))


def classes_in(text: str) -> tuple[RowClass, ...]:
    """Return the classes of a map that `RowMap.dumps` wrote, without its runs."""
    packed = _unpacked(text)
    _, size, _ = _HEADER.unpack_from(packed)
    return _classes_from_json(packed[_HEADER.size : _HEADER.size + size])


def _classes_from_json(text: bytes) -> tuple[RowClass, ...]:
    return tuple(map(_class_from_json, json.loads(text)))


def _class_to_json(c: RowClass) -> list[Any]:
    wheres = [[d, _marks_to_json(m)] for d, m in c.wheres]
    return [c.status.value, c.digest, _marks_to_json(c.inputs), wheres, c.generation]


def _class_from_json(raw: list[Any]) -> RowClass:
    status, digest, inputs, wheres, generation = raw
    return RowClass(
        RowStatus(status),
        digest,
        _marks_from_json(inputs),
        tuple((d, _marks_from_json(m)) for d, m in wheres),
        generation,
    )


def _marks_to_json(marks: Marks) -> list[list[Any]]:
    return [list(m) for m in marks]


def _marks_from_json(raw: list[list[Any]]) -> Marks:
    return tuple(_mark(*m) for m in raw)


@lru_cache(maxsize=65536)
def _mark(field_id: int, file: str, generation: int) -> Mark:
    return Mark(field_id, file, generation)


@dataclass(frozen=True, slots=True)
class RowSet:
    """A set of physical rows as alternating runs; small enough to travel with a task."""

    rows: int
    bounds: IntArray = field(compare=False)  # row numbers where membership flips; begins outside

    @classmethod
    def from_mask(cls, mask: BoolArray) -> RowSet:
        """Encode one flag per row."""
        padded = np.r_[False, mask, False]
        return cls(len(mask), np.flatnonzero(padded[1:] != padded[:-1]).astype(np.int64))

    def mask(self) -> BoolArray:
        """Return one flag per row."""
        flips = np.zeros(self.rows + 1, np.int8)
        flips[self.bounds] = 1
        return (np.cumsum(flips[:-1]) % 2).astype(np.bool_)


def _run_starts(ids: IntArray) -> IntArray:
    """Return where a value differs from the one before it; the first one does."""
    return np.concatenate(([0], np.flatnonzero(ids[1:] != ids[:-1]) + 1))
