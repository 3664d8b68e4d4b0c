"""Which earlier fragments a compaction made a fragment of, and which of their rows became which.

A compaction lays the live rows of old fragments out, in order, as new fragments. It changes no
value, so what was computed for a row of the old ones holds for the same row of the new one, as
long as nobody rewrote an input on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from geneva.column.binding import bindings_of
from geneva.column.history.marks import supplier
from geneva.column.history.sources import Versions
from geneva.errors import VersionGoneError
from geneva.model.rows import BoolArray, IntArray
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import RewriteGroup, integers


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A fragment that compactions took, and those of its rows that a present fragment holds.

    Attributes
    ----------
    rows, now
        Physical rows, ascending, and where each of them is in the present fragment.
    last
        The last version that had the fragment.
    """

    fragment: FragmentInfo
    rows: IntArray
    now: IntArray
    last: int


class Descent:
    """Traces fragments of one snapshot back to those that compactions made them of.

    Parameters
    ----------
    incarnation
        Of the column that is computed: nothing is of interest from before it was bound.
    inputs
        Subtrees of the fields whose files must have stayed what they were.
    oldest
        Version from which on fragments are of interest.
    """

    def __init__(
        self,
        storage: TableStorage,
        snapshot: Snapshot,
        incarnation: str,
        inputs: Sequence[tuple[int, ...]],
        oldest: int,
    ) -> None:
        self._storage, self._snapshot = storage, snapshot
        self._incarnation, self._inputs, self._oldest = incarnation, inputs, oldest
        self._versions = Versions(storage, snapshot)
        self._live: dict[tuple[int, int], IntArray | None] = {}

    def sources(self, fragment: FragmentInfo) -> tuple[str, ...]:
        """Return the files that supply the inputs of a fragment."""
        return tuple(supplier(fragment, subtree) for subtree in self._inputs)

    def ancestors(self, fragment: FragmentInfo) -> Iterator[Ancestor]:
        """Yield the fragments of which compactions made one of the snapshot, the latest first.

        Those of which no row is left are among them where all of their rows had been deleted.
        """
        whole = np.arange(fragment.rows)
        open_ends = deque([Ancestor(fragment, whole, whole, self._snapshot.version)])
        while open_ends:
            for older in self._parents(open_ends.popleft()):
                yield older
                open_ends.append(older)

    def _parents(self, child: Ancestor) -> list[Ancestor]:
        """Return the ancestors that one compaction made a fragment of; none where unproven."""
        made = self._sources_of(child)
        if made is None:
            return []
        old, start, total, born = made
        live = [rows for f in old if (rows := self._live_rows(born - 1, f)) is not None]
        if len(live) < len(old) or sum(map(len, live)) != total:
            return []
        found: list[Ancestor] = []
        at = child.rows + start  # of the live rows of all old ones
        for fragment, rows in zip(old, live, strict=True):
            here = (at >= 0) & (at < len(rows))
            if here.any() or not len(rows) or not len(at):
                found.append(Ancestor(fragment, rows[at[here]], child.now[here], born - 1))
            at = at - len(rows)
        return found

    def _sources_of(self, child: Ancestor) -> tuple[list[FragmentInfo], int, int, int] | None:
        """Return the old fragments, where in their live rows it begins, how many, and when."""
        fragment, sources = child.fragment, self.sources(child.fragment)

        def has(past: Snapshot) -> bool:
            there = past.fragments.get(fragment.id)
            if there is None or there.rows != fragment.rows:
                return False
            return self.sources(there) == sources

        born, _ = self._versions.first(has, child.last)
        change, after = self._versions.change(born), self._versions.open(born)
        if born <= self._oldest or change is None or after is None or not self._bound_in(after):
            return None
        before = self._versions.open(born - 1)
        # The version may be cleaned up; what the compaction read is told by its own transaction.
        then = before.fragments if before else {f.id: f for f in change.replaced}
        made = rewritten_from(fragment, then, change.groups)
        return None if made is None else (*made, born)

    def _bound_in(self, snapshot: Snapshot) -> bool:
        bindings = bindings_of(snapshot.schema).values()
        return any(b.incarnation == self._incarnation for b in bindings)

    def _live_rows(self, version: int, fragment: FragmentInfo) -> IntArray | None:
        """Return the rows that are not deleted; ``None`` where nobody can tell any more."""
        if not fragment.deleted:
            return np.arange(fragment.rows)
        key = version, fragment.id
        if key not in self._live:
            before = self._versions.open(version)
            try:
                mask = None if before is None else live_mask(self._storage, before, fragment)
            except VersionGoneError:
                mask = None
            self._live[key] = None if mask is None else np.flatnonzero(mask)
        return self._live[key]

    def names(self, ancestor: Ancestor, file: str, since: int, most: int) -> bool:
        """Whether some version since one may have had a file in an ancestor.

        ``most`` versions are looked at; of more, and of those that are gone, nobody can tell.
        """
        if ancestor.last - since > most:
            return True
        for version in range(since, ancestor.last + 1):
            past = self._versions.open(version)
            there = None if past is None else past.fragments.get(ancestor.fragment.id)
            if past is None or (there and any(f.path == file for f in there.files)):
                return True
        return False


def live_mask(storage: TableStorage, snapshot: Snapshot, fragment: FragmentInfo) -> BoolArray:
    """Return which physical rows are not deleted."""
    mask = np.ones(fragment.rows, np.bool_)
    if fragment.deleted:
        mask[:] = False
        for batch in storage.scan(snapshot, fragment.id, [], batch_rows=65_536, live_only=True):
            address = integers(batch.column("_rowaddr"))
            mask[address & 0xFFFFFFFF] = True
    return mask


def rewritten_from(
    fragment: FragmentInfo, before: Mapping[int, FragmentInfo], groups: tuple[RewriteGroup, ...]
) -> tuple[list[FragmentInfo], int, int] | None:
    """Return the old fragments whose live rows a compaction laid out, for one new fragment.

    ``before`` has the fragments as they were just before it. With the old ones: at which of those
    rows the new fragment begins, and how many they are in all.
    """
    for old_ids, new in groups:
        start = 0
        for fragment_id, rows in new:
            if fragment_id == fragment.id and rows == fragment.rows:
                if any(i not in before for i in old_ids):
                    return None
                old = [before[i] for i in old_ids]
                return old, start, sum(n for _, n in new)
            start += rows
    return None
