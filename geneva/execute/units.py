"""Cut the rows of a task into units: what is computed and checkpointed together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from geneva.checkpoint.journal import Replay
from geneva.rows import IntArray


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are computed and checkpointed together."""

    rows: IntArray
    inputs: pa.RecordBatch
    only: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of rows read together: to compute, or at these positions of the replay."""

    at: slice
    positions: IntArray | None

    @property
    def span(self) -> tuple[int, int]:
        """Offset and length."""
        return self.at.start, self.at.stop - self.at.start


def split(rows: IntArray, earlier: Replay) -> Iterator[Piece]:
    """Cut rows that were read together where computed and replayed ones meet."""
    if not len(earlier.rows):
        yield Piece(slice(0, len(rows)), None)
        return
    positions = np.searchsorted(earlier.rows, rows)
    known = earlier.rows[np.minimum(positions, len(earlier.rows) - 1)] == rows
    edges = [0, *(np.flatnonzero(known[1:] != known[:-1]) + 1).tolist(), len(rows)]
    for start, stop in itertools.pairwise(edges):
        yield Piece(slice(start, stop), positions[start:stop] if known[start] else None)


class Units:
    """Collects rows into units of the size that is wanted for their first row at that moment."""

    def __init__(self, size_at: Callable[[int], int], stop: int) -> None:
        self._size_at, self._stop = size_at, stop
        self._rows: list[IntArray] = []
        self._inputs: list[pa.RecordBatch] = []
        self._held = 0
        self._made = 0

    def add(self, rows: IntArray, inputs: pa.RecordBatch, read_to: int) -> Iterator[Unit]:
        """Yield the units that are full once these rows are in."""
        self._rows.append(rows)
        self._inputs.append(inputs)
        self._held += len(rows)
        while self._held and self._held >= (size := self._size_at(int(self._rows[0][0]))):
            yield self._cut(size, last=read_to >= self._stop)

    def flush(self) -> Iterator[Unit]:
        """Yield what is left as one unit."""
        if self._held:
            yield self._cut(self._held, last=True)

    def _cut(self, size: int, *, last: bool) -> Unit:
        rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
        inputs = self._inputs[0] if len(self._inputs) == 1 else _concat(self._inputs)
        only = last and not self._made and size == self._held
        unit = Unit(rows[:size], inputs.slice(0, size), only)
        self._held -= size
        self._made += 1
        self._rows = [rows[size:]] if self._held else []
        self._inputs = [inputs.slice(size)] if self._held else []
        return unit


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
