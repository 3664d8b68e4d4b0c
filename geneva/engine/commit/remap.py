"""Carry checkpoints over to the fragments that a compaction made of those they were made for.

What begun work left is found by its key, which names its fragment. A compaction takes fragments
away, but not rows: the keys of the fragments that a present one was made of are known, and what
their logs hold (records, or the name of a finished column file) is written as a checkpoint of the
present fragment's task, which replays it and computes only the rest. So it makes no difference
whether the job of this process, an earlier one or a killed one began the work. What cannot be
proven is computed again.

Crash windows, in order:

1. before a new log is synced: the old logs are all there, the next run carries them over;
2. before the old logs are removed: the same, but rows that the new log holds are passed over;
3. before their column files are removed: no log names these any more, `clean` takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from geneva.column.checkpoint.journal import Journal, Replay, replay
from geneva.column.checkpoint.key import (
    fragment_key,
    is_of_family,
    log_path,
    new_attempt,
    planned_on,
)
from geneva.column.file import WORK_KEY, ColumnFileName, row_map_text
from geneva.column.history.descent import Ancestor, Descent
from geneva.errors import CorruptFileError, TableChangedError
from geneva.model.rows import BoolArray, IntArray, RowMap, RowStatus
from geneva.model.types import Target, Task, stored_type
from geneva.storage.lance import Snapshot, TableStorage

_ROWS = 8192  # read at once
_FIRST_ROWS = 64  # the same, before it is known how wide they are
_BYTES = 16 << 20  # the same, where they are
_MOST_VERSIONS = 64  # that are opened to see that none names a file

Logs = Mapping[str, tuple[str, ...]]  # by work key


@dataclass(slots=True)
class Inherited:
    """The checkpoints that tasks inherit from fragments which compactions replaced.

    Attributes
    ----------
    written
        Work key of a task -> the log that was written for it.
    heirs
        Log of a vanished fragment -> the planned fragments that hold rows of it.
    files
        Such a log -> column files that it names, and that no version does.
    faults
        Why something could not be read.
    """

    written: dict[str, tuple[str, ...]] = field(default_factory=dict)
    heirs: dict[str, set[int]] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def inherit(
    storage: TableStorage,
    snapshot: Snapshot,
    target: Target,
    logs: Logs,
    tasks: Sequence[Task],
    planned: Sequence[Task] = (),
) -> Inherited:
    """Copy the checkpoints of vanished fragments to the tasks of their successors.

    Nothing is read or written where all logs are of fragments that are still there.

    Parameters
    ----------
    logs
        All of the column.
    tasks
        That are about to be carried out.
    planned
        All that were planned, also those that are left to others or to a later call: their share
        stays where it is.
    """
    inherited = Inherited()
    everything = {t.key: t for t in (*planned, *tasks)}
    if not everything:
        return inherited
    now = {t.key for t in tasks}
    for lead in {(t.family, _fields(t)): t for t in everything.values()}.values():
        orphans = {
            key: paths
            for key, paths in logs.items()
            if is_of_family(key, lead.family) and key not in everything
        }
        if not orphans:
            continue
        estate = _Estate(storage, snapshot, target, orphans, lead)
        for task in everything.values():
            if (task.family, _fields(task)) == (lead.family, _fields(lead)):
                estate.share(task, logs.get(task.key, ()), inherited, copy=task.key in now)
    return inherited


def _fields(task: Task) -> tuple[int, ...]:
    return tuple(i for i, _ in task.sources)


class _Estate:
    """The logs of fragments that are gone, of one family's work."""

    def __init__(
        self, storage: TableStorage, snapshot: Snapshot, target: Target, logs: Logs, lead: Task
    ) -> None:
        self._storage, self._target = storage, target
        self._snapshot, self._logs = snapshot, logs
        self._ids, self._family = _fields(lead), lead.family
        subtrees = {f.id: f.subtree for f in snapshot.fields.values()}
        oldest = min(planned_on(path) for paths in logs.values() for path in paths)
        inputs = [subtrees[i] for i in self._ids]
        self._descent = Descent(storage, snapshot, target.incarnation, inputs, oldest)
        self._opened: tuple[str, _Source] | None = None

    def share(self, task: Task, own: Sequence[str], inherited: Inherited, *, copy: bool) -> None:
        """Find the checkpoints that a task inherits, and copy them if it is carried out now."""
        ancestors = [
            (key, a)
            for a in self._descent.ancestors(self._snapshot.fragments[task.fragment_id])
            if (key := self._key(a)) in self._logs
        ]
        for key, _ in ancestors:
            for path in self._logs[key]:
                inherited.heirs.setdefault(path, set()).add(task.fragment_id)
        if not ancestors or not copy:
            return
        path = log_path(self._target.incarnation, task.key, new_attempt(task.version))
        journal = Journal(self._storage.objects, path, self._target.data_types)
        try:
            held = self._held(task, own)
            for key, ancestor in ancestors:
                source = self._source(key)
                source.copy(ancestor, held, journal)
                for log, name in source.abandoned(self._descent, ancestor):
                    inherited.files.setdefault(log, set()).add(name)
        except (FileNotFoundError, CorruptFileError, TableChangedError) as error:
            inherited.faults.append(str(error))
        finally:
            if journal.created:
                journal.sync()  # what it was copied from is removed next
                journal.close()
                inherited.written[task.key] = (path,)

    def _key(self, ancestor: Ancestor) -> str:
        fragment = ancestor.fragment
        sources = tuple(zip(self._ids, self._descent.sources(fragment), strict=True))
        return fragment_key(self._family, fragment.id, fragment.rows, sources)

    def _held(self, task: Task, own: Sequence[str]) -> BoolArray:
        """Return the rows that are checkpointed for the task itself."""
        held = np.zeros(task.rows, np.bool_)
        if own:
            found = self._replay(own, task.key)
            held[found.rows] = True
            found.forget()
        return held

    def _replay(self, logs: Sequence[str], key: str) -> Replay:
        types = self._target.data_types
        return replay(self._storage.objects, logs, types, with_failed=True, key=key)

    def _source(self, key: str) -> _Source:
        """Return the content of a key's logs; the last one stays open, as a fragment is split."""
        if self._opened is None or self._opened[0] != key:
            logs = self._logs[key]
            found = self._replay(logs, key)
            self._opened = key, _Source(self._storage, self._target, key, logs, found)
        return self._opened[1]


class _Source:
    """The checkpoints of one vanished fragment: records, and maybe a finished column file."""

    def __init__(
        self, storage: TableStorage, target: Target, key: str, logs: Sequence[str], found: Replay
    ) -> None:
        self._storage, self._target = storage, target
        self._logs, self._found = logs, found
        self._file, self._in_file = "", np.zeros(0, np.bool_)
        if found.finish is not None and (in_file := self._computed(found.finish["file"], key)):
            self._file, self._in_file = found.finish["file"], in_file[0]

    def _computed(self, name: str, key: str) -> tuple[BoolArray] | None:
        """Return which rows of a column file its own job computed, if it is of this work."""
        try:
            footer = self._storage.read_footer(name)
            row_map = RowMap.loads(row_map_text(footer, name))
        except (FileNotFoundError, CorruptFileError):
            return None  # cleaned up or torn by a power failure: the records are still there
        if footer.metadata.get(WORK_KEY) != key:
            return None
        newest = max(c.generation for c in row_map.classes)
        return (row_map.mask(lambda c: c.status is RowStatus.COMPUTED and c.generation == newest),)

    def copy(self, ancestor: Ancestor, held: BoolArray, journal: Journal) -> None:
        """Checkpoint the rows that the task does not hold yet, and note that it holds them."""
        now = np.full(ancestor.fragment.rows, -1)
        now[ancestor.rows] = ancestor.now
        for rows in self._ascending(self._found.rows, now, held):
            self._copy_records(rows, now, journal)
        if self._file:
            for rows in self._ascending(np.flatnonzero(self._in_file), now, held):
                self._copy_values(rows, now, journal)

    @staticmethod
    def _ascending(rows: IntArray, now: IntArray, held: BoolArray) -> Iterator[IntArray]:
        """Yield those of some rows that are wanted; in pieces whose new places ascend as well."""
        wanted = rows[now[rows] >= 0]
        wanted = wanted[~held[now[wanted]]]
        held[now[wanted]] = True
        if len(wanted):
            yield from np.split(wanted, np.flatnonzero(np.diff(now[wanted]) < 0) + 1)

    def _copy_records(self, rows: IntArray, now: IntArray, journal: Journal) -> None:
        found = self._found
        positions = np.searchsorted(found.rows, rows)
        step = min(_ROWS, found.rows_of(_BYTES))
        for at in range(0, len(rows), step):
            some = positions[at : at + step]
            errors = [found.errors.get(p) for p in some.tolist()] if found.errors else []
            values = found.values(some)
            journal.append(now[rows[at : at + step]], values, errors if any(errors) else None)
            found.forget()

    def _copy_values(self, rows: IntArray, now: IntArray, journal: Journal) -> None:
        start, step = 0, _FIRST_ROWS
        while start < len(rows):
            part = rows[start : start + step]
            values = self._storage.read_rows(self._file, part.tolist())
            start += values.num_rows
            step = max(1, min(_ROWS, _BYTES * values.num_rows // max(values.nbytes, 1)))
            arrays = [
                _whole(values[c]).cast(stored_type(t))
                if pa.types.is_dictionary(t)
                else _whole(values[c])
                for c, t in zip(self._target.columns, self._target.data_types, strict=True)
            ]
            journal.append(now[part], arrays, None)

    def abandoned(self, descent: Descent, ancestor: Ancestor) -> Iterator[tuple[str, str]]:
        """Yield the finished file with its logs, if it was certainly never committed."""
        name = ColumnFileName.parse(self._file)
        if name is None:
            return
        since = name.generation // 2
        if not descent.names(ancestor, self._file, since, _MOST_VERSIONS):
            for log in self._logs:
                yield log, self._file


def _whole(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
