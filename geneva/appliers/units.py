"""Cut the rows of a task into units: what is computed and checkpointed together."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from geneva.column.checkpoint.journal import Replay
from geneva.model.rows import IntArray
from geneva.model.types import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are computed and checkpointed together.

    Attributes
    ----------
    input_bytes
        Their share, by rows, of what they were read with and keep in memory.
    """

    rows: IntArray
    inputs: pa.RecordBatch
    input_bytes: int


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


def all_checkpointed(task: Task, earlier: Replay, *, filtered: bool) -> IntArray | None:
    """Return where the replay holds every row of a task, or ``None`` if some may be left.

    Which rows a filter selects, and which are deleted, only reading tells; unless whoever
    computed all of them counted them.
    """
    if len(earlier.rows) == task.checkpointed:
        return np.arange(len(earlier.rows))
    if filtered or not len(earlier.rows) or (task.need is None and task.deleted):
        return None
    wanted = np.arange(task.start, task.stop)
    if task.need is not None:
        wanted = wanted[task.need.mask()[wanted]]
    positions = np.searchsorted(earlier.rows, wanted)
    found = earlier.rows[np.minimum(positions, len(earlier.rows) - 1)] == wanted
    return positions if found.all() else None


class Units:
    """Collects rows into units of the size that is wanted for their first row at that moment.

    Parameters
    ----------
    most_bytes
        Inputs of that size are a unit, however few rows they are; ``None`` for no such bound.
    """

    def __init__(self, size_at: Callable[[int], int], most_bytes: int | None) -> None:
        self._size_at, self._most_bytes = size_at, most_bytes
        self._rows: list[IntArray] = []
        self._inputs: list[pa.RecordBatch] = []
        self._held = 0
        self._bytes = 0

    def add(self, rows: IntArray, inputs: pa.RecordBatch) -> Iterator[Unit]:
        """Yield the units that are full once these rows are in."""
        self._rows.append(rows)
        self._inputs.append(inputs)
        self._held += len(rows)
        self._bytes += inputs.nbytes
        while self._held and self._held >= (size := self._size_at(int(self._rows[0][0]))):
            yield self._cut(size)
        if self._held and self._most_bytes is not None and self._bytes >= self._most_bytes:
            yield self._cut(self._held)

    def flush(self) -> Iterator[Unit]:
        """Yield what is left as one unit."""
        if self._held:
            yield self._cut(self._held)

    def _cut(self, size: int) -> Unit:
        rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
        inputs = self._inputs[0] if len(self._inputs) == 1 else pa.concat_batches(self._inputs)
        # Not asked of each: to add up buffers, Arrow lets other threads run and waits for its turn.
        unit = Unit(rows[:size], inputs.slice(0, size), self._bytes * size // self._held)
        self._held -= size
        self._rows = [rows[size:]] if self._held else []
        self._inputs = [inputs.slice(size)] if self._held else []
        self._bytes -= unit.input_bytes
        return unit


def emptied(items: deque[T]) -> Iterator[T]:
    """Yield items and forget them."""
    while items:
        yield items.popleft()
