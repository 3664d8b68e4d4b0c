"""The tables of a database and the coverage of their computed columns.

Everything is read from metadata: no UDF is loaded and, while nothing changed, no file is read. How
much of a column is there is remembered, so that a page that looks again and again costs one look
at the table's latest version.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from geneva.column.binding import Binding, as_called, bindings_of, computed, group_of
from geneva.column.history.ledger import Ledger
from geneva.engine.coverage import Coverage, CoverageOver, coverage, coverage_over
from geneva.errors import GenevaError, SettingError, TableChangedError
from geneva.jobs.backfills import absolute
from geneva.jobs.page import Page, decode_cursor, encode_cursor
from geneva.jobs.records import JobRecord
from geneva.jobs.store.past import Past
from geneva.service.opened_tables import Databases, storage_options
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import storage_errors

V = TypeVar("V")
_REMEMBERED = 256  # tables, or columns


@dataclass(frozen=True, slots=True)
class BoundColumn:
    """How a column is computed, as the table itself says it.

    Attributes
    ----------
    digest
        Hash of what the UDF is: its version, or its source.
    group
        The columns that it fills together.
    """

    udf: str
    digest: str
    inputs: tuple[str, ...]
    group: tuple[str, ...]
    reference: str
    python: str


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """One column of a table; ``bound`` is ``None`` where it is not computed."""

    name: str
    type: str
    bound: BoundColumn | None = None


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table as it stands now; ``error`` says why it could not be opened."""

    db: str
    name: str
    version: int = 0
    rows: int = 0
    fragments: int = 0
    columns: tuple[ColumnFacts, ...] = ()
    error: str = ""

    @property
    def computed(self) -> tuple[ColumnFacts, ...]:
        """The computed columns, one of each group that is filled together."""
        seen: dict[tuple[str, ...], ColumnFacts] = {}
        for column in self.columns:
            if column.bound is not None:
                seen.setdefault(column.bound.group, column)
        return tuple(seen.values())


@dataclass(frozen=True, slots=True)
class Covered:
    """How much of a computed column is there.

    Attributes
    ----------
    computed, failed, missing, stale, foreign, unverified
        Live rows; together ``rows``. Foreign ones somebody else wrote; of unverified ones the
        history is gone.
    waiting
        Those missing and stale ones whose computed inputs are not there yet.
    fragments_done
        Fragments in which nothing is missing or stale.
    pieces
        Share of rows that need no work, from the table's begin to its end, in at most 100 pieces.
    per_fragment
        The rows of each fragment, where that was asked for.
    """

    column: ColumnFacts
    version: int
    rows: int
    computed: int
    failed: int
    missing: int
    stale: int
    foreign: int
    unverified: int
    waiting: int
    fragments: int
    fragments_done: int
    pieces: tuple[float, ...]
    last_job: JobRecord | None = None
    per_fragment: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class CoveredOver:
    """Rows of a computed column by state, period by period along another column.

    Attributes
    ----------
    periods
        Each with key, rows, computed, stale, missing, failed, foreign and unverified; rows without
        a value of ``on`` come last, as ``(null)``.
    """

    column: str
    on: str
    step: str
    version: int
    periods: tuple[dict[str, Any], ...]


class Catalog:
    """Looks at tables, and remembers how much was there of the latest version of each.

    Parameters
    ----------
    db
        Database that is meant where none is named.
    databases
        Those that may be looked at.
    """

    def __init__(self, db: str | None, databases: Databases, past: Past) -> None:
        self.db, self._databases, self._past = db, databases, past
        self._storages: _Remembered[TableStorage] = _Remembered()
        self._covered: _Remembered[_Counted] = _Remembered()
        self._over: _Remembered[CoverageOver] = _Remembered()

    def database(self, db: str | None) -> str:
        """Return the database that is meant.

        Raises
        ------
        SettingError
            None is named, and the service was started without one.
        """
        chosen = db or self.db
        if chosen is None:
            raise SettingError("db is needed: this service was started without --db")
        return chosen

    def tables(self, db: str | None, limit: int, cursor: str | None = None) -> Page[TableFacts]:
        """Return tables in the order of their names; one that cannot be opened says why."""
        chosen = self.database(db)
        names = self.names(chosen)
        if cursor is not None:
            [after] = decode_cursor(cursor, str)
            names = [n for n in names if n > str(after)]
        shown = names[:limit]
        more = encode_cursor(shown[-1]) if len(names) > limit else None
        return Page([self._table_or_error(chosen, n) for n in shown], more)

    def names(self, db: str | None) -> list[str]:
        """Return the names of all tables, sorted."""
        chosen = self.database(db)
        return sorted(self._databases.open(chosen).list_tables().tables)

    def _table_or_error(self, db: str, name: str) -> TableFacts:
        try:
            return self.table(db, name)
        except GenevaError as error:
            return TableFacts(db, name, error=str(error))

    def table(self, db: str | None, name: str) -> TableFacts:
        """Return the description of a table.

        Raises
        ------
        TableError
            There is none of that name.
        """
        chosen = self.database(db)
        return _facts(chosen, name, self.open(chosen, name)[1])

    def coverage(
        self, db: str | None, name: str, column: str, *, fragments: bool = False
    ) -> Covered:
        """Count the rows of a computed column.

        Raises
        ------
        ColumnError
            There is no such column, or it is not computed.
        """
        storage, snapshot = self.open(self.database(db), name)
        binding = computed(as_called(snapshot), column)
        key = (storage.uri, binding.incarnation)
        last = self._past.last_job(absolute(storage.uri), column)

        def count() -> _Counted:
            before = self._covered.present(key)
            ledger = before.ledger if before else Ledger.load(storage, binding.incarnation)
            with storage_errors(storage.uri):
                facts = coverage(storage, column, binding, snapshot, ledger)
            return _Counted(facts, ledger.kept(snapshot))

        counted = self._covered.get(key, (snapshot.version, binding.digest), count)
        facts = _covered(_column(snapshot, column), counted.coverage, last)
        if not fragments:
            return facts
        return replace(facts, per_fragment=tuple(counted.coverage.table.to_pylist()))

    def coverage_over(
        self, db: str | None, name: str, column: str, on: str, step: str, tz: str | None = None
    ) -> CoveredOver:
        """Count the rows of a computed column along a date or timestamp column.

        Raises
        ------
        ColumnError, SettingError
            There is no such column, or it takes no such step.
        """
        storage, snapshot = self.open(self.database(db), name)
        binding = computed(as_called(snapshot), column)
        key = (storage.uri, binding.incarnation, on, step, tz)

        def count() -> CoverageOver:
            with storage_errors(storage.uri):
                return coverage_over(storage, column, binding, on, step, tz, snapshot)

        counted = self._over.get(key, (snapshot.version, binding.digest), count)
        return CoveredOver(column, on, step, counted.version, tuple(counted.table.to_pylist()))

    def open(self, db: str, name: str) -> tuple[TableStorage, Snapshot]:
        """Open the latest version of a table."""
        options = storage_options(self._databases.admit(db))  # which may be others than before

        def opened() -> TableStorage:
            return self._databases.table(db, name).storage

        storage = self._storages.get((db, name), options, opened)
        with storage_errors(storage.uri):
            try:
                return storage, storage.open()
            except TableChangedError:  # dropped; perhaps made anew
                storage = opened()
                return storage, storage.open()


@dataclass(frozen=True, slots=True)
class _Counted:
    coverage: Coverage
    ledger: Ledger


@dataclass(slots=True)
class _Entry(Generic[V]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    version: object = None
    value: V | None = None


class _Remembered(Generic[V]):
    """The latest answers to the latest questions; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry[V]] = OrderedDict()

    def get(self, key: Hashable, version: object, make: Callable[[], V]) -> V:
        """Return the value of a version; of those who ask at once, one makes it."""
        entry = self._entry(key)
        with entry.lock:
            if entry.value is None or entry.version != version:
                entry.value, entry.version = make(), version
            return entry.value

    def present(self, key: Hashable) -> V | None:
        """Return the remembered answer, of whatever version."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None else entry.value

    def _entry(self, key: Hashable) -> _Entry[V]:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > _REMEMBERED:
                self._entries.popitem(last=False)
            return entry


def _facts(db: str, name: str, snapshot: Snapshot) -> TableFacts:
    columns = tuple(_column(snapshot, c) for c in snapshot.schema.names)
    rows = snapshot.dataset.count_rows()
    return TableFacts(db, name, snapshot.version, rows, len(snapshot.fragments), columns)


def _column(snapshot: Snapshot, name: str) -> ColumnFacts:
    binding = bindings_of(as_called(snapshot)).get(name)
    bound = None if binding is None else _bound(snapshot, binding)
    return ColumnFacts(name, str(snapshot.schema.field(name).type), bound)


def _bound(snapshot: Snapshot, binding: Binding) -> BoundColumn:
    group = tuple(n for n, _ in group_of(snapshot.schema, binding))
    return BoundColumn(
        binding.udf, binding.digest, binding.inputs, group, binding.reference, binding.python
    )


def _covered(column: ColumnFacts, counts: Coverage, last: JobRecord | None) -> Covered:
    totals: dict[str, Any] = counts.totals
    rows = counts.table["rows"].to_pylist()
    missing, stale = (
        counts.table["missing"].to_pylist(),
        counts.table["stale"].to_pylist(),
    )
    left = [m + s for m, s in zip(missing, stale, strict=True)]
    return Covered(
        column=column,
        version=counts.version,
        fragments=len(rows),
        fragments_done=left.count(0),
        pieces=_pieces(rows, left),
        last_job=last,
        **totals,
    )


def _pieces(rows: list[int], left: list[int], most: int = 100) -> tuple[float, ...]:
    """Return the share of rows that need no work in equal runs of fragments."""
    count = min(most, len(rows))
    edges = [len(rows) * k // count for k in range(count + 1)] if count else []
    sums = ((sum(rows[a:b]), sum(left[a:b])) for a, b in itertools.pairwise(edges))
    return tuple(round(1 - need / max(total, 1), 4) for total, need in sums)
