"""Past versions of a table, as far as they are still there."""

from __future__ import annotations

from collections.abc import Callable

from geneva.errors import TableChangedError
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.values import Change

_OPEN = 64  # kept: each holds its manifest, of which a long history has gigabytes
_RESTORES = 256  # versions among which restores are looked for


class Versions:
    """Opens past versions of one snapshot's table, each once, and finds where things began."""

    def __init__(self, storage: TableStorage, snapshot: Snapshot) -> None:
        self._storage, self._snapshot = storage, snapshot
        self._open: dict[int, Snapshot] = {}  # those asked for last
        self._gone: set[int] = set()
        self._changes: dict[int, Change | None] = {}

    def open(self, version: int) -> Snapshot | None:
        """Return a version, or ``None`` if it was cleaned up."""
        if version == self._snapshot.version:
            return self._snapshot
        found = self._open.pop(version, None)
        if found is None and version not in self._gone:
            try:
                found = self._storage.open(version)
            except TableChangedError:
                self._gone.add(version)
        if found is not None:
            self._open[version] = found
            if len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
        return found

    def change(self, version: int) -> Change | None:
        """Return what made a version, or ``None`` if that is no longer known."""
        if version not in self._changes:
            self._changes[version] = self._storage.change(self._snapshot, version)
        return self._changes[version]

    def first(self, has: Callable[[Snapshot], bool], last: int) -> tuple[int, bool]:
        """Return the first version of those up to ``last`` in which something is there.

        What a restore brought back came to be before the version that was restored.

        Returns
        -------
        version, known
            Not ``known`` where the versions before it are gone: then it may be older than that.
        """

        def there(version: int) -> bool:
            past = self.open(version)
            return past is not None and has(past)

        while True:
            # there(high) is true, there(low) is false. Most things began a few versions ago: in a
            # long history, where one step leads to the next, that is all that is opened.
            low, high, step = last - 1, last, 1
            while low > 0 and there(low):
                low, high, step = low - 2 * step, low, 2 * step
            low = max(low, 0)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if there(middle) else (middle, high)
            change = self.change(high)
            if change is None or change.restored is None:
                return high, high == 1 or self.open(high - 1) is not None
            if not there(change.restored):
                return high, False
            last = change.restored

    def left_behind(self, since: int, last: int) -> list[Snapshot]:
        """Return the ends of the lines of versions that restores left behind, the latest last."""
        found = []
        for version in range(max(since, last - _RESTORES) + 1, last + 1):
            change = self.change(version)
            past = self.open(version - 1) if change is not None and change.restored else None
            found += [past] if past is not None else []
        return found
