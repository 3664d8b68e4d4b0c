"""Checkpoint what a task computes, unit by unit."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from geneva.column.checkpoint.journal import Journal
from geneva.model.rows import IntArray
from geneva.model.types import Counts, Failure, Target, stored_type
from geneva.udf import Applied, RowError

_HELD_S = 0.2
_HELD_BYTES = 32 << 20


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
    """Join batches that follow each other: their columns, and what failed where."""
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


class Recorder:
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
        """Record what is held, and hold nothing from now on."""
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
    """Return what the journal keeps of a row that failed."""
    return json.dumps({f: getattr(error, f) for f in error.__slots__})
