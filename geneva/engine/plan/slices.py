"""Windows over a table: which rows of a fragment are in which window.

Lance files carry no least and greatest values, so the column that windows are cut along is read
once, alone; its bounds are kept per data file under ``_backfill/extents/``. A data file never
changes, so that they are never stale, and losing them costs a read. From then on a fragment that
lies in one window, or outside all of them, is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva.appliers.reader import column_path
from geneva.column.binding import top_level
from geneva.column.history.marks import supplier
from geneva.errors import SettingError
from geneva.model.rows import BoolArray, IntArray
from geneva.model.windows import MOST_VALUES, Axis, Known, Window, Windows, resolve, settled
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import flags, integers

OUTSIDE, NO_VALUE = -1, -2  # instead of a window: of rows beyond the range, and without a value
Places = np.ndarray[tuple[int], np.dtype[np.int32]]
_FORMAT = 1
_SCAN_ROWS = 1 << 20  # that one scan reads of small fragments together
_BATCH_ROWS = 65_536


class Extent(NamedTuple):
    """The least and greatest value of a column in some rows, and how many have none."""

    least: int | None
    greatest: int | None
    nulls: int


@dataclass(frozen=True, slots=True)
class Path:
    """The column that windows are cut along, in one version of a table.

    Attributes
    ----------
    column
        The top-level column.
    leaf
        Id of the field at the end of the path.
    subtree
        Ids of the fields of its top-level column.
    """

    text: str
    column: str
    sql: str
    leaf: int
    subtree: tuple[int, ...]
    kind: pa.DataType
    axis: Axis

    @classmethod
    def of(cls, snapshot: Snapshot, on: str) -> Path:
        """Find a column or a field within one.

        Raises
        ------
        ColumnError
            There is none of that name.
        """
        top = top_level(snapshot.schema, on)
        ids = snapshot.ids(on)
        assert ids is not None  # top_level went the same way
        kind = snapshot.schema.field(top).type
        for part in on.split(".")[1:] if on != top else ():
            kind = kind.field(part).type
        sql = column_path(snapshot.schema, on)
        return cls(on, top, sql, ids[-1], snapshot.fields[top].subtree, kind, axis_of(kind))


def axis_of(kind: pa.DataType) -> Axis:
    """Return how windows measure values of a type."""
    if pa.types.is_dictionary(kind):
        return axis_of(kind.value_type)
    if pa.types.is_date(kind):
        return Axis("date")
    if pa.types.is_timestamp(kind):
        return Axis("timestamp", kind.unit, kind.tz)
    if pa.types.is_integer(kind):
        return Axis("integer")
    return Axis("other", type_name=str(kind))


class OnColumn:
    """The column that windows are cut along, in one version of a table."""

    def __init__(self, storage: TableStorage, snapshot: Snapshot, on: str) -> None:
        self._storage, self._snapshot = storage, snapshot
        self.path = Path.of(snapshot, on)
        self._extents = _Extents(storage, self.path)

    @property
    def ordered(self) -> bool:
        """Whether its values have an order that windows can use, and so bounds."""
        return self.path.axis.kind != "other"

    def learn(self, fragments: Iterable[FragmentInfo]) -> None:
        """Read the bounds of some fragments that are not known yet, many in one scan."""
        if not self.ordered:
            return
        unknown = [f for f in fragments if self._extents.of(f) is None]
        for fragment, values in self.read(unknown):
            self._extents.learn(fragment, _extent(values))
        self._extents.save()

    def extent(self, fragment: FragmentInfo) -> Extent | None:
        """Return the bounds of a fragment, if they are known."""
        return self._extents.of(fragment) if self.ordered else None

    def bounds(self) -> Extent:
        """Return the least and greatest value of the fragments that were asked about."""
        return self._extents.all_in_all()

    def held(self) -> str:
        """Return the least and greatest value of the fragments asked about, as people read them."""
        least, greatest, _ = self.bounds()
        if least is None or greatest is None:
            return "no value" if self.ordered else f"values of type {self.path.kind}"
        return f"{_readable(least, self.path)} to {_readable(greatest, self.path)}"

    def distinct(self) -> list[object]:
        """Return the table's values, sorted; a few more than may be, if there are too many."""
        kind = _plain(self.path.kind)
        seen = pa.array([], kind)
        for _, values in self.read(list(self._snapshot.fragments.values())):
            seen = pc.unique(pa.chunked_array([seen, pc.unique(values.cast(kind))])).drop_null()
            if len(seen) > MOST_VALUES:
                break
        return sorted(seen.to_pylist())

    def read(
        self, fragments: Sequence[FragmentInfo]
    ) -> Iterator[tuple[FragmentInfo, pa.ChunkedArray]]:
        """Yield the column's values at all physical rows of each fragment."""
        for group in _together(fragments):
            batches = self._storage.scan(
                self._snapshot, [f.id for f in group], {"on": self.path.sql}, batch_rows=_BATCH_ROWS
            )
            left: list[pa.Array] = []
            for fragment in group:
                held = sum(map(len, left))
                while held < fragment.rows:
                    left.append(next(batches).column("on"))
                    held += len(left[-1])
                values = pa.chunked_array(left, left[0].type if left else self.path.kind)
                yield fragment, values.slice(0, fragment.rows)
                left = values.slice(fragment.rows).chunks

    def windows(self, asked: Windows, now: datetime) -> tuple[Window, ...]:
        """Cut the column into windows; a bound that was left out is taken from the values.

        Parameters
        ----------
        now
            The moment from which ``last=`` counts.

        Raises
        ------
        SettingError
            The windows do not fit the column.
        """
        return resolve(asked, self.path.axis, self._known(asked, now))

    def settled(self, asked: Windows, now: datetime) -> Windows:
        """Return windows that `windows` cuts alike at any later moment and version."""
        return settled(asked, self.path.axis, self._known(asked, now))

    def _known(self, asked: Windows, now: datetime) -> Known:
        if isinstance(asked.values, str):
            return Known(now, distinct=self.distinct())
        bounded = asked.start is not None and asked.end is not None
        given = asked.values is not None or asked.nulls == "only"
        if given or not self.ordered or asked.last is not None or bounded:
            return Known(now)
        self.learn(self._snapshot.fragments.values())
        extent = self.bounds()
        return Known(now, extent.least, extent.greatest)


class Slices:
    """Which rows of a version are in which of some windows.

    Parameters
    ----------
    only
        The numbers of the windows that count; the rows of all others are outside.

    Raises
    ------
    SettingError
        The column cannot hold the value of a window.
    """

    def __init__(
        self, column: OnColumn, windows: Sequence[Window], only: Collection[int] | None = None
    ) -> None:
        self._column, self._ordered = column, column.ordered
        chosen = [(k, w) for k, w in enumerate(windows) if only is None or k in only]
        self._nulls = next((k for k, w in chosen if w.is_nulls), NO_VALUE)
        ranges = sorted((w.lower, w.upper, k) for k, w in chosen if w.lower is not None)
        self._lowers = np.array([low for low, _, _ in ranges], np.int64)
        self._uppers = np.array([high for _, high, _ in ranges], np.int64)
        self._order = np.array([k for _, _, k in ranges], np.int32)
        valued = [(k, w) for k, w in chosen if w.lower is None and not w.is_nulls]
        self._value_places = np.array([k for k, _ in valued], np.int32)
        self._values = None if self._ordered else _value_set([w for _, w in valued], column.path)

    @property
    def on(self) -> str:
        """The column, as the call named it."""
        return self._column.path.text

    @property
    def column(self) -> str:
        """The top-level column that they are cut along."""
        return self._column.path.column

    def source(self, fragment: FragmentInfo) -> str:
        """Return the files that supply the column: while they stay, so do the rows' windows."""
        return supplier(fragment, self._column.path.subtree)

    @property
    def scope(self) -> tuple[object, ...]:
        """The range as part of a work key: its bounds and not its steps."""
        outer = _joined(self._lowers.tolist(), self._uppers.tolist())
        values = [] if self._values is None else sorted(map(repr, self._values.to_pylist()))
        return (self._column.path.leaf, outer, tuple(values), self._nulls >= 0)

    def learn(self, fragments: Iterable[FragmentInfo]) -> None:
        """Read the bounds of some fragments that are not known yet, many in one scan."""
        self._column.learn(fragments)

    def of(self, fragment: FragmentInfo) -> int | Places:
        """Return the window of all rows of a fragment, or that of each physical row.

        A window is its place among all, else `OUTSIDE` or `NO_VALUE`. What a deleted row has
        means nothing.
        """
        if (whole := self._whole_of(fragment)) is not None:
            return whole
        ((_, values),) = self._column.read([fragment])
        return self._by_range(values) if self._ordered else self._by_value(values)

    def each(
        self, fragments: Sequence[FragmentInfo]
    ) -> Iterator[tuple[FragmentInfo, int | Places]]:
        """Yield each fragment with the result of `of`, in order; small ones are read together."""
        self.learn(fragments)
        known = {f.id: self._whole_of(f) for f in fragments}
        read = self._column.read([f for f in fragments if known[f.id] is None])
        for fragment in fragments:
            if (whole := known[fragment.id]) is not None:
                yield fragment, whole
            else:
                _, values = next(read)
                yield fragment, self._by_range(values) if self._ordered else self._by_value(values)

    # --- one fragment ------------------------------------------------------------------

    def _whole_of(self, fragment: FragmentInfo) -> int | None:
        known = self._column.extent(fragment)
        return None if known is None else self._whole(known)

    def _whole(self, extent: Extent) -> int | None:
        """Return the one window that rows with these bounds are in, if it is one."""
        if extent.least is None or extent.greatest is None:
            return self._nulls
        if extent.nulls:
            return None
        at = int(np.searchsorted(self._lowers, extent.least, "right")) - 1
        if at >= 0 and extent.least < int(self._uppers[at]):
            return int(self._order[at]) if extent.greatest < int(self._uppers[at]) else None
        beyond = at + 1 == len(self._lowers) or extent.greatest < int(self._lowers[at + 1])
        return OUTSIDE if beyond else None

    def _by_range(self, values: pa.ChunkedArray) -> Places:
        numbers, valid = _integers(values)
        places: Places = np.full(len(numbers), OUTSIDE, np.int32)
        if len(self._lowers):
            at = np.searchsorted(self._lowers, numbers, "right") - 1
            inside = (at >= 0) & (numbers < self._uppers[at])
            places[inside] = self._order[at[inside]]
        places[~valid] = self._nulls
        return places

    def _by_value(self, values: pa.ChunkedArray) -> Places:
        assert self._values is not None
        plain = pc.cast(values, self._values.type)
        at = integers(pc.index_in(plain, self._values).fill_null(-1).combine_chunks())
        places: Places = np.full(len(at), OUTSIDE, np.int32)
        places[at >= 0] = self._value_places[at[at >= 0]]
        places[~flags(pc.is_valid(values).combine_chunks())] = self._nulls
        return places


class _Extents:
    """The bounds of a column by the data files that supply it."""

    def __init__(self, storage: TableStorage, path: Path) -> None:
        self._objects, self._path, self._where = storage.objects, path, f"extents/{path.leaf}.json"
        self._known: dict[str, Extent] = self._loaded()
        self._used: dict[str, Extent] = {}
        self._changed = False

    def _loaded(self) -> dict[str, Extent]:
        try:
            raw = json.loads(self._objects.get(self._where))
            if raw["format"] == _FORMAT:
                return {k: Extent(*v) for k, v in raw["extents"].items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        return {}

    def of(self, fragment: FragmentInfo) -> Extent | None:
        """Return the bounds of a fragment, deleted rows included, if they are known."""
        if fragment.overlaid:
            return None
        file = supplier(fragment, self._path.subtree)
        if not file:
            return Extent(None, None, fragment.rows)
        known = self._known.get(file)
        if known is not None:
            self._used[file] = known
        return known

    def learn(self, fragment: FragmentInfo, extent: Extent) -> None:
        """Remember the bounds of a fragment."""
        file = supplier(fragment, self._path.subtree)
        if file and not fragment.overlaid:
            self._known[file] = self._used[file] = extent
            self._changed = True

    def all_in_all(self) -> Extent:
        """Return the bounds of all fragments that were asked for."""
        least = [e.least for e in self._used.values() if e.least is not None]
        most = [e.greatest for e in self._used.values() if e.greatest is not None]
        nulls = sum(e.nulls for e in self._used.values())
        return Extent(min(least, default=None), max(most, default=None), nulls)

    def save(self) -> None:
        """Save the known extents, if there are new ones."""
        if not self._changed:
            return
        body = {"format": _FORMAT, "extents": {k: list(v) for k, v in self._known.items()}}
        self._objects.put(self._where, json.dumps(body).encode())
        self._changed = False


def _together(fragments: Sequence[FragmentInfo]) -> Iterator[list[FragmentInfo]]:
    """Yield fragments, as many as are read in one scan."""
    group: list[FragmentInfo] = []
    rows = 0
    for fragment in fragments:
        if group and rows + fragment.rows > _SCAN_ROWS:
            yield group
            group, rows = [], 0
        group.append(fragment)
        rows += fragment.rows
    if group:
        yield group


def _integers(values: pa.ChunkedArray) -> tuple[IntArray, BoolArray]:
    """Return values as the axis counts them, and where there are any."""
    array = values.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    array = array.cast(_plain(array.type))
    valid = flags(pc.is_valid(array))
    try:
        counted = array if pa.types.is_integer(array.type) else array.cast(_COUNTS[array.type.id])
        numbers = integers(counted.cast(pa.int64()).fill_null(0))
    except pa.ArrowInvalid as error:
        raise SettingError(f"windows: a value is beyond 64 bits with a sign: {error}") from None
    return (numbers // _DAY_MS if pa.types.is_date64(array.type) else numbers), valid


_DAY_MS = 86_400_000
_COUNTS = {
    pa.date32().id: pa.int32(),
    pa.date64().id: pa.int64(),
    pa.timestamp("us").id: pa.int64(),
}


def _extent(values: pa.ChunkedArray) -> Extent:
    numbers, valid = _integers(values)
    present = numbers[valid]
    nulls = len(numbers) - len(present)
    if not len(present):
        return Extent(None, None, nulls)
    return Extent(int(present.min()), int(present.max()), nulls)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column, which may be a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _readable(number: int, path: Path) -> str:
    """Return a value of an axis as people write it."""
    kind = _plain(path.kind)
    if pa.types.is_integer(kind):
        return str(number)
    if pa.types.is_date(kind):
        return (date(1970, 1, 1) + timedelta(days=number)).isoformat()
    return str(pa.scalar(number, pa.int64()).cast(kind))


def _value_set(windows: Sequence[Window], path: Path) -> pa.Array:
    """Return the values that have a window each, in the order of the windows."""
    kind = _plain(path.kind)
    values = [w.value for w in windows if not w.is_nulls]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SettingError(f"windows: column {path.text!r} holds {kind}: {error}") from None


def _joined(lowers: Sequence[int], uppers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Join ranges that touch each other, given in ascending order."""
    joined: list[tuple[int, int]] = []
    for low, high in zip(lowers, uppers, strict=True):
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return tuple(joined)
