"""A task's rows as units: cut, computed, checkpointed, and back in order.

A unit is what is computed and checkpointed together.

    Units.add -> Unit -> (a UDF thread) -> Computed -> Checkpoints -> the journal
                  |                          |
                  `----- InFlight.add       InFlight.surplus -> the column file, in order
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from geneva.appliers.batches import HELD_BYTES
from geneva.column.checkpoint.journal import Journal, Replay
from geneva.column.file import GATHER_BYTES
from geneva.model.rows import IntArray
from geneva.model.types import Counts, Failure, Target, Task, stored_type
from geneva.udf import Applied, RowError

_HELD_S = 0.2
_HELD_BYTES = 32 << 20
_LOOK_S = 0.5

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
    if task.replay_only or len(earlier.rows) == task.checkpointed:
        return np.arange(len(earlier.rows))
    if filtered or not len(earlier.rows) or (task.need is None and task.deleted):
        return None
    rows = np.arange(task.start, task.stop)
    if task.need is not None:
        rows = rows[task.need.mask()[rows]]
    positions = np.searchsorted(earlier.rows, rows)
    matches = earlier.rows[np.minimum(positions, len(earlier.rows) - 1)] == rows
    return positions if matches.all() else None


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
        """Yield the remaining rows as one unit."""
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


@dataclass(slots=True)
class Computed:
    """The values of some rows, one array per column, and the positions of those that failed."""

    rows: IntArray
    values: list[pa.Array]
    failed: IntArray
    failures: tuple[Failure, ...]
    counts: Counts = field(default_factory=Counts)
    value_bytes: int = 0


def joined(
    applied: Sequence[Applied], target: Target
) -> tuple[list[pa.Array], list[tuple[int, RowError]]]:
    """Join batches that follow each other: their columns, and the rows that failed."""
    if len(applied) == 1:
        return _columns_of(applied[0].values, target), [(e.row, e) for e in applied[0].failures]
    starts = itertools.accumulate((len(a.values) for a in applied), initial=0)
    errors = [(s + e.row, e) for s, a in zip(starts, applied, strict=False) for e in a.failures]
    return _columns_of(pa.concat_arrays([a.values for a in applied]), target), errors


def together(done: Collection[Computed]) -> Computed:
    """Join units that follow each other."""
    starts = itertools.accumulate((len(d.rows) for d in done), initial=0)
    failed = [s + d.failed for s, d in zip(starts, done, strict=False)]
    return Computed(
        np.concatenate([d.rows for d in done]),
        [pa.concat_arrays(c) for c in zip(*(d.values for d in done), strict=True)],
        np.concatenate(failed),
        tuple(itertools.chain.from_iterable(d.failures for d in done)),
        Counts.total([d.counts for d in done]),
        sum(d.value_bytes for d in done),
    )


class Checkpoints:
    """Appends units to a task's journal; thread-safe.

    What is computed in the first blink of a task is held back: a fragment that is done by then
    needs no checkpoint besides its column file. Any other has the held units recorded together
    with the first one behind the blink.

    Parameters
    ----------
    holds
        Whether units may be held back at all.
    """

    def __init__(self, journal: Journal, *, holds: bool) -> None:
        self._journal, self._holds = journal, holds
        self._lock = threading.Lock()
        self._held: list[tuple[Computed, Sequence[RowError]]] = []
        self._held_bytes = 0
        self._began = math.inf

    def record(self, done: Computed, errors: Sequence[RowError], began_s: float) -> None:
        """Record a unit whose computing began at a moment of ``time.perf_counter``.

        ``errors`` has one for each of ``done.failed``.
        """
        with self._lock:
            self._began = min(self._began, began_s)
            self._held.append((done, errors))
            self._held_bytes += done.value_bytes
            young = time.perf_counter() - self._began < _HELD_S
            if self._holds and young and self._held_bytes < _HELD_BYTES:
                return
        self.release()

    def release(self) -> None:
        """Record the held units, and hold none from now on."""
        with self._lock:
            held, self._held, self._holds = self._held, [], False
        for done, errors in held:
            self._append(done, errors)

    def _append(self, done: Computed, errors: Sequence[RowError]) -> None:
        texts: list[str | None] | None = None
        if len(done.failed):
            texts = [None] * len(done.rows)
            for k, error in zip(done.failed.tolist(), errors, strict=True):
                texts[k] = error_text(error)
        self._journal.append(done.rows, done.values, texts)


def _columns_of(values: pa.Array, target: Target) -> list[pa.Array]:
    """Return the columns that a UDF's values fill: fields of a struct, or all in one."""
    columns = [values]
    if target.fields:
        flat = values.flatten()
        columns = [flat[k] for k in target.fields]
    plain = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in columns]
    # Lance keeps views of text as text: new values must be of the type of those that are kept.
    types = map(stored_type, target.data_types)
    return [c if c.type == t else c.cast(t) for c, t in zip(plain, types, strict=True)]


def error_text(error: RowError) -> str:
    """Return the text by which the journal keeps a row's failure."""
    return json.dumps({f: getattr(error, f) for f in error.__slots__})


class InFlight:
    """Hands back computed units, in the order in which they were handed out.

    So many are in flight as keep the threads busy; of large ones, fewer. Small ones come back in
    groups: to wake the thread that writes them takes longer than the call of a quick UDF.

    The values of a unit are taken to be as large as the largest of those that came before.

    Parameters
    ----------
    threads
        Threads that call the UDF.
    joins
        Whether values are of use, and may be joined.
    learns
        Whether the size of the next unit should wait for what those in flight will have cost.
    """

    def __init__(
        self, threads: int, *, joins: bool, learns: Callable[[], bool] = lambda: False
    ) -> None:
        self._threads, self._joins, self._learns = threads, joins, learns
        self._items: deque[Future[Computed] | Computed] = deque()
        self._sizes: deque[int] = deque()  # bytes that each keeps in memory now
        self._values = 0

    def add(self, unit: Unit, computed: Future[Computed]) -> None:
        """Take in a unit that was handed out."""
        self._items.append(computed)
        self._sizes.append(unit.input_bytes)

    def add_replayed(self, done: Computed) -> None:
        """Take in rows that need no computing."""
        self._items.append(done)
        self._sizes.append(done.value_bytes)

    def surplus(self) -> Iterator[Computed]:
        """Yield the oldest, joined where they are small, if more are in flight than may be.

        Raises whatever computing one of them raised; so does `rest`.
        """
        while (count := self._excess()) > 0:
            await_last([i for i in itertools.islice(self._items, count) if isinstance(i, Future)])
            done = deque(self._next() for _ in range(count))
            if self._joins and count > 1 and sum(d.value_bytes for d in done) <= GATHER_BYTES:
                done = deque([together(done)])
            yield from emptied(done)  # large ones are let go before the next are waited for

    def rest(self) -> Iterator[Computed]:
        """Yield all, each as soon as it is done."""
        while self._items:
            yield self._next()

    def settle(self) -> None:
        """Let those that were begun end, and no other begin."""
        for item in self._items:
            if isinstance(item, Future) and not item.cancel():
                item.exception()

    def _excess(self) -> int:
        """Return how many of the oldest to wait for now."""
        if self._learns():
            return int(len(self._items) >= self._threads)
        held = self._bytes
        if held <= HELD_BYTES // 2:
            group = self._threads + 1
            return group if len(self._items) > self._threads + 1 + group else 0
        most = self._threads + (2 if held <= HELD_BYTES else -1)
        return int(len(self._items) > most)

    @property
    def _bytes(self) -> int:
        """Inputs and values of all units in flight."""
        return sum(self._sizes) + len(self._sizes) * self._values

    def _next(self) -> Computed:
        item = self._items.popleft()
        self._sizes.popleft()
        if not isinstance(item, Future):
            return item
        done = item.result()
        self._values = max(self._values, done.value_bytes)
        return done


def await_last(calls: Sequence[Future[Any]]) -> None:
    """Wait for the last of some calls, or until it is seen that one of them failed.

    To wait for all of them, `concurrent.futures.wait` would take a lock for each.
    """
    while calls:
        try:
            calls[-1].exception(_LOOK_S)
        except TimeoutError:
            if not any(c.done() and c.exception() for c in calls):
                continue
        return
