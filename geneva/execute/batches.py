"""How many rows are read at once, and go to one UDF call when the user does not say."""

from __future__ import annotations

import threading

TARGET_S = 0.4  # a batch in flight is what a crash loses: keep it well under a second
TARGET_BYTES = 16 << 20
MAX_ROWS = 65_536
READ_BYTES = 16 << 20
_TOGETHER_ROWS = 1 << 20
_GROWTH = 8.0
WIDE_ROW_BYTES = 8 << 10  # below that a scan is quicker, and its memory bounded enough


def read_rows(row_bytes: float) -> tuple[int, int | None]:
    """Return (rows per read batch, batches read ahead or ``None`` for Lance's default)."""
    rows = int(min(MAX_ROWS, max(1, READ_BYTES / max(row_bytes, 1.0))))
    return rows, (1 if row_bytes > WIDE_ROW_BYTES else None)


def together_rows(row_bytes: float | None) -> int:
    """Return how many rows of small fragments are read together; they are held until computed."""
    return int(min(_TOGETHER_ROWS, READ_BYTES / max(row_bytes or 1.0, 1.0)))


HELD_BYTES = 64 << 20  # of units in flight, while enough of them are left for every thread


def unit_bytes(threads: int) -> int:
    """Return how large a unit may be: with many threads, as many are held at once."""
    return TARGET_BYTES * 2 // max(2, threads)


class BatchSizer:
    """Follows the measured time and size of batches; thread-safe.

    It begins with one row, so that a UDF that takes a second a row checkpoints after a second,
    and multiplies by at most eight while batches are quick.

    Parameters
    ----------
    fixed
        Rows per batch, if the user gave them.
    limit
        Rows that a batch never exceeds.
    least
        Rows that it begins with and never falls below: those that are awaited at once.
    most_bytes
        Of the inputs or the values of a batch.
    """

    def __init__(
        self,
        fixed: int | None,
        limit: int = MAX_ROWS,
        least: int = 1,
        most_bytes: int = TARGET_BYTES,
    ) -> None:
        self._fixed, self._most_bytes = fixed, most_bytes
        self._least = max(1, least)
        self._limit = max(self._least, limit)
        self._rows = fixed or self._least
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        """Rows for the next batch."""
        return self._rows

    @property
    def most(self) -> int:
        """Rows that a batch never exceeds."""
        return self._limit

    @property
    def fixed(self) -> bool:
        """Whether the user gave the rows, and costs are of no interest."""
        return self._fixed is not None

    def observe(self, rows: int, seconds: float, size_bytes: int) -> None:
        """Take in what a batch cost."""
        if self._fixed is not None or rows < self._rows:
            return
        with self._lock:
            factor = min(
                _GROWTH, TARGET_S / max(seconds, 1e-9), self._most_bytes / max(size_bytes, 1)
            )
            self._rows = max(self._least, min(self._limit, int(rows * factor)))

    def lower(self, rows: int) -> None:
        """Never again give a batch more rows: the UDF's device had no room for twice as many."""
        with self._lock:
            self._limit = max(self._least, min(self._limit, rows))
            self._rows = min(self._rows, self._limit)

    def resume(self, rows: int) -> None:
        """Begin with the size that an earlier job of the same UDF arrived at."""
        self._rows = max(self._least, min(self._limit, rows))
