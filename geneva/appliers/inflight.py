"""Units that were handed to the UDF threads and are not in the column file yet."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from geneva.appliers.batches import HELD_BYTES
from geneva.appliers.record import Computed, together
from geneva.appliers.units import Unit, emptied
from geneva.column.file import GATHER_BYTES

_LOOK_S = 0.5


class InFlight:
    """Hands back what was computed, in the order in which it was handed out.

    So many are in flight as keep the threads busy; of large ones, fewer. Small ones come back in
    groups: to wake the thread that writes them takes longer than the call of a quick UDF.

    The values of a unit are taken to be as large as the largest of those that came before.

    Parameters
    ----------
    threads
        That call the UDF.
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
